// SPDX-License-Identifier: (GPL-2.0 OR MIT)
// Steering, encapsulation and decapsulation of egress traffic.
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define MAX_PODS 65536
#define MAX_DESTINATIONS 262144
#define MAX_EGRESS 1024
#define MAX_PEERS 16384

/* The value of a destination is an index into `egress_ips`, but for these three. */
#define FORWARD 0
#define KEEP 1
#define DROP 0xffffffff

/* The policy set of a pod that no policy selects. */
#define UNSELECTED 0

struct pod_key {
	__be32 address;
	__u32 ifindex;
};

struct destination_key {
	__u32 prefixlen;
	__u32 set;
	__be32 address;
};

struct egress {
	__be32 address; /* 0: free */
	__u32 vni;
	__u32 local; /* this node holds the address */
};

struct {
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_PODS);
	__type(key, struct pod_key);
	__type(value, __u32);
} pods SEC(".maps");

struct {
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_DESTINATIONS);
	__type(key, struct destination_key);
	__type(value, __u32);
} destinations SEC(".maps");

struct {
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_EGRESS);
	__type(key, __u32);
	__type(value, struct egress);
} egress_ips SEC(".maps");

/* The same for IPv6. An index is of one family only: its entry in the other array is free. */

struct pod6_key {
	struct in6_addr address;
	__u32 ifindex;
};

struct destination6_key {
	__u32 prefixlen;
	__u32 set;
	struct in6_addr address;
};

struct egress6 {
	struct in6_addr address; /* ::: free */
	__u32 vni;
	__u32 local;
};

struct {
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_PODS);
	__type(key, struct pod6_key);
	__type(value, __u32);
} pods6 SEC(".maps");

struct {
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_DESTINATIONS);
	__type(key, struct destination6_key);
	__type(value, __u32);
} destinations6 SEC(".maps");

struct {
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_EGRESS);
	__type(key, __u32);
	__type(value, struct egress6);
} egress_ips6 SEC(".maps");

struct {
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_PEERS);
	__type(key, struct in6_addr);
	__type(value, __u32);
} peers6 SEC(".maps");

struct {
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_EGRESS);
	__type(key, __u32); /* VNI */
	__type(value, __u32); /* egress index */
} vnis SEC(".maps");

struct {
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_PEERS);
	__type(key, __u32); /* address in host byte order, as the tunnel key has it */
	__type(value, __u32);
} peers SEC(".maps");

/* Packets that end here, by reason: the order is that of `Reason` in maps.rs. */
enum reason { DROPPED, NO_EGRESS, UNKNOWN_PEER, UNKNOWN_VNI, REASONS };

struct {
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, REASONS);
	__type(key, __u32);
	__type(value, __u64);
} blocked SEC(".maps");

struct traffic {
	__u64 packets;
	__u64 bytes; /* with the Ethernet header */
};

struct egress_traffic {
	struct traffic steered; /* from this node's pods */
	struct traffic received; /* out of the tunnel */
};

/* By egress index, of either family; that of KEEP counts what keeps its address. */
struct {
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_EGRESS);
	__type(key, __u32);
	__type(value, struct egress_traffic);
} traffic SEC(".maps");

/* Set by the loader: the bits of skb->mark that are ours, and the one that says "into the tunnel". */
volatile const __u32 MARK_MASK = 0;
volatile const __u32 MARK_TUNNEL = 0;
volatile const __u32 MARK_SHIFT = 0;

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

static __always_inline void set_mark(struct __sk_buff *skb, __u32 bits)
{
	skb->mark = (skb->mark & ~MARK_MASK) | (bits & MARK_MASK);
}

/* What a destination's value says about a packet of a known pod. */
static __always_inline int decide(struct __sk_buff *skb, __u32 set, const __u32 *index, int is_ipv6)
{
	if (!index || *index == FORWARD) {
		set_mark(skb, set == UNSELECTED ? MARK_FORWARD : MARK_PASSED);
		return TC_ACT_UNSPEC;
	}
	if (*index == DROP) {
		count_blocked(DROPPED);
		return TC_ACT_SHOT;
	}

	__u32 bits = *index << MARK_SHIFT;
	if (*index != KEEP) {
		if (is_ipv6) {
			struct egress6 *egress = bpf_map_lookup_elem(&egress_ips6, index);
			if (egress && !egress->local)
				bits |= MARK_TUNNEL;
		} else {
			struct egress *egress = bpf_map_lookup_elem(&egress_ips, index);
			if (egress && !egress->local)
				bits |= MARK_TUNNEL;
		}
	}
	set_mark(skb, bits);
	struct egress_traffic *counted = bpf_map_lookup_elem(&traffic, index);
	if (counted)
		count(&counted->steered, skb);
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

	__u32 *index = 0;
	if (*set != UNSELECTED && !is_of_link(&ip->daddr)) {
		struct destination6_key key = { .prefixlen = 160, .set = *set, .address = ip->daddr };
		index = bpf_map_lookup_elem(&destinations6, &key);
	}
	return decide(skb, *set, index, 1);
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

	__u32 *index = 0;
	if (*set != UNSELECTED) {
		struct destination_key key = { .prefixlen = 64, .set = *set, .address = ip->daddr };
		index = bpf_map_lookup_elem(&destinations, &key);
	}
	return decide(skb, *set, index, 0);
}

/* To whom an egress IP's packets go. A packet and its outer header are of the same family: an IPv6 packet never has an
   egress IP of IPv4. */
static __always_inline int set_tunnel_key(struct __sk_buff *skb, __u32 index)
{
	struct bpf_tunnel_key key = { .tunnel_ttl = 64 };
	__u64 flags = BPF_F_DONT_FRAGMENT;

	if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct egress6 *egress = bpf_map_lookup_elem(&egress_ips6, &index);
		if (!egress || is_unspecified(&egress->address))
			return -1;
		key.tunnel_id = egress->vni;
		__builtin_memcpy(key.remote_ipv6, &egress->address, sizeof(key.remote_ipv6));
		/* With a checksum: over IPv6 nothing else protects the outer addresses (RFC 8200, section 8.1). */
		flags |= BPF_F_TUNINFO_IPV6;
	} else {
		struct egress *egress = bpf_map_lookup_elem(&egress_ips, &index);
		if (!egress || !egress->address)
			return -1;
		key.tunnel_id = egress->vni;
		key.remote_ipv4 = bpf_ntohl(egress->address);
		flags |= BPF_F_ZERO_CSUM_TX;
	}
	return bpf_skb_set_tunnel_key(skb, &key, sizeof(key), flags);
}

/* Egress of the tunnel device: to whom. */
SEC("classifier/encap")
int encap(struct __sk_buff *skb)
{
	__u32 bits = skb->mark & MARK_MASK;

	/* What the kernel says on every device by itself, such as multicast listener reports. */
	if (!bits && skb->protocol == bpf_htons(ETH_P_IPV6))
		return TC_ACT_SHOT;
	if (set_tunnel_key(skb, (bits & ~MARK_TUNNEL) >> MARK_SHIFT)) {
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
	/* The inner destination is the sender's tunnel MAC, not ours. */
	if (skb->pkt_type != PACKET_HOST)
		bpf_skb_change_type(skb, PACKET_HOST);
	struct egress_traffic *counted = bpf_map_lookup_elem(&traffic, index);
	if (counted)
		count(&counted->received, skb);
	return TC_ACT_UNSPEC;
}

char _license[] SEC("license") = "Dual MIT/GPL";
