//! What is not ours stays as it is, and does not get in between.

use egressnat_dataplane::cleanup;

use crate::network::{FLOATING, Network, OTHER_SERVER, SERVER, eventually, plan, runtime};

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

impl Network {
    /// Loads a ruleset beside what is there.
    pub(crate) fn load(&self, name: &str, ruleset: &str) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), ruleset).unwrap();
        self.exec(name, &format!("nft -f {}", file.path().display()));
    }

    /// Everything that others could have on a node, byte by byte.
    fn foreign_state(&self, node: &str) -> Vec<String> {
        [
            "nft -j -s list ruleset",
            "ip -o link",
            "ip -o addr",
            "ip rule",
            "ip -6 rule",
            "ip route show table all",
            "ip -6 route show table all",
            "tc qdisc",
            "tc filter show dev veth2 ingress",
            "sysctl net.ipv4.conf.all.rp_filter net.ipv4.conf.eth0.rp_filter net.ipv4.ip_forward",
        ]
        .map(|command| self.exec(node, command))
        .into()
    }
}

#[test]
fn a_full_life_leaves_what_others_have_byte_for_byte_e46() {
    let network = Network::new();
    for node in ["n1", "n2"] {
        network.load(node, FOREIGN);
        network.ip(node, "rule add fwmark 0x8000/0x8000 table 77 priority 700");
        network.ip(node, "route add 203.0.113.0/24 via 192.168.1.254 table 77");
        network.exec(node, "tc qdisc add dev veth2 clsact");
    }
    eventually(false, || {
        ["n1", "n2"]
            .iter()
            .any(|node| network.exec(node, "ip addr show").contains("tentative"))
    });
    let before = ["n1", "n2"].map(|node| network.foreign_state(node));
    for holder in ["n2", "n1", "n2"] {
        network.apply_all(holder);
        for pod in ["10.10.1.2", "10.10.2.2"] {
            let seen = network.seen_by_tcp(pod, SERVER);
            assert_eq!(seen.as_deref(), Some(FLOATING), "{pod}, held by {holder}");
        }
        let keeper = network.keep("n1", network.config("n1"), plan("n1", holder));
        network.ip("n1", "link del egressnat0");
        keeper.wait_for(egressnat_core::Resource::Device);
    }
    for node in ["n1", "n2"] {
        let config = network.config(node);
        let report = network.enter(node, move || runtime().block_on(cleanup(&config)));
        assert_eq!(report.failures, []);
    }
    let after = ["n1", "n2"].map(|node| network.foreign_state(node));
    assert_eq!(after, before);
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
