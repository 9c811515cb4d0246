// SPDX-License-Identifier: (GPL-2.0 OR MIT)
// Steering, encapsulation and decapsulation of egress traffic.
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "connections.h"
#include "maps.h"

/* Set by the loader: the bits of skb->mark that are ours, and the one that says "into the tunnel". */
volatile const __u32 MARK_MASK = 0;
volatile const __u32 MARK_TUNNEL = 0;
volatile const __u32 MARK_SHIFT = 0;
/* Set by the loader: the tunnel's port, and whether `encap` writes the outer headers itself. */
volatile const __u16 TUNNEL_PORT = 0;
volatile const __u32 WRITES_HEADERS = 0;
/* Set by the loader: whether a program counts packets where they leave this node, see departure.bpf.c. */
volatile const __u32 COUNTS_DEPARTURES = 0;

/* The largest index is no egress IP: the packet was looked at, and the node's routes and masquerade rules have it. */
#define MARK_FORWARD (MARK_MASK & ~MARK_TUNNEL)
/* The one before says so of a pod that policies select, and that none of them decides about this destination: a Service may
   still turn it into another one. */
#define MARK_PASSED (MARK_FORWARD - (1 << MARK_SHIFT))

static __always_inline void count_blocked(__u32 reason)
{
	__u64 *value = bpf_map_lookup_elem(&blocked, &reason);
	if (value)
		(*value)++;
}

static __always_inline void count(struct traffic *traffic, struct __sk_buff *skb)
{
	/* A packet of many segments counts as what it is on the wire. */
	traffic->packets += skb->gso_segs > 1 ? skb->gso_segs : 1;
	traffic->bytes += skb->len;
}

static __always_inline __u64 monotonic(void)
{
	return bpf_ktime_get_coarse_ns();
}

/* Whether a packet begins a connection. */
static __always_inline int is_first(struct __sk_buff *skb, int is_ipv6)
{
	void *ip = (void *)(long)skb->data + sizeof(struct ethhdr);
	void *end = (void *)(long)skb->data_end;

	return is_ipv6 ? is_first_of_ipv6(ip, end, 0) : is_first_of_ipv4(ip, end, 0);
}

static __always_inline void set_mark(struct __sk_buff *skb, __u32 bits)
{
	skb->mark = (skb->mark & ~MARK_MASK) | (bits & MARK_MASK);
}

/* Counts a packet for the policy that decided about it. */
static __always_inline void count_policy(struct __sk_buff *skb, __u32 counter, int is_blocked, int is_ipv6)
{
	if (!counter)
		return;
	struct policy_traffic *counted = bpf_map_lookup_elem(&policy_traffic, &counter);
	if (!counted)
		return;
	if (is_blocked) {
		counted->blocked++;
		return;
	}
	count(&counted->sent, skb);
	counted->connections += is_first(skb, is_ipv6);
}

/* Counts a packet that leaves with an egress IP, or with the pod's address, also for the policy that decided so. */
static __always_inline void count_egress(struct __sk_buff *skb, __u32 index, __u32 counter, int is_ipv6)
{
	struct egress_traffic *counted = bpf_map_lookup_elem(&traffic, &index);
	if (counted)
		count(&counted->steered, skb);
	count_policy(skb, counter, 0, is_ipv6);
}

/* What a destination's value says about a packet of a known pod. */
static __always_inline int decide(struct __sk_buff *skb, __u32 set, const __u32 *value, int is_ipv6)
{
	__u32 index = value ? *value & INDEX_MASK : FORWARD;
	__u32 counter = value ? *value >> COUNTER_SHIFT : 0;

	if (index == FORWARD) {
		set_mark(skb, set == UNSELECTED ? MARK_FORWARD : MARK_PASSED);
		return TC_ACT_UNSPEC;
	}
	if (index == DROP) {
		count_blocked(DROPPED);
		count_policy(skb, counter, 1, is_ipv6);
		return TC_ACT_SHOT;
	}

	__u32 bits = index << MARK_SHIFT;
	if (index != KEEP) {
		if (is_ipv6) {
			struct egress6 *egress = bpf_map_lookup_elem(&egress_ips6, &index);
			if (egress && !egress->local)
				bits |= MARK_TUNNEL;
		} else {
			struct egress *egress = bpf_map_lookup_elem(&egress_ips, &index);
			if (egress && !egress->local)
				bits |= MARK_TUNNEL;
		}
	}
	set_mark(skb, bits);
	/* Counted where it leaves: what network policies drop on its way there is no egress (E13). */
	if (bits & MARK_TUNNEL)
		skb->tc_index = counter;
	else if (COUNTS_DEPARTURES)
		skb->tc_index = counter | DEPARTS;
	else
		count_egress(skb, index, counter, is_ipv6);
	return TC_ACT_UNSPEC;
}

static __always_inline int is_unspecified(const struct in6_addr *address)
{
	const __be32 *words = address->s6_addr32;

	return !(words[0] | words[1] | words[2] | words[3]);
}

/* ff00::/8 and fe80::/10: they stay on their link, and mean something else on every other. */
static __always_inline int is_of_link(const struct in6_addr *address)
{
	const __u8 *octets = address->s6_addr;

	return octets[0] == 0xff || (octets[0] == 0xfe && (octets[1] & 0xc0) == 0x80);
}

/* Types of neighbor discovery (RFC 4861): router solicitation to redirect. */
#define ND_FIRST 133
#define ND_LAST 137

static __always_inline int is_neighbor_discovery(const struct ipv6hdr *ip, const void *end)
{
	const __u8 *type = (const void *)(ip + 1);

	return ip->nexthdr == IPPROTO_ICMPV6 && (const void *)(type + 1) <= end && *type >= ND_FIRST && *type <= ND_LAST;
}

static __always_inline int steer_ipv6(struct __sk_buff *skb, const struct ipv6hdr *ip, const void *end)
{
	struct pod6_key pod = { .address = ip->saddr, .ifindex = skb->ifindex };
	__u32 *set = bpf_map_lookup_elem(&pods6, &pod);
	/* Neighbor discovery is for this link alone. Without a decision it passes to this node, and the guard keeps it from
	   being forwarded to a strict destination. */
	if (!set || is_neighbor_discovery(ip, end)) {
		set_mark(skb, 0);
		return TC_ACT_UNSPEC;
	}

	__u32 *value = 0;
	if (*set != UNSELECTED && !is_of_link(&ip->daddr)) {
		struct destination6_key key = { .prefixlen = 160, .set = *set, .address = ip->daddr };
		value = bpf_map_lookup_elem(&destinations6, &key);
	}
	return decide(skb, *set, value, 1);
}

/* Ingress of a pod's host-side interface: what the pod sends. Marks only: every packet of a pod that is known on this
   interface carries a decision afterwards, and the guard in nftables (E43) looks for one. */
SEC("classifier/steer")
int steer(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);

	/* An IPv4 header is the shorter one. */
	if ((void *)(ip + 1) > end)
		return TC_ACT_UNSPEC;
	if (eth->h_proto != bpf_htons(ETH_P_IP)) {
		struct ipv6hdr *ip6 = (void *)(eth + 1);
		if (eth->h_proto != bpf_htons(ETH_P_IPV6) || (void *)(ip6 + 1) > end)
			return TC_ACT_UNSPEC;
		return steer_ipv6(skb, ip6, end);
	}

	struct pod_key pod = { .address = ip->saddr, .ifindex = skb->ifindex };
	__u32 *set = bpf_map_lookup_elem(&pods, &pod);
	if (!set) {
		/* Nobody else gives our decisions. */
		set_mark(skb, 0);
		return TC_ACT_UNSPEC;
	}

	__u32 *value = 0;
	if (*set != UNSELECTED) {
		struct destination_key key = { .prefixlen = 64, .set = *set, .address = ip->daddr };
		value = bpf_map_lookup_elem(&destinations, &key);
	}
	return decide(skb, *set, value, 0);
}

/* The outer headers, as they are on the wire. */
struct vxlanhdr {
	__be32 flags;
	__be32 vni;
};

struct outer {
	struct iphdr ip;
	struct udphdr udp;
	struct vxlanhdr vxlan;
	struct ethhdr inner;
} __attribute__((packed));

#define AF_INET 2
#define TUNNEL_TTL 64
#define VXLAN_HAS_VNI 0x08000000
#define IP_DF 0x4000
/* Source ports: the default of `net.ipv4.ip_local_port_range`, from which the kernel's device takes them. */
#define FIRST_PORT 32768
#define PORTS 28232
#define ECN_MASK 3
#define ECN_CE 3
#define ECN_ECT_0 2

/* Of which ECN bits the outer header is (RFC 6040, compatibility mode as in the kernel): congestion is told in one place. */
static __always_inline __u8 outer_ecn(__u8 tos)
{
	__u8 ecn = tos & ECN_MASK;

	return ecn == ECN_CE ? ECN_ECT_0 : ecn;
}

static __always_inline __u16 header_checksum(const struct iphdr *ip)
{
	const __u16 *words = (const void *)ip;
	__u32 sum = 0;

#pragma unroll
	for (int i = 0; i < (int)(sizeof(*ip) / 2); i++)
		sum += words[i];
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* What the last octet of the inner source address is changed by. */
#define OTHER_SOURCE 1

/* The kernel's device takes what has its own MAC address for a loop. A packet that waited on another node for a floating IP which came
   to this one is none. */
static __always_inline int change_source(struct __sk_buff *skb)
{
	__u32 last = offsetof(struct ethhdr, h_source) + ETH_ALEN - 1;
	__u8 octet;

	if (bpf_skb_load_bytes(skb, last, &octet, sizeof(octet)))
		return -1;
	octet ^= OTHER_SOURCE;
	return bpf_skb_store_bytes(skb, last, &octet, sizeof(octet), 0);
}

/* What a packet whose outer headers were not written gets: it goes on to the device. */
#define LEFT_TO_DEVICE -2

/* Writes the outer headers and sends the packet to the neighbor that its route names, past the tunnel device: the same on the
   wire in a third of the time. Where the route is of a kind that takes more than that, the device does it. */
static __always_inline int write_headers(struct __sk_buff *skb, const struct egress *egress)
{
	struct bpf_fib_lookup route = {
		.family = AF_INET,
		.l4_protocol = IPPROTO_UDP,
		.ipv4_dst = egress->address,
		.ifindex = skb->ifindex,
	};
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);

	if ((void *)(ip + 1) > end)
		return LEFT_TO_DEVICE;
	/* In the main table: looking the rules through takes as long as all else here. Not to a neighbor that is not known: a packet
	   that waits for one leaves by its own route, which is the tunnel device's. */
	if (bpf_fib_lookup(skb, &route, sizeof(route), BPF_FIB_LOOKUP_SRC | BPF_FIB_LOOKUP_DIRECT) != BPF_FIB_LKUP_RET_SUCCESS ||
	    route.family != AF_INET)
		return LEFT_TO_DEVICE;

	__u32 hash = bpf_get_hash_recalc(skb);
	hash ^= hash << 16;
	__u32 length = sizeof(struct outer) + skb->len - sizeof(*eth);
	struct iphdr header = {
		.version = 4,
		.ihl = sizeof(header) / 4,
		.tos = outer_ecn(ip->tos),
		/* More than one packet's worth is cut, and gets its lengths, on its way out. */
		.tot_len = length > 0xffff ? 0 : bpf_htons(length),
		.frag_off = bpf_htons(IP_DF),
		.ttl = TUNNEL_TTL,
		.protocol = IPPROTO_UDP,
		.saddr = route.ipv4_src,
		.daddr = egress->address,
	};
	header.check = header_checksum(&header);
	struct outer outer = {
		.ip = header,
		.udp = {
			.source = bpf_htons(FIRST_PORT + (__u16)(((__u64)hash * PORTS) >> 32)),
			.dest = bpf_htons(TUNNEL_PORT),
			.len = length > 0xffff ? 0 : bpf_htons(length - sizeof(struct iphdr)),
		},
		.vxlan = {
			.flags = bpf_htonl(VXLAN_HAS_VNI),
			.vni = bpf_htonl(egress->vni << 8),
		},
		.inner = *eth,
	};
	outer.inner.h_source[ETH_ALEN - 1] ^= OTHER_SOURCE;

	/* The forwarding code has seen that it fits the tunnel's MTU. */
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP |
		      BPF_F_ADJ_ROOM_ENCAP_L2_ETH | BPF_F_ADJ_ROOM_ENCAP_L2(sizeof(struct ethhdr));
	if (bpf_skb_adjust_room(skb, sizeof(outer), BPF_ADJ_ROOM_MAC, flags))
		return LEFT_TO_DEVICE;
	if (bpf_skb_store_bytes(skb, sizeof(*eth), &outer, sizeof(outer), 0))
		return TC_ACT_SHOT;
	struct bpf_redir_neigh neighbor;
	/* All of it: without CAP_PERFMON the kernel lets no helper read what was not written. */
	__builtin_memset(&neighbor, 0, sizeof(neighbor));
	neighbor.nh_family = AF_INET;
	neighbor.ipv4_nh = route.ipv4_dst;
	set_mark(skb, 0);
	return bpf_redirect_neigh(route.ifindex, &neighbor, sizeof(neighbor), 0);
}

/* To whom an egress IP's packets go. A packet and its outer header are of the same family: an IPv6 packet never has an
   egress IP of IPv4. */
static __always_inline int set_tunnel_key(struct __sk_buff *skb, const struct egress *egress)
{
	struct bpf_tunnel_key key = {
		.tunnel_ttl = TUNNEL_TTL,
		.tunnel_id = egress->vni,
		.remote_ipv4 = bpf_ntohl(egress->address),
	};

	return bpf_skb_set_tunnel_key(skb, &key, sizeof(key), BPF_F_DONT_FRAGMENT | BPF_F_ZERO_CSUM_TX);
}

static __always_inline int set_tunnel_key6(struct __sk_buff *skb, const struct egress6 *egress)
{
	struct bpf_tunnel_key key = { .tunnel_ttl = TUNNEL_TTL, .tunnel_id = egress->vni };

	__builtin_memcpy(key.remote_ipv6, &egress->address, sizeof(key.remote_ipv6));
	/* With a checksum: over IPv6 nothing else protects the outer addresses (RFC 8200, section 8.1). */
	return bpf_skb_set_tunnel_key(skb, &key, sizeof(key), BPF_F_DONT_FRAGMENT | BPF_F_TUNINFO_IPV6);
}

/* Egress of the tunnel device: to whom. */
SEC("classifier/encap")
int encap(struct __sk_buff *skb)
{
	__u32 bits = skb->mark & MARK_MASK;
	__u32 index = (bits & ~MARK_TUNNEL) >> MARK_SHIFT;
	__u32 counter = skb->tc_index & COUNTER_MASK;
	int failed = -1;

	skb->tc_index = 0;

	if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		/* What the kernel says on every device by itself, such as multicast listener reports. */
		if (!bits)
			return TC_ACT_SHOT;
		struct egress6 *egress = bpf_map_lookup_elem(&egress_ips6, &index);
		if (egress && !is_unspecified(&egress->address)) {
			count_egress(skb, index, counter, 1);
			failed = set_tunnel_key6(skb, egress);
		}
	} else {
		struct egress *egress = bpf_map_lookup_elem(&egress_ips, &index);
		if (egress && egress->address) {
			count_egress(skb, index, counter, 0);
			/* This very node may have the address by now. */
			if (WRITES_HEADERS && !egress->local) {
				int verdict = write_headers(skb, egress);
				if (verdict != LEFT_TO_DEVICE)
					return verdict;
			}
			failed = set_tunnel_key(skb, egress);
		}
	}
	if (failed || change_source(skb)) {
		count_blocked(NO_EGRESS);
		return TC_ACT_SHOT;
	}
	/* The outer packet is routed with this mark: ours would send it into the tunnel again. */
	set_mark(skb, 0);
	return TC_ACT_UNSPEC;
}

/* Whether a packet came from a node of the cluster, in an outer packet of its own family. */
static __always_inline int read_tunnel_key(struct __sk_buff *skb, struct bpf_tunnel_key *key)
{
	if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct in6_addr peer;
		if (bpf_skb_get_tunnel_key(skb, key, sizeof(*key), BPF_F_TUNINFO_IPV6))
			return -1;
		__builtin_memcpy(&peer, key->remote_ipv6, sizeof(peer));
		return bpf_map_lookup_elem(&peers6, &peer) ? 0 : -1;
	}
	if (bpf_skb_get_tunnel_key(skb, key, sizeof(*key), 0))
		return -1;
	__u32 peer = key->remote_ipv4;
	return bpf_map_lookup_elem(&peers, &peer) ? 0 : -1;
}

/* Ingress of the tunnel device: from whom, and for which address. */
SEC("classifier/decap")
int decap(struct __sk_buff *skb)
{
	struct bpf_tunnel_key key = {};
	if (read_tunnel_key(skb, &key)) {
		count_blocked(UNKNOWN_PEER);
		return TC_ACT_SHOT;
	}
	__u32 vni = key.tunnel_id;
	__u32 *index = bpf_map_lookup_elem(&vnis, &vni);
	if (!index) {
		count_blocked(UNKNOWN_VNI);
		return TC_ACT_SHOT;
	}
	set_mark(skb, *index << MARK_SHIFT);
	/* Counted below, and not where it leaves: whatever somebody gave the outer packet. */
	skb->tc_index = 0;
	/* The inner destination is the sender's tunnel MAC, not ours. */
	if (skb->pkt_type != PACKET_HOST)
		bpf_skb_change_type(skb, PACKET_HOST);
	struct egress_traffic *counted = bpf_map_lookup_elem(&traffic, index);
	if (counted)
		count(&counted->received, skb);
	return TC_ACT_UNSPEC;
}

char _license[] SEC("license") = "Dual MIT/GPL";
