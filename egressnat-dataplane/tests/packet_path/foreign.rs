//! What is not ours stays as it is, and does not get in between.

use egressnat_dataplane::Attachment;

use crate::ipv6::{self, FLOATING6, SERVER6};
use crate::network::{FLOATING, Network, OTHER_SERVER, SERVER, eventually, plan};

/// What kube-proxy, Docker, Calico and a host firewall leave on a node, as `nft -f` reads it.
const FOREIGN: &str = r#"
table ip nat {
	chain KUBE-POSTROUTING {
		meta mark & 0x00004000 != 0x00004000 counter return
		counter meta mark set mark xor 0x4000
		counter masquerade fully-random
	}
	chain KUBE-MARK-MASQ {
		counter meta mark set mark or 0x4000
	}
	chain KUBE-SERVICES {
		ip daddr 10.96.0.10 tcp dport 80 counter dnat to 10.10.2.3:80
	}
	chain PREROUTING {
		type nat hook prerouting priority dstnat; policy accept;
		counter jump KUBE-SERVICES
	}
	chain POSTROUTING {
		type nat hook postrouting priority srcnat; policy accept;
		counter jump KUBE-POSTROUTING
		ip saddr 172.17.0.0/16 oifname != "docker0" counter masquerade
	}
}
table ip filter {
	set cali40all-ipam-pools { type ipv4_addr; flags interval; elements = { 10.10.0.0/16 } }
	chain cali-FORWARD {
		counter meta mark set mark and 0x0fffffff
		ip saddr @cali40all-ipam-pools counter accept
	}
	chain DOCKER-USER {
		counter return
	}
	chain FORWARD {
		type filter hook forward priority filter; policy accept;
		counter jump cali-FORWARD
		counter jump DOCKER-USER
	}
}
table inet firewalld {
	chain input {
		type filter hook input priority 10; policy accept;
		ct state established,related accept
	}
}
table ip6 nat {
	chain KUBE-POSTROUTING {
		meta mark & 0x00004000 != 0x00004000 counter return
		counter meta mark set mark xor 0x4000
		counter masquerade fully-random
	}
	chain POSTROUTING {
		type nat hook postrouting priority srcnat; policy accept;
		counter jump KUBE-POSTROUTING
	}
}
table ip6 filter {
	set cali60all-ipam-pools { type ipv6_addr; flags interval; elements = { fd00:10:10::/48 } }
	chain cali-FORWARD {
		counter meta mark set mark and 0x0fffffff
		ip6 saddr @cali60all-ipam-pools counter accept
	}
	chain FORWARD {
		type filter hook forward priority filter; policy accept;
		counter jump cali-FORWARD
	}
}
table arp foreign {
	chain input {
		type filter hook input priority 0; policy accept;
	}
}
"#;

/// Translates whatever leaves, as flannel and Docker do for their ranges.
pub(crate) fn masquerades_at(priority: i32) -> String {
    format!(
        "table ip late {{\nchain every {{\ntype nat hook postrouting priority {priority}; policy accept;\n\
         ip saddr 10.10.0.0/16 ip daddr != 224.0.0.0/4 counter masquerade\n}}\n}}"
    )
}

/// What lists all objects of the network that a node has.
pub(crate) const OBJECTS: [&str; 9] = [
    "nft -s list ruleset",
    "ip -o link",
    "ip -o addr",
    "ip rule",
    "ip -6 rule",
    "ip route show table all",
    "ip -6 route show table all",
    "tc qdisc",
    "tc filter show dev veth2 ingress",
];

impl Network {
    /// Loads a ruleset beside what is there.
    pub(crate) fn load(&self, name: &str, ruleset: &str) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), ruleset).unwrap();
        self.exec(name, &format!("nft -f {}", file.path().display()));
    }

    /// Everything that others could have on a node, byte by byte.
    fn whole_foreign_state(&self, node: &str) -> Vec<String> {
        let settings = "sysctl net.ipv4.conf.all.rp_filter net.ipv4.conf.eth0.rp_filter net.ipv4.ip_forward \
             net.ipv4.conf.eth0.arp_ignore net.ipv6.conf.all.forwarding";
        let commands = OBJECTS.into_iter().chain([settings]);
        commands.map(|command| self.exec(node, command)).collect()
    }

    /// The same without what is ours.
    fn foreign_state(&self, node: &str) -> Vec<String> {
        let mut state = self.whole_foreign_state(node);
        let is_ours = |table: &&str| table.lines().any(|line| line.contains(" egressnat {"));
        let tables = state[0].split_inclusive("\n}\n");
        state[0] = tables.filter(|table| !is_ours(table)).collect();
        for text in &mut state[1..] {
            let lines = text.split_inclusive('\n');
            // The queueing discipline too that an interface had not.
            let qdisc = "clsact ffff: dev veth3";
            let ours = [
                "egressnat",
                "1190",
                FLOATING,
                FLOATING6,
                " pref 61190 ",
                qdisc,
            ];
            let is_ours = |line: &&str| ours.iter().any(|part| line.contains(part));
            *text = lines.filter(|line| !is_ours(line)).collect();
        }
        state
    }
}

#[test]
fn a_full_life_leaves_what_others_have_byte_for_byte_at_every_moment_e46() {
    for attachment in [Attachment::Tcx, Attachment::Clsact] {
        let mut network = Network::dual_stack();
        network.attachment = attachment;
        for node in ["n1", "n2"] {
            network.load(node, FOREIGN);
            network.ip(node, "rule add fwmark 0x8000/0x8000 table 77 priority 700");
            network.ip(node, "route add 203.0.113.0/24 via 192.168.1.254 table 77");
            network.ip(
                node,
                "-6 rule add fwmark 0x8000/0x8000 table 77 priority 700",
            );
            network.ip(
                node,
                "-6 route add 2001:db8:7::/48 via fd00:192:168:1::254 table 77",
            );
            network.exec(node, "tc qdisc add dev veth2 clsact");
            network.shell(
                node,
                "tc filter add dev veth2 ingress prio 7 bpf da bytecode '1,6 0 0 4294967295'",
            );
        }
        eventually(false, || {
            ["n1", "n2"]
                .iter()
                .any(|node| network.exec(node, "ip addr show").contains("tentative"))
        });
        let before = ["n1", "n2"].map(|node| network.whole_foreign_state(node));
        let unharmed = |when: &str| {
            let now = ["n1", "n2"].map(|node| network.foreign_state(node));
            for (now, before) in now.iter().flatten().zip(before.iter().flatten()) {
                assert_eq!(now, before, "{attachment:?}, {when}");
            }
        };
        unharmed("before");
        for holder in ["n2", "n1", "n2"] {
            network.apply_both(holder);
            unharmed("with a plan");
            assert_ne!(network.whole_foreign_state("n1"), before[0]);
            for pod in ["10.10.1.2", "10.10.2.2"] {
                let seen = [SERVER, SERVER6].map(|server| network.seen_by_tcp(pod, server));
                let want = [FLOATING, FLOATING6].map(|address| Some(address.to_owned()));
                assert_eq!(seen, want, "{pod}, held by {holder}");
            }
            let plan = ipv6::plan("n1", holder);
            let keeper = network.keep("n1", network.config("n1"), plan);
            network.ip("n1", "link del egressnat0");
            keeper.wait_for(egressnat_core::Resource::Device);
            drop(keeper);
            unharmed("after something was brought back");
        }
        for node in ["n1", "n2"] {
            assert_eq!(network.clean(node).failures, []);
        }
        let after = ["n1", "n2"].map(|node| network.whole_foreign_state(node));
        assert_eq!(after, before, "{attachment:?}");
    }
}

#[test]
fn who_masquerades_before_or_behind_us_does_not_translate_what_is_decided() {
    // Behind ours, where iptables has it, and before others.
    for priority in [100, 0, -198] {
        let network = Network::new();
        for node in ["n1", "n2"] {
            network.load(node, &masquerades_at(priority));
        }
        for holder in ["n2", "n1"] {
            network.apply_all(holder);
            for pod in ["10.10.1.2", "10.10.2.2"] {
                for seen in [
                    network.seen_by_tcp(pod, SERVER),
                    network.seen_by_udp(pod, SERVER),
                ] {
                    let what = format!("{pod}, held by {holder}, masqueraded at {priority}");
                    assert_eq!(seen.as_deref(), Some(FLOATING), "{what}");
                }
            }
        }
        // What a policy keeps has its own address, or nobody's.
        let mut keeps = plan("n1", "n2");
        for steering in keeps.destinations.values_mut() {
            *steering = egressnat_core::Steering::Keep;
        }
        network.apply("n1", keeps);
        let seen = network.seen_by_tcp("10.10.1.2", SERVER);
        assert_eq!(
            seen.as_deref(),
            Some("10.10.1.2"),
            "kept, masqueraded at {priority}"
        );
        let seen = network.seen_by_tcp("10.10.1.3", OTHER_SERVER);
        assert_eq!(seen.as_deref(), Some("192.168.1.1"), "as before");
    }
}
