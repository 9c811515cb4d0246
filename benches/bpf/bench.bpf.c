// SPDX-License-Identifier: (GPL-2.0 OR MIT)
// What the benchmarks measure with, and what they compare with. No part of the product.
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* ---- Live packets: made by `generate`, counted and dropped by `sink`. ---- */

#define FRAME_WORDS 8

/* A whole frame, which each packet begins as: pages are recycled, and keep what the last packet's way made of them. */
volatile const __u64 FRAME[FRAME_WORDS] = {};
/* How many flows take turns, told apart by their ports. */
volatile const __u32 FLOWS = 1;
/* With which addresses a packet has to arrive to count as treated right. */
volatile const __be32 SEEN_FROM = 0;
volatile const __be32 SEEN_TO = 0;

enum live { NEXT, ARRIVED, RIGHT, LIVE };

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, LIVE);
	__type(key, __u32);
	__type(value, __u64);
} live SEC(".maps");

static __always_inline __u64 *counter(__u32 index)
{
	return bpf_map_lookup_elem(&live, &index);
}

SEC("xdp")
int generate(struct xdp_md *xdp)
{
	void *data = (void *)(long)xdp->data;
	void *end = (void *)(long)xdp->data_end;
	__u64 *words = data;
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);
	struct udphdr *udp = (void *)(ip + 1);
	__u64 *next = counter(NEXT);

	if (!next || data + FRAME_WORDS * sizeof(__u64) > end)
		return XDP_ABORTED;
	for (int i = 0; i < FRAME_WORDS; i++)
		words[i] = FRAME[i];
	__u32 flow = *next % FLOWS;
	(*next)++;
	udp->source = bpf_htons(1024 + flow % 60000);
	udp->dest = bpf_htons(1024 + flow / 60000);
	return XDP_PASS;
}

SEC("classifier/sink")
int sink(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);

	/* What the host says of its own accord is none of ours, and goes nowhere either. */
	if ((void *)(ip + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP))
		return TC_ACT_SHOT;
	__u64 *arrived = counter(ARRIVED);
	__u64 *right = counter(RIGHT);
	if (arrived)
		(*arrived)++;
	if (right && ip->saddr == SEEN_FROM && ip->daddr == SEEN_TO)
		(*right)++;
	return TC_ACT_SHOT;
}

/* ---- What a hook costs by itself. ---- */

SEC("classifier/nothing")
int nothing(struct __sk_buff *skb)
{
	return TC_ACT_UNSPEC;
}

/* ---- A packet that comes out of a tunnel, without the tunnel: the mark is all that our table looks at. ---- */

volatile const __u32 MARK = 0;

SEC("classifier/marked")
int marked(struct __sk_buff *skb)
{
	skb->mark = MARK;
	return TC_ACT_UNSPEC;
}

/* ---- The textbook: one table by source and destination, the tunnel key, the kernel's VXLAN device. ---- */

volatile const __u32 TUNNEL_DEVICE = 0;

#define MAX_PAIRS 1048576

struct pair_key {
	__u32 prefixlen;
	__be32 source;
	__be32 destination;
};

struct pair {
	__be32 gateway; /* host byte order, as the tunnel key has it */
	__u32 vni;
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_PAIRS);
	__type(key, struct pair_key);
	__type(value, struct pair);
} pairs SEC(".maps");

SEC("classifier/textbook")
int textbook(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);

	if ((void *)(ip + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP))
		return TC_ACT_UNSPEC;
	struct pair_key key = { .prefixlen = 64, .source = ip->saddr, .destination = ip->daddr };
	struct pair *pair = bpf_map_lookup_elem(&pairs, &key);
	if (!pair)
		return TC_ACT_UNSPEC;
	struct bpf_tunnel_key tunnel = {
		.tunnel_id = pair->vni,
		.remote_ipv4 = pair->gateway,
		.tunnel_ttl = 64,
	};
	if (bpf_skb_set_tunnel_key(skb, &tunnel, sizeof(tunnel), BPF_F_ZERO_CSUM_TX))
		return TC_ACT_SHOT;
	return bpf_redirect(TUNNEL_DEVICE, 0);
}

/* ---- Lookups alone, with addresses that the cache has not just seen. ---- */

#define LOOKUPS 64
#define POD_BITS 14
#define MAX_DESTINATIONS 1048576

struct pod_key {
	__be32 address;
	__u32 ifindex;
};

struct destination_key {
	__u32 prefixlen;
	__u32 set;
	__be32 address;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << POD_BITS);
	__type(key, struct pod_key);
	__type(value, __u32);
} pods SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_DESTINATIONS);
	__type(key, struct destination_key);
	__type(value, __u32);
} destinations SEC(".maps");

/* Pod n has the address 10.0.0.0 + n; destination n is the network 100.0.0.0/24 + n. */
volatile const __u32 PODS = 1;
volatile const __u32 DESTINATIONS = 1;

enum how { NONE, ONE_TABLE, TWO_STEPS };

static __always_inline int lookups(enum how how)
{
	int found = 0;
	__u64 *next = counter(NEXT);
	if (!next)
		return -1;
	__u32 state = *next | 1;
	for (int i = 0; i < LOOKUPS; i++) {
		/* xorshift32 */
		state ^= state << 13;
		state ^= state >> 17;
		state ^= state << 5;
		__be32 source = bpf_htonl(0x0a000000 + (state >> 8) % PODS);
		__be32 destination = bpf_htonl(0x64000001 + (((state & 0xffff) * DESTINATIONS >> 16) << 8));
		if (how == NONE) {
			found += (source ^ destination) != 0;
		} else if (how == ONE_TABLE) {
			struct pair_key key = { .prefixlen = 64, .source = source, .destination = destination };
			found += bpf_map_lookup_elem(&pairs, &key) != 0;
		} else {
			struct pod_key pod = { .address = source, .ifindex = 1 };
			__u32 *set = bpf_map_lookup_elem(&pods, &pod);
			if (!set)
				continue;
			struct destination_key key = { .prefixlen = 64, .set = *set, .address = destination };
			found += bpf_map_lookup_elem(&destinations, &key) != 0;
		}
	}
	*next = state;
	return found;
}

SEC("classifier/lookup_none")
int lookup_none(struct __sk_buff *skb)
{
	return lookups(NONE);
}

SEC("classifier/lookup_one_table")
int lookup_one_table(struct __sk_buff *skb)
{
	return lookups(ONE_TABLE);
}

SEC("classifier/lookup_two_steps")
int lookup_two_steps(struct __sk_buff *skb)
{
	return lookups(TWO_STEPS);
}

char _license[] SEC("license") = "Dual MIT/GPL";
