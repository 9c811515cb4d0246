//! E41: what does not fit is told, and nothing else is: no black hole, and no small packets for nothing.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use crate::network::{Network, SERVER, plan};
use crate::side::SIDES;
use crate::traffic::{AWAY, PATIENCE, PODS, address};
use crate::wire::{Packet, UDP};

/// MTU of every interface but the tunnel device.
const MTU: u16 = 1500;

impl Network {
    /// A TCP connection from a pod to the server, both ends of it.
    pub(crate) fn both_ends(&self, from: &str, to: SocketAddr) -> [TcpStream; 2] {
        let listener = self.enter("out", move || TcpListener::bind(to).unwrap());
        let client = self.enter(from, move || {
            TcpStream::connect_timeout(&to, PATIENCE).unwrap()
        });
        let ends = [client, listener.accept().unwrap().0];
        for end in &ends {
            end.set_read_timeout(Some(PATIENCE)).unwrap();
            end.set_write_timeout(Some(PATIENCE)).unwrap();
        }
        ends
    }
}

/// Moves bytes from one end to the other, all of which have to arrive.
pub(crate) fn transfer(from: &TcpStream, to: &TcpStream, length: usize) {
    let mut from = from.try_clone().unwrap();
    let sender = thread::spawn(move || from.write_all(&vec![7; length]).unwrap());
    let mut arrived = vec![0; length];
    let mut to = to;
    to.read_exact(&mut arrived).unwrap();
    sender.join().unwrap();
    assert!(arrived.iter().all(|byte| *byte == 7));
}

#[test]
fn what_does_not_fit_the_tunnel_is_told_with_the_right_mtu() {
    let network = Network::held_by("n2");
    let (inside, outside) = (network.listen(AWAY, "eth0"), network.listen("out", "eth0"));
    for side in &SIDES {
        let (pod, fitting) = (side.pod(AWAY), MTU - side.tunnel_headers);
        let headers = if side.is_ipv6() { 48 } else { 28 };
        for (length, fits) in [(MTU, false), (fitting + 1, false), (fitting, true)] {
            let data = vec![0; usize::from(length - headers)];
            let mut packet = Packet::udp((&pod, length), (side.server, 7000), &data);
            packet.dont_fragment = true;
            network.inject(AWAY, &packet);
            let is_it = |p: &Packet| p.ports() == Some((length, 7000)) && p.is_to(side.server);
            if fits {
                let arrived = outside.wait_for("the packet", |p| p.protocol == UDP && is_it(p));
                assert!(arrived.is_from(side.floating) && arrived.dont_fragment);
                continue;
            }
            let told = inside.wait_for("what fits", |p| {
                p.icmp() == Some(side.too_big) && p.cause().is_some_and(|cause| is_it(&cause))
            });
            assert_eq!(told.told_mtu(), fitting);
            assert!(told.cause().unwrap().is_from(&pod));
            assert_eq!(outside.count(|p| p.protocol == UDP && is_it(p)), 0);
        }
    }
}

#[test]
fn a_narrow_path_behind_the_gateway_is_told_to_the_pod() {
    const NARROW: u16 = 1300;
    let network = Network::held_by("n2");
    for side in &SIDES {
        let beyond = side.beyond;
        network.ip(
            "out",
            &format!("route add {beyond} dev eth0 mtu lock {NARROW}"),
        );
        for pod in PODS {
            let (inside, own) = (network.listen(pod, "eth0"), side.pod(pod));
            let mut packet = Packet::udp((&own, 6000), (beyond, 7000), &[0; 1350]);
            packet.dont_fragment = true;
            network.inject(pod, &packet);
            let told = inside.wait_for("what fits", |p| p.icmp() == Some(side.too_big));
            assert_eq!((told.told_mtu(), told.is_to(&own)), (NARROW, true));
            let cause = told.cause().unwrap();
            assert!(
                cause.is_from(&own) && cause.ports() == Some((6000, 7000)),
                "{cause:?}"
            );
        }
    }
}

#[test]
fn bulk_transfers_go_both_ways_in_packets_larger_than_the_mtu() {
    const LENGTH: usize = 20 << 20;
    let network = Network::held_by("n2");
    for side in &SIDES {
        let [client, server] = network.both_ends(AWAY, address(side.server, 7001));
        assert_eq!(server.peer_addr().unwrap().ip().to_string(), side.floating);
        let uplink = network.listen("n1", "eth0");
        transfer(&client, &server, LENGTH);
        transfer(&server, &client, LENGTH);
        let sizes: Vec<usize> = uplink
            .packets()
            .iter()
            .filter(|p| p.is_tunneled() && p.is_to(side.floating))
            .map(|p| 20 + p.payload.len())
            .collect();
        let bytes: usize = sizes.iter().sum();
        let largest = sizes.iter().max().copied();
        assert!(
            largest > Some(10 * usize::from(MTU)),
            "{largest:?}: cut up before the tunnel"
        );
        // Cut up, it would be one packet for each 1,400 bytes.
        assert!(
            sizes.len() < bytes / 4000,
            "{} packets for {bytes} bytes",
            sizes.len()
        );
    }
}

#[test]
fn connections_go_on_when_the_mtu_of_the_uplink_changes() {
    const LENGTH: usize = 1 << 20;
    let network = Network::new();
    network.apply_all("n2");
    let [client, server] = network.both_ends(AWAY, address(SERVER, 7001));
    let mtu = || network.exec("n1", "cat /sys/class/net/egressnat0/mtu");
    for uplink in [1500, 1300, 1500, 1400] {
        network.ip("n1", &format!("link set eth0 mtu {uplink}"));
        let report = network.apply("n1", plan("n1", "n2"));
        assert_eq!(report.failures, []);
        assert_eq!(mtu().trim(), (uplink - 50).to_string());
        transfer(&client, &server, LENGTH);
        // Answers do not come through the tunnel, and a node that takes less than its neighbors send loses them.
        if uplink == 1500 {
            transfer(&server, &client, LENGTH);
        }
    }
    assert_eq!(network.apply("n1", plan("n1", "n2")).changes, 0);
    // Under an agent that runs: it is told, and then it applies.
    network.open("n1", async |mut dataplane| {
        dataplane.apply(&plan("n1", "n2")).await;
        let set = nix::unistd::gettid();
        let command = format!("nsenter -t {set} -n ip link set eth0 mtu 1200");
        let changed = async {
            tokio::task::spawn_blocking(move || {
                std::process::Command::new("sh")
                    .args(["-c", &command])
                    .status()
                    .unwrap()
            })
            .await
            .unwrap();
        };
        tokio::join!(tokio::time::timeout(PATIENCE, dataplane.changed()), changed)
            .0
            .unwrap();
        let report = dataplane.apply(&plan("n1", "n2")).await;
        assert_eq!((report.changes, report.failures), (1, vec![]));
    });
    assert_eq!(mtu().trim(), "1150");
    transfer(&client, &server, LENGTH);
}
