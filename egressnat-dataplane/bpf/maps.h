/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
/* The maps, their keys and their values, as maps.rs has them too. */
#pragma once

#include <linux/bpf.h>
#include <linux/in6.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#include "counters.h"

#define MAX_PODS 65536
#define MAX_DESTINATIONS 262144
#define MAX_PEERS 16384
#define MAX_NAME 256

/* The lower half of a destination's value is an index into `egress_ips`, but for these two and KEEP. The upper half is an index into
   `policy_traffic`, or 0. */
#define FORWARD 0
#define DROP 0xffff
#define INDEX_MASK 0xffff
#define COUNTER_SHIFT 16

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

struct policy_name {
	char text[MAX_NAME]; /* ends with the first 0 */
};

/* The names of policies by the same index. No program reads it: it tells others, and the next agent, whose counters these are. */
struct {
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_POLICIES);
	__type(key, __u32);
	__type(value, struct policy_name);
} policy_names SEC(".maps");
