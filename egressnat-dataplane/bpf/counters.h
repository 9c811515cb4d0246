/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
/* What is counted of packets that leave: the maps that the programs at interfaces share with the one at the end of the node's way, and
   what the former tell the latter. */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#define MAX_EGRESS 1024 /* as the default mark mask has room for: the loader gives each mask its own */
#define MAX_POLICIES 4096
#define FLOW_BITS 13 /* 8,192 buckets: half a MiB */

/* The index of what keeps the pod's address: below those of egress IPs. */
#define KEEP 1

/* What `steer` leaves in a packet's `tc_index`, which is free on the way: the index of the policy that decided, or 0, and whether the packet
   is to be counted where it leaves this node. Without that it goes into the tunnel, and is counted there. Programs of different releases
   meet in this: another meaning takes another directory of pins. */
#define DEPARTS 0x8000
#define COUNTER_MASK 0x7fff

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

struct policy_traffic {
	struct traffic sent;
	__u64 connections; /* packets that begin one, as `is_first` of connections.h sees it */
	__u64 blocked; /* packets that did not leave: there is no egress IP for them */
};

/* By the index of the policy that decides. Nobody has index 0, and no packet counts there. */
struct {
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_POLICIES);
	__type(key, __u32);
	__type(value, struct policy_traffic);
} policy_traffic SEC(".maps");

/* A flow that no packet says it begins, and when it had its last packet: seconds since the node was started, about. */
struct flow {
	__u32 tag; /* what its hash has beside the bucket; 0: free */
	__u32 seen;
};

#define FLOWS_OF_BUCKET 8

/* One line of the cache. */
struct flow_bucket {
	struct flow flows[FLOWS_OF_BUCKET];
};

/* The flows of both families by the hash of their addresses, ports and protocol. Only to know a first packet by: of more than fit into
   a bucket, the one that was silent for the longest time is forgotten. */
struct {
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1 << FLOW_BITS);
	__type(key, __u32);
	__type(value, struct flow_bucket);
} flows SEC(".maps");
