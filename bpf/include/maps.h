/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef PENSTOCK_MAPS_H
#define PENSTOCK_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "reasons.h"
#include "types.h"

/* All maps are shared by the programs of all ports. Go sets max_entries before load; the numbers here are the largest
 * or a default. */

/* Flows that belong to a chain, one entry a direction, both or none. XDP writes and counts; Go reads, and changes and deletes by way
 * of table.h. Missing: the packet begins a flow (rules decide) or is midstream. Preallocated: an insert does not allocate, and a full
 * map is E2BIG, not memory pressure. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct flow_key);
	__type(value, struct flow);
	__uint(max_entries, 2 * 131072);
} flows SEC(".maps");

/* What was decided on the first fragment of a datagram. XDP writes and reads. Missing: default action. LRU, since nothing
 * tells when a datagram is complete. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct fragment_key);
	__type(value, struct fragment);
	__uint(max_entries, 16384);
} fragments SEC(".maps");

/* Two lists of rules: Go writes the idle one and then switches rules_active, so that no packet sees half of an old and half of a
 * new list. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct rule_list);
	__uint(max_entries, 2);
	__uint(map_flags, BPF_F_RDONLY_PROG);
} rules SEC(".maps");

/* Which of the lists counts, 0 or 1. Go writes, XDP reads. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_RDONLY_PROG);
} rules_active SEC(".maps");

/* AF_XDP sockets at port * MAX_QUEUES + queue. Go writes; the kernel removes a socket that closes. Missing: on_exit decides. */
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, MAX_PORTS * MAX_QUEUES);
} sockets SEC(".maps");

/* When the worker behind a socket last showed that it works, ns of CLOCK_MONOTONIC, at the index of its socket. Go writes into the
 * mapped memory, XDP compares with silence_ns. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, MAX_PORTS * MAX_QUEUES);
	__uint(map_flags, BPF_F_MMAPABLE);
} beats SEC(".maps");

/* Interface of the peer port, by port index; DEFAULT_ROUTE: of the port itself; and make_headroom if it is of a driver that needs it.
 * Go writes; the kernel removes an interface that goes. Missing: dropped as no_peer. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__type(key, __u32);
	__type(value, struct bpf_devmap_val);
	__uint(max_entries, MAX_PORTS);
} peers SEC(".maps");

/* Scratch of make_headroom, more than the largest frame that XDP takes without frags. */
struct frame_copy {
	__u8 bytes[4096];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct frame_copy);
	__uint(max_entries, 1);
} frame_copies SEC(".maps");

/* DEFAULT_ROUTE: address on the link of each port. Go writes, XDP reads. Zero: no frame is addressed to it. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct port_mac);
	__uint(max_entries, MAX_PORTS);
	__uint(map_flags, BPF_F_RDONLY_PROG);
} port_macs SEC(".maps");

/* DEFAULT_ROUTE: next hops in use. XDP writes, Go reads and deletes. LRU: the least used one makes room. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct hop_key);
	__type(value, struct hop);
	__uint(max_entries, 4096);
} hops SEC(".maps");

/* What the route program found last. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct route_answer);
	__uint(max_entries, 1);
} route_answers SEC(".maps");
/* What user space is told of (event.h). XDP writes, Go reads. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} events SEC(".maps");

/* For each CPU: events lost, and which drops it has told of. XDP writes, Go reads what was lost. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct event_state);
	__uint(max_entries, 1);
} event_states SEC(".maps");

/* A bit for each enum event_kind that somebody wants. Go writes, XDP reads. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_RDONLY_PROG);
} event_wants SEC(".maps");

/* Packets and bytes at (port * REASON_COUNT + reason) * VERDICT_COUNT + verdict. XDP writes, Go sums over the CPUs. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct counter);
	__uint(max_entries, MAX_PORTS *REASON_COUNT *VERDICT_COUNT);
} counters SEC(".maps");

/* How the packets of offloaded flows are changed, two elements a flow. offload_flows writes, XDP reads. Element 0 is none. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct rewrite);
	__uint(max_entries, 2 * (1 + 65536));
} rewrites SEC(".maps");

/* What Go and the programs of table.h say to each other, through mapped memory. XDP does not know of them. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct offload_work);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
} offload_jobs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct end_work);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
} end_jobs SEC(".maps");

/* By chain: whether SYNs are answered with cookies, and how. Go writes into the mapped memory, XDP notes what it did. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct cookie_chain);
	__uint(max_entries, COOKIE_ANY + 1);
	__uint(map_flags, BPF_F_MMAPABLE);
} cookie_chains SEC(".maps");

/* The gate's maps. Go writes all but hits and gate_sources; how they hang together is in gate.h. */

/* How many times the gate has changed. Its lowest bit says which gate_settings count. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_RDONLY_PROG);
} gate_epoch SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct gate_settings);
	__uint(max_entries, 2);
	__uint(map_flags, BPF_F_RDONLY_PROG);
} gate_options SEC(".maps");

/* The lists. XDP adds nothing, so that nothing is allocated there. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct gate_key4);
	__type(value, struct gate_entry);
	__uint(max_entries, 262144);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} gate_list4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct gate_key6);
	__type(value, struct gate_entry);
	__uint(max_entries, 262144);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} gate_list6 SEC(".maps");

/* For each IPv4 /24 its code in gate_codes, of two bytes. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__uint(value_size, 2 * GATE_DIR4_ROW);
	__uint(max_entries, (1 << 24) / GATE_DIR4_ROW);
	__uint(map_flags, BPF_F_MMAPABLE);
} gate_dir4 SEC(".maps");

/* Which lengths are to be tried for a code. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct gate_lengths);
	__uint(max_entries, GATE_CODES);
	__uint(map_flags, BPF_F_RDONLY_PROG);
} gate_codes SEC(".maps");

/* Which lengths of a group are to be tried for an IPv6 address, by a hash of as many bits as the group's shortest prefix has. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct gate_lengths);
	__uint(max_entries, 1 << GATE_SLOT_BITS6);
	__uint(map_flags, BPF_F_RDONLY_PROG);
} gate_slots6 SEC(".maps");

/* What sources have used of their rates. XDP reads and writes. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct gate_set);
	__uint(max_entries, 16384);
} gate_sources SEC(".maps");

#endif
