//! Source ports of an egress IP: how many are in use is told before there is none left.

use std::net::UdpSocket;
use std::ops::Range;

use egressnat_dataplane::{PORTS, PortUse};

use crate::network::{Network, eventually};
use crate::side::{SIDES, Side, plan};
use crate::traffic::{AWAY, PODS, address};

/// Nobody answers there, and nobody refuses.
const PORT: u16 = 7009;
const FIRST: u16 = 1024;

impl Network {
    /// Sends a datagram from each of these ports of a pod, until the gateway node has all of their flows.
    fn use_ports(&self, side: &Side, ports: Range<usize>) {
        let to = address(side.server, PORT);
        let mut found = 0;
        for _ in 0..10 {
            let sources = ports.clone();
            let any = address(if side.is_ipv6() { "::" } else { "0.0.0.0" }, 0);
            self.enter(AWAY, move || {
                for port in sources {
                    let port = FIRST + u16::try_from(port).unwrap();
                    // One that this pod uses for something else is in use all the same.
                    if let Ok(socket) = UdpSocket::bind((any.ip(), port)) {
                        let _ = socket.send_to(b"?", to);
                    }
                }
            });
            found = self.ports_in_use(side).map_or(0, |most| most.connections);
            if found >= ports.end {
                return;
            }
        }
        panic!("{found} of {} flows", ports.end);
    }

    /// The destination that most ports are used towards.
    fn ports_in_use(&self, side: &Side) -> Option<PortUse> {
        let used = self.open("n2", async |dataplane| dataplane.port_use().unwrap());
        used.into_iter()
            .find(|used| used.egress.to_string() == side.floating)
    }

    /// What is told of the ports of a floating IP.
    fn told_of_ports(&self, side: &Side) -> Vec<String> {
        let report = self.apply("n2", plan("n2", "n2"));
        let object = format!("ports of egress IP {}", side.floating);
        let told = report.failures.into_iter();
        told.filter(|failure| failure.object == object)
            .map(|failure| failure.message)
            .collect()
    }
}

#[test]
fn ports_that_run_out_are_told_before_a_connection_is_refused() {
    let network = Network::held_by("n2");
    for side in &SIDES {
        let drops = [format!("udp dport {PORT} counter drop")];
        side.add_rules(
            &network,
            "out",
            "filter hook prerouting priority -400",
            &drops,
        );
        let outside = network.listen("out", "eth0");
        let few = PORTS / 5 * 4 - 100;
        network.use_ports(side, 0..few);
        let most = network.ports_in_use(side).unwrap();
        assert_eq!(
            (most.destination.to_string().as_str(), most.port),
            (side.server, PORT)
        );
        assert!(!most.is_scarce(), "{most:?}");
        assert_eq!(network.told_of_ports(side), [""; 0]);

        network.use_ports(side, few..few + 100);
        let told = network.told_of_ports(side);
        assert!(
            told.len() == 1 && told[0].contains(&format!("{} port {PORT}", side.server)),
            "{told:?}"
        );
        // While a flow with a port that is taken still finds another: not at every try, for the kernel looks at some only.
        let mut taken = FIRST..;
        eventually(true, || {
            let port = taken.next().unwrap();
            let beside = network.udp(PODS[0], port, address(side.server, PORT));
            beside.send(b"beside").unwrap();
            outside.count(|p| p.is_from(side.floating) && p.payload.get(8..) == Some(b"beside")) > 0
        });
    }
}
