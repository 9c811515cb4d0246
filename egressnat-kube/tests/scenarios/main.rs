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
//!   - `explain NAMESPACE/POD ADDRESS [PROTOCOL]`, `decide NODE SOURCE ADDRESS [PROTOCOL]` (by the node's plan alone), `why ADDRESS`, `what-if [lose NODE]… [drain NODE]…`: questions to answer.
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
        const TESTS: &[&str] = &[$(stringify!($name)),*];
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
}
