// SPDX-License-Identifier: (GPL-2.0 OR MIT)
// Counting what leaves with an egress IP of this node, or with its pod's address, at the end of its way: netfilter's postrouting, behind
// everything that may drop it.
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#include "connections.h"
#include "counters.h"

/* Set by the loader, as in egressnat.bpf.c: our bits of the mark. */
volatile const __u32 MARK_MASK = 0;
volatile const __u32 MARK_TUNNEL = 0;
volatile const __u32 MARK_SHIFT = 0;
/* Set by the loader: the largest index of an egress IP. */
volatile const __u32 MAX_INDEX = 0;

/* The verdict, and the protocol family (`linux/netfilter.h`, which needs more of the C library than there is here). */
#define NF_ACCEPT 1
#define NFPROTO_IPV6 10

/* What the kernel's structures have that is read here, wherever the running kernel has it in them. */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct net_device {
	int ifindex;
};

struct nf_hook_state {
	__u8 pf;
	struct net_device *in;
};

struct sk_buff {
	unsigned int len;
	unsigned int data_len;
	__u16 tc_index;
	int skb_iif;
	__u32 mark;
	unsigned int end;
	unsigned char *head;
	unsigned char *data;
};

struct skb_shared_info {
	unsigned short gso_segs;
};

#pragma clang attribute pop

/* The context of a program at a netfilter hook. */
struct bpf_nf_ctx {
	const struct nf_hook_state *state;
	struct sk_buff *skb;
};

/* One place, for `count_departure`. A link at a netfilter hook takes no other program, and a second link would count twice or not at all
   while they change: so the program there leads to the one that is here, which another release changes in one step. */
struct {
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	/* The kernel takes no types for these. */
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} departures SEC(".maps");

/* The sections are named as the loader's parser knows them: both programs are of BPF_PROG_TYPE_NETFILTER. */

/* Postrouting, last of all. It stays what it is over releases. */
SEC("classifier/depart")
int depart(struct bpf_nf_ctx *ctx)
{
	if (ctx->skb->tc_index & DEPARTS)
		bpf_tail_call(ctx, &departures, 0);
	return NF_ACCEPT;
}

static __always_inline __u64 monotonic(void)
{
	return bpf_ktime_get_ns();
}

/* As many packets as it is on the wire. */
static __always_inline __u32 segments(const struct sk_buff *skb)
{
	const struct skb_shared_info *shared = (const void *)(skb->head + skb->end);
	unsigned short segments = 0;

	bpf_probe_read_kernel(&segments, sizeof(segments), &shared->gso_segs);
	return segments > 1 ? segments : 1;
}

/* The headers of a packet, as far as it takes to see whether it begins a connection. */
union headers {
	struct {
		struct iphdr ip;
		struct tcphdr next;
	} ipv4;
	struct {
		struct ipv6hdr ip;
		struct tcphdr next;
	} ipv6;
};

/* Whether a packet begins a connection. Its address and port may be translated by now. Another pod may get the same ones before the flow
   is forgotten: the interface that it came from is what is left of who sent it. */
static __always_inline int is_first(const struct sk_buff *skb, int is_ipv6)
{
	union headers headers = {};
	__u32 size = is_ipv6 ? sizeof(headers.ipv6) : sizeof(headers.ipv4);
	__u32 linear = skb->len - skb->data_len;

	if (linear < size)
		size = linear;
	if (bpf_probe_read_kernel(&headers, size, skb->data))
		return 0;
	const void *end = (const void *)&headers + size;
	return is_ipv6 ? is_first_of_ipv6(&headers.ipv6.ip, end, skb->skb_iif) :
			 is_first_of_ipv4(&headers.ipv4.ip, end, skb->skb_iif);
}

/* Counts a packet with an egress IP of this node, or with its pod's address, for that and for the policy that decided so. */
SEC("classifier/count_departure")
int count_departure(struct bpf_nf_ctx *ctx)
{
	const struct nf_hook_state *state = ctx->state;
	const struct sk_buff *skb = ctx->skb;
	__u32 bits = skb->mark & MARK_MASK;
	__u32 index = bits >> MARK_SHIFT;
	__u32 counter = skb->tc_index & COUNTER_MASK;

	/* Decided otherwise since, such as an answer to who came from outside, or never: then somebody else wrote `tc_index`. */
	if (bits & MARK_TUNNEL || index < KEEP || index > MAX_INDEX)
		return NF_ACCEPT;
	/* Where it came from is where it has just been. Otherwise it comes by once more, inside of a tunnel of somebody else. */
	int from = skb->skb_iif;
	if (!from || from != state->in->ifindex)
		return NF_ACCEPT;

	__u32 packets = segments(skb);
	/* As it is counted elsewhere. */
	__u32 bytes = skb->len + sizeof(struct ethhdr);
	struct egress_traffic *counted = bpf_map_lookup_elem(&traffic, &index);
	if (counted) {
		counted->steered.packets += packets;
		counted->steered.bytes += bytes;
	}
	if (!counter)
		return NF_ACCEPT;
	struct policy_traffic *policy = bpf_map_lookup_elem(&policy_traffic, &counter);
	if (policy) {
		policy->sent.packets += packets;
		policy->sent.bytes += bytes;
		policy->connections += is_first(skb, state->pf == NFPROTO_IPV6);
	}
	return NF_ACCEPT;
}

char _license[] SEC("license") = "Dual MIT/GPL";
