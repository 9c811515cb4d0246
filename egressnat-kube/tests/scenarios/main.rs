//! Scenarios: what happens to a cluster step by step, and what is planned for it, as text.
//!
//! Each directory of `cases/` is one scenario and one test:
//!
//! * `scenario.txt`: in the first line one sentence and the requirements that it is about, `… (E31, E32).`; then what else a reader
//!   should know.
//! * `NN-words.yaml`: manifests that step `NN` applies. An object replaces the one before it; a document that is refused changes nothing.
//! * `NN-words.txt`: what step `NN` does besides, after the manifests, a line each:
//!   - `cluster NAME`: apply `clusters/NAME.yaml`; `example v1/policy.yaml`: apply that file of the repository's `examples/`;
//!   - `delete KIND NAME`, `delete KIND NAMESPACE/NAME`: remove an object;
//!   - `down NODE`, `up NODE`: its lease runs out, or is renewed again (a node is up unless told);
//!   - `cluster-range CIDR`: a range inside the cluster that no object tells, such as the service range;
//!   - `masquerade keep|translate|forget CIDR [from CIDR] [PROTOCOL]`: a rule for packets that no policy decides;
//!   - `forget assignment`: a controller begins without knowing who held what;
//!   - `explain NAMESPACE/POD ADDRESS [PROTOCOL]`, `decide NODE SOURCE ADDRESS [PROTOCOL]` (by the node's plan alone), `why ADDRESS`,
//!     `what-if [lose NODE]… [drain NODE]…`: questions to answer;
//!   - `must NODE SOURCE ADDRESS DECISION`: what has to be decided, also while `expected.txt` is written anew;
//!   - `#` begins a comment.
//! * `expected.txt`: what comes of it. A section that is as in the step before is left out; of the nodes' plans only the changes are
//!   shown, in the order in which they are made. `{a b}` is the policy set of the policies `a` and `b`.
//!
//! A cordon is `spec.unschedulable` of the Node, a drain and a capacity are its annotations `egressnat.io/drain` and
//! `egressnat.io/capacity`; a node has the subnets that its NetworkGatewayNode tells.
//!
//! For every step the runner plans twice (the second time nothing changes), lets the independent checker look at everything, plans
//! as an agent does that knows its own pods only, makes the changes one by one and looks at all packets after each of them.
//!
//! `EGRESSNAT_BLESS=1 cargo test -p egressnat-kube --test scenarios` writes `expected.txt` anew. Read the diff: it is the review.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

mod cluster;
mod golden;
mod order;
mod picture;
mod replay;
mod requirements;
mod run;
mod scenario;

macro_rules! scenarios {
    ($($name:ident,)*) => {
        /// Each is the name of a directory, without its number.
        const TESTS: &[&str] = &[$(stringify!($name),)*];
        $(
            #[test]
            fn $name() {
                run::run(stringify!($name));
            }
        )*
    };
}

scenarios! {
    the_published_manifests_of_v1,
    the_published_manifests_of_v1alpha1,
    either_form_in_either_version,
    both_kinds_of_gateway_group_mean_the_same,
    the_switch_is_the_annotation_or_the_field,
    the_switch_of_another_cluster,
    a_gateway_name_taken_in_kube_system,
    a_copy_says_nothing_of_its_own,
    any_rule_selects_and_a_rule_needs_both_selectors,
    an_empty_selector_selects_everything,
    every_operator_of_a_selector,
    a_namespace_changes_its_labels,
    a_pod_gets_its_address_late,
    a_pod_that_is_on_no_node_yet,
    a_host_network_pod_is_told,
    a_finished_pod_leaves_its_address,
    two_pods_tell_one_address,
    a_pod_in_an_unknown_namespace,
    a_pod_moves_to_another_node,
    all_else_is_masqueraded,
    masquerading_is_off,
    destinations_inside_the_cluster,
    everything_but_the_cluster,
    the_longest_prefix_wins,
    the_older_policy_wins_then_the_name,
    policies_that_agree_are_no_overlap,
    no_snat_needs_destinations_only,
    no_snat_beside_snat,
    the_first_floating_ip_counts,
    policies_share_a_gateway_group,
    an_unknown_egress_source_ip,
    one_egress_source_ip_in_two_policies,
    a_gateway_ref_to_nothing,
    a_duplicate_floating_ip,
    the_first_floating_ip_is_refused,
    a_floating_ip_that_a_node_has,
    a_floating_ip_that_no_host_can_have,
    two_floating_ips_with_one_tunnel_id,
    workers_before_control_plane,
    the_subnet_comes_before_the_role,
    empty_nodes_before_others,
    a_node_is_lost_and_returns,
    a_node_is_deleted,
    all_nodes_are_down_and_return,
    a_new_node_takes_nothing,
    who_held_it_decides,
    a_capacity,
    a_cordon_moves_addresses_before_the_node_goes,
    a_drain_with_nobody_else,
    all_nodes_are_cordoned,
    an_address_in_no_subnet,
    two_subnets,
    a_node_without_an_agent,
    dual_stack,
    no_egress_ip_of_the_family,
    best_effort_without_a_holder,
    a_guard_for_addresses_that_no_pod_has,
    a_policy_is_edited,
    a_policy_is_deleted,
    nested_destinations_come_narrow_first,
    a_hole_and_an_island_in_one_policy_set,
    deletion_in_the_opposite_order,
    peers_follow_the_nodes,
    two_nodes_with_one_address,
    invalid_manifests_beside_valid_ones,
    a_refused_edit_changes_nothing,
    v4_mapped_destinations,
    a_pod_changes_its_labels,
    v1alpha1_and_v1_side_by_side,
    a_group_in_kube_system_needs_no_switch,
    a_node_changes_its_role,
    a_fallback_does_not_fall_to_the_next_policy,
    no_snat_for_everything,
    strict_and_best_effort_for_one_destination,
    a_policy_changes_its_enforcement,
    two_failures_at_once,
    overlapping_subnets,
    groups_of_one_age,
    a_node_gets_its_pod_range_late,
    strict_traffic_waits_for_an_unknown_namespace,
}
