/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
/* Which packet begins a connection.

   TCP and SCTP say so in the packet. For UDP and echo requests there is a small table of flows: a first packet is one that it does not know.
   Nothing is looked for behind options and extension headers: where the next header is has to be a constant, as without CAP_PERFMON the
   kernel takes no other offset into a packet. */
#pragma once

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "counters.h"

/* A flow that was silent for longer begins anew: as connection tracking has it by default for UDP that was answered
   (`nf_conntrack_udp_timeout_stream`), in its seconds. */
#define IDLE 120
/* What makes seconds of nanoseconds, less 7 of 100. */
#define SECONDS_SHIFT 30
/* Odd numbers with bits everywhere: from the golden ratio and from the root of two. */
#define MIX 0x9e3779b97f4a7c15ull
#define MIX_MORE 0xb504f333f9de6485ull

#define IP_OFFSET 0x1fff
/* Types of echo requests (RFC 792, RFC 4443). */
#define ECHO_REQUEST 8
#define ECHO_REQUEST6 128
/* The type of an SCTP chunk that asks for an association (RFC 9260). */
#define SCTP_INIT 1

/* How an ICMP echo request begins, in both families. */
struct echo {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be16 id;
	__be16 sequence;
};

/* What SCTP has in front of its first chunk, and how that begins. */
struct sctp_begin {
	__be16 source;
	__be16 dest;
	__be32 tag;
	__be32 checksum;
	__u8 chunk;
};

/* Nanoseconds since the node was started, by a helper that this type of program may call. Each program has its own. */
static __always_inline __u64 monotonic(void);

/* Adds to a hash what tells flows apart. */
static __always_inline __u64 mixed(__u64 hash, __u64 word)
{
	hash = (hash ^ word) * MIX;
	return hash ^ hash >> 32;
}

/* Whether the table does not know a flow, which it does from now on. Two CPUs may both find that: then it is counted twice. A function of
   its own, as inlined in each place it would be a third of all programs. */
static __noinline int is_new_flow(__u64 hash)
{
	hash *= MIX_MORE;
	__u32 index = hash >> (64 - FLOW_BITS);
	__u32 tag = (__u32)hash | 1;
	struct flow_bucket *bucket = bpf_map_lookup_elem(&flows, &index);

	if (!bucket)
		return 0;
	__u32 now = monotonic() >> SECONDS_SHIFT;
	struct flow *oldest = &bucket->flows[0];
#pragma unroll
	for (int i = 0; i < FLOWS_OF_BUCKET; i++) {
		struct flow *flow = &bucket->flows[i];
		if (flow->tag == tag) {
			__u32 silent = now - flow->seen;
			/* Written once a second at most: other CPUs read the line too. */
			if (silent)
				flow->seen = now;
			return silent > IDLE;
		}
		if (flow->seen < oldest->seen)
			oldest = flow;
	}
	oldest->tag = tag;
	oldest->seen = now;
	return 1;
}

/* Whether a packet begins a connection, by what is behind the IP header. `addresses` is a hash of both. */
static __always_inline int is_first_of(__u8 protocol, const void *header, const void *end, __u64 addresses)
{
	const struct tcphdr *tcp = header;
	const struct udphdr *udp = header;
	const struct echo *echo = header;
	const struct sctp_begin *sctp = header;

	switch (protocol) {
	case IPPROTO_TCP:
		return (const void *)(tcp + 1) <= end && tcp->syn && !tcp->ack;
	case IPPROTO_SCTP:
		return (const void *)(&sctp->chunk + 1) <= end && sctp->chunk == SCTP_INIT;
	case IPPROTO_UDP:
		if ((const void *)(udp + 1) > end)
			return 0;
		return is_new_flow(mixed(addresses, (__u64)protocol << 32 | (__u32)udp->source << 16 | udp->dest));
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if ((const void *)(echo + 1) > end ||
		    echo->type != (protocol == IPPROTO_ICMP ? ECHO_REQUEST : ECHO_REQUEST6))
			return 0;
		return is_new_flow(mixed(addresses, (__u64)protocol << 32 | echo->id));
	default:
		return 0;
	}
}

/* Whether a packet begins a connection, by its headers. `hash` is of what tells flows apart beside what is in them. */
static __always_inline int is_first_of_ipv4(const struct iphdr *ip, const void *end, __u64 hash)
{
	if ((const void *)(ip + 1) > end || ip->ihl * 4 != sizeof(*ip) || ip->frag_off & bpf_htons(IP_OFFSET))
		return 0;
	return is_first_of(ip->protocol, ip + 1, end, mixed(hash, (__u64)ip->saddr << 32 | ip->daddr));
}

static __always_inline int is_first_of_ipv6(const struct ipv6hdr *ip, const void *end, __u64 hash)
{
	if ((const void *)(ip + 1) > end)
		return 0;
#pragma unroll
	for (int i = 0; i < 4; i++) {
		hash = mixed(hash, (__u64)ip->saddr.s6_addr32[i] << 32 | ip->daddr.s6_addr32[i]);
	}
	return is_first_of(ip->nexthdr, ip + 1, end, hash);
}
