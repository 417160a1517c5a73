/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef PENSTOCK_TYPES_H
#define PENSTOCK_TYPES_H

#include <linux/bpf.h>
#include <linux/types.h>

/* What the program and Go share: fixed widths, padding written out, sizes asserted. The Go side is
 * generated from the object's BTF (gen.go), so there is no second declaration to keep in step. */

enum limit {
	MAX_PORTS = 32,
	HEADROOM = 32, /* what make_headroom leaves in front of a frame; the largest header of virtio_net has 24 bytes */
	MAX_QUEUES = 256, /* per port; the socket of (port, queue) is at port * MAX_QUEUES + queue */
	MAX_RULES = 256,  /* flattened */
	MAX_VLANS = 2,
	MAX_IP6_EXTENSIONS = 8,
};

/* Where a packet went. A counter has a reason and a verdict, since options decide the verdict of some reasons. */
enum verdict {
	VERDICT_PASS,   /* to this host's kernel */
	VERDICT_PEER,   /* out of the peer port */
	VERDICT_SOCKET, /* to the AF_XDP socket of this port and queue */
	VERDICT_DROP,
	VERDICT_TX,     /* back out of the port: an answer */
	VERDICT_COUNT,
};

/* What a rule asks for, and what the fragments map remembers. */
enum action {
	ACTION_CHAIN,
	ACTION_BYPASS,
	ACTION_DROP,
	ACTION_PASSED, /* of flows only: as ACTION_BYPASS, but no chain has let go of it: its connection began, or went on, where nobody saw it */
	ACTION_COUNT,
};

/* What a chain does with TCP, and so what becomes of its connections while its worker is silent (flow_passes in flow.h). */
enum depth {
	DEPTH_FORWARD,
	DEPTH_INSPECT,
	DEPTH_TERMINATE,
};

/* Options (const volatile, set before load). */
enum default_action {
	DEFAULT_BRIDGE,
	DEFAULT_PASS,
	DEFAULT_ROUTE, /* as DEFAULT_PASS, but steered packets are routed by the program (route.h) */
};

enum midstream {
	MIDSTREAM_BYPASS,
	MIDSTREAM_INSPECT,
	MIDSTREAM_DROP,
};

enum on_exit {
	ON_EXIT_OPEN,
	ON_EXIT_CLOSED,
};

enum malformed {
	MALFORMED_BYPASS,
	MALFORMED_DROP,
};

/* One direction of a flow, as it stands in the packet: addresses and ports in network byte order, an IPv4 address in
 * the first word and zeros behind it. ICMP echo has its identifier as both ports; protocols without ports have zeros.
 * vlan holds VLAN identifiers in host byte order, outermost first; a priority tag (identifier 0) is the same as no tag,
 * since it names the same network. */
struct flow_key {
	__be32 src[4];
	__be32 dst[4];
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 family; /* 4 or 6 */
	__u16 pad;
	__u16 vlan[MAX_VLANS];
};
_Static_assert(sizeof(struct flow_key) == 44, "flow_key has no hidden padding");

enum {
	NO_PORT = 0xffff,
	NO_CHAIN = 0xffff, /* of a flow that no rule has sent to a chain, and that is remembered all the same */
};

/* What becomes of a flow's packets, in one word: it is read once and written in one store, so that a packet meets the old
 * decision or the new one, never half of one. Zero is ACTION_CHAIN.
 *	bits  0..7   enum action: ACTION_CHAIN; or, offloaded, ACTION_BYPASS or ACTION_DROP; or ACTION_PASSED, which rewrites nothing
 *	bits  8..15  1 + port to leave by; 0: the default action
 *	bits 16..39  element of rewrites, 0: none. Kept by a flow that goes to its chain again: it names the other direction
 *	bits 40..63  generation that the element must have */
enum {
	DECISION_EGRESS_SHIFT = 8,
	DECISION_REWRITE_SHIFT = 16,
	DECISION_GENERATION_SHIFT = 40,
	DECISION_REWRITE_MASK = 0xffffff,
};

/* Written by XDP when a rule sends a flow to a chain; counters by XDP; the decision by Go, through offload_flows (table.h), and by a
 * SYN that takes the flow back; deleted by end_flows. */
struct flow {
	__u64 decision;
	__u64 start;     /* ns, CLOCK_MONOTONIC (coarse): when the flow began; equal in both directions */
	__u64 last_seen; /* ns, CLOCK_MONOTONIC (coarse): last packet of this direction; start if there was none */
	__u64 packets;
	__u64 bytes;     /* frame lengths */
	__u32 hash;      /* flow_hash of the direction that began it: equal in both directions */
	__u32 tcp_flags; /* OR of all flag bytes of this direction since the flow began, but for FIN and RST that are not believed (flow.h) */
	__u16 chain;
	__u16 in_port;   /* port this direction last arrived at, NO_PORT before its first packet */
	__u8 reply;      /* 1: the direction that did not begin the flow */
	__u8 tracked;    /* 1: the next two are known, host byte order, as this direction's packets arrive */
	__u8 depth;      /* enum depth */
	__u8 pad;
	__u32 next;      /* one beyond the highest sequence number */
	__u32 acked;     /* the highest acknowledgment */
};
_Static_assert(sizeof(struct flow) == 64, "flow has no hidden padding");

/* Which fields of a rewrite count (internal/rewrite/rule.go has the same numbers). */
enum rewrite_flag {
	SET_SRC_MAC = 1 << 0,
	SET_DST_MAC = 1 << 1,
	SET_VLAN = 1 << 2,
	SET_SRC = 1 << 3,
	SET_DST = 1 << 4,
	SET_SRC_PORT = 1 << 5,
	SET_DST_PORT = 1 << 6,
	ADD_SEQ = 1 << 7,
	ADD_ACK = 1 << 8,
	ADD_TS = 1 << 9,
	SHIFT_WINDOW = 1 << 10,
	DEC_TTL = 1 << 11,
};

/* How the packets of one direction are changed (internal/rewrite/README.md), and where the other direction is. Elements 2n and 2n + 1
 * are slot n: the two directions of one flow; slot 0 is never used. A slot that is in use is never written: a change takes another one. */
struct rewrite {
	__u32 generation; /* never 0 in a slot that is in use */
	__u16 flags;
	__u8 vlans;
	__s8 window_shift;
	__u8 src_mac[6];
	__u8 dst_mac[6];
	__u16 vlan[MAX_VLANS]; /* host byte order */
	__u8 src_family; /* of src: 4 or 6 */
	__u8 dst_family;
	__be16 sport;
	__be32 src[4]; /* IPv4: in the first word */
	__be32 dst[4];
	__be16 dport;
	__u16 pad[3];
	__u32 seq;
	__u32 ack;
	__u32 tsval;
	__u32 tsecr;
	struct flow_key other; /* of the other direction, as its packets arrive */
};
_Static_assert(sizeof(struct rewrite) == 128, "rewrite has no hidden padding");

/* A fragmented datagram: RFC 791 adds the protocol for IPv4; RFC 8200 does not for IPv6 (there proto is 0). */
struct fragment_key {
	__be32 src[4];
	__be32 dst[4];
	__be32 id;
	__u8 proto;
	__u8 family;
	__u16 pad;
	__u16 vlan[MAX_VLANS];
};
_Static_assert(sizeof(struct fragment_key) == 44, "fragment_key has no hidden padding");

struct fragment {
	__u64 seen; /* ns; an entry older than FRAGMENT_LIFETIME_NS does not count */
	__u64 decision;
	__u32 hash;
	__u16 chain;
	__u16 pad;
};
_Static_assert(sizeof(struct fragment) == 24, "fragment has no hidden padding");

/* One flattened rule. Written by Go, read by XDP in order, first match wins. Each field stands beside the mask that says
 * which of its bits count, so that XDP compares without branches: a rule costs the verifier little. */
struct rule {
	__be32 src[4];
	__be32 src_mask[4];
	__be32 dst[4];
	__be32 dst_mask[4];
	__u16 from; /* port index */
	__u16 from_mask;
	__u8 proto;
	__u8 proto_mask;
	__u8 family; /* 4 or 6 */
	__u8 family_mask;
	__u16 sport_lo; /* ports in host byte order, both ends included */
	__u16 sport_hi;
	__u16 dport_lo;
	__u16 dport_hi;
	__u16 chain; /* for ACTION_CHAIN */
	__u8 action; /* enum action */
	__u8 ports;  /* 1: the port ranges count, and only TCP and UDP can match; 0: they do not */
	__u8 depth;  /* enum depth, of the chain */
	__u8 pad[3];
};
_Static_assert(sizeof(struct rule) == 88, "rule has no hidden padding");

struct rule_list {
	__u32 count; /* how many of rule[] there are */
	__u32 pad;
	struct rule rule[MAX_RULES];
};
_Static_assert(sizeof(struct rule_list) == 8 + MAX_RULES * 88, "rule_list has no hidden padding");

struct counter {
	__u64 packets;
	__u64 bytes;
};
_Static_assert(sizeof(struct counter) == 16, "counter has no hidden padding");

/* What Go asks of offload_flows (table.h): another decision for a flow. */
struct offload_job {
	struct flow_key key;      /* of either direction */
	__u32 result;             /* out: enum offload_result */
	struct flow_key reply;    /* of the other direction from now on */
	__u32 pad;
	__u64 decision;           /* for key; it names element 2n of rewrites, if any */
	__u64 reply_decision;     /* for reply; element 2n + 1 */
	__u64 before;             /* out, if taken: the decision that stood at key */
	struct rewrite rewrite[2]; /* for key and reply; not read without an element */
};
_Static_assert(sizeof(struct offload_job) == 376, "offload_job has no hidden padding");

enum offload_result {
	OFFLOAD_TAKEN,
	OFFLOAD_FLOW_GONE,        /* the flow, or a direction of it, is not in the table */
	OFFLOAD_FLOW_CHANGED,     /* a SYN has just taken it back */
	OFFLOAD_REPLY_IN_USE,     /* the reply key belongs to another flow */
	OFFLOAD_FLOW_TABLE_FULL,  /* no room for the reply key */
	OFFLOAD_REWRITES_FULL,    /* no slot (only Go says this) */
	OFFLOAD_RESULT_COUNT,
};

enum {
	MAX_OFFLOAD_JOBS = 256,
	MAX_END_JOBS = 16384,
	MAX_COUNTED_CHAINS = 1024,
};

struct offload_work {
	__u32 count;
	__u32 pad;
	struct offload_job job[MAX_OFFLOAD_JOBS];
};

/* A flow to end, or that has ended. */
struct end_job {
	struct flow_key key;   /* of either direction */
	__u32 result;          /* out: 1 if it was removed */
	struct flow_key other; /* out: of the other direction */
	__u32 pad;
	struct flow flow[2];   /* out: what stood at key and other; zeros if other was not there */
};
_Static_assert(sizeof(struct end_job) == 224, "end_job has no hidden padding");

enum timeout {
	TIMEOUT_TCP_OPENING,
	TIMEOUT_TCP_ESTABLISHED,
	TIMEOUT_TCP_HALF_CLOSED,
	TIMEOUT_TCP_CLOSED,
	TIMEOUT_UDP,
	TIMEOUT_UDP_REPLIED,
	TIMEOUT_ICMP,
	TIMEOUT_OTHER,
	TIMEOUT_COUNT,
};

/* Between Go and the programs that end flows (table.h). */
struct end_work {
	__u64 now;                    /* ns, CLOCK_MONOTONIC */
	__u64 timeout[TIMEOUT_COUNT]; /* ns */
	__u32 from;                   /* end_flows: first job, */
	__u32 to;                     /* and one behind the last */
	__u32 evict;                  /* end_flows: 1: whether idle or not */
	__u32 count;                  /* find_idle_flows: jobs written */
	struct end_job job[MAX_END_JOBS];
	__u32 counting; /* find_idle_flows: 1: add the flows it sees to these, by chain and action */
	__u32 flows[MAX_COUNTED_CHAINS][ACTION_COUNT];
};
enum event_kind {
	EVENT_FLOW_BEGAN,
	EVENT_DROPPED,
};

/* What the events ring carries. */
struct event {
	__u64 time; /* ns, CLOCK_MONOTONIC (coarse) */
	__u8 kind; /* enum event_kind */
	__u8 port;
	__u16 chain;  /* EVENT_FLOW_BEGAN */
	__u32 reason; /* EVENT_DROPPED: enum reason */
	__u32 count;  /* EVENT_DROPPED: packets that were dropped on this CPU since the event before, this one included */
	struct flow_key key; /* of the packet */
};
_Static_assert(sizeof(struct event) == 64, "event has no hidden padding");

/* Of one CPU. */
struct event_state {
	__u64 lost;  /* events that found the ring full */
	__u64 told;  /* when a drop was last told of */
	__u64 drops; /* since then */
	struct event event; /* the one that is being written */
};
_Static_assert(sizeof(struct event_state) == 88, "event_state has no hidden padding");

/* The 8 bytes in front of a frame that goes to a socket, in host byte order. User space must clear the magic before it
 * gives the frame back to the fill ring: a frame that arrives without metadata shows what stood there before. */
struct steer_meta {
	__u16 magic;
	__u16 chain; /* and META_ANEW */
	__u32 hash;
};
_Static_assert(sizeof(struct steer_meta) == 8, "steer_meta is eight bytes");

enum magic {
	META_MAGIC = 0x5053,
	ROUTE_MAGIC = 0x5054,
};

/* In steer_meta.chain, besides the chain. */
enum meta_flag {
	META_ANEW = 0x8000,    /* a SYN, and the connection that had its addresses and ports has ended (RST, or both FINs) */
	META_COOKIE = 0x4000,  /* an ACK, and it gives back a good SYN cookie */
	META_MSS_SHIFT = 12,   /* two bits: which of the kernel's segment sizes that stands for */
	META_CHAIN = 0x0fff,
};

/* What the kernel's tables say of a packet. */
enum route_state {
	ROUTE_UNKNOWN,
	ROUTE_DONE,   /* the frame is addressed to the next hop, TTL less one: it can leave by route_meta.port */
	ROUTE_KERNEL, /* untouched; the kernel can forward it, the program cannot: after the chain it is given to the kernel */
	ROUTE_WAIT,   /* untouched; the next hop's address on the link is not known: before the chain somebody finds it out */
	ROUTE_PASS,   /* untouched; the kernel answers or drops it, and never forwards it */
};

/* DEFAULT_ROUTE: eight bytes more, before steer_meta. User space clears this magic too. */
struct route_meta {
	__u16 magic;
	__u8 state; /* enum route_state: done, kernel or wait */
	__u8 port;  /* by which it leaves, if done */
	__u16 mtu;  /* of the route, if done: the largest IP packet */
	__u16 pad;
};
_Static_assert(sizeof(struct route_meta) == 8, "route_meta is eight bytes");

/* A next hop that routed packets go to, so that user space can keep the kernel's neighbour entry alive: redirected packets
 * do not. */
struct hop_key {
	__be32 addr[4]; /* an IPv4 address in the first word */
	__u32 ifindex;
	__u32 family; /* 4 or 6 */
};
_Static_assert(sizeof(struct hop_key) == 24, "hop_key has no hidden padding");

struct hop {
	__u64 used; /* ns, CLOCK_MONOTONIC (coarse): last noted, about once a second for each flow */
};

/* The address on the link of a port, in an array by port. */
struct port_mac {
	__u8 mac[6];
	__u8 pad[2];
};

/* What the route program found: user space runs it by BPF_PROG_TEST_RUN, one at a time. */
struct route_answer {
	struct hop_key hop; /* if done, or wait */
	enum route_state state;
	__u32 reason; /* enum reason, unless done */
	__u16 port;
	__u16 mtu;
	__u32 pad;
};
_Static_assert(sizeof(struct route_answer) == 40, "route_answer has no hidden padding");

/* SYN cookies: cookie.h. */

enum {
	COOKIE_CHAINS = 256, /* chains that may ask for them; */
	COOKIE_ANY = COOKIE_CHAINS, /* and the element that says whether any does */
};

struct cookie_chain {
	__u64 on;     /* SYNs are answered */
	__u64 last;   /* by XDP: ns, CLOCK_MONOTONIC (coarse): when one was answered last */
	__u64 sent;   /* by XDP: SYNs answered */
	__u64 good;   /* by XDP: segments that gave back a good cookie */
	__u16 mss4;   /* what the answers say: segment sizes for IPv4 */
	__u16 mss6;   /* and IPv6, */
	__u16 window; /* window, */
	__u16 shift;  /* and by how much later ones are shifted */
	__u64 pad[3]; /* a line of the cache each */
};
_Static_assert(sizeof(struct cookie_chain) == 64, "cookie_chain has no hidden padding");

/* The gate: gate.h. */

enum gate_limit {
	GATE_DIR4_ROW = 32,      /* codes in a value of gate_dir4, one for each /24 */
	GATE_CODES = 1 << 16,
	GATE_SLOT_BITS6 = 18,    /* of gate_slots6 */
	GATE_WAYS = 4,           /* sources in a set of gate_sources */
	GATE_RATE_UNIT = 16,     /* times of the rates are in 1/16 ns */
};

/* gate_settings.flags */
enum gate_flag {
	GATE_LIST4 = 1 << 0, /* there is an entry for IPv4 */
	GATE_LIST6 = 1 << 1,
	GATE_RATE_PACKETS = 1 << 2,
	GATE_RATE_BYTES = 1 << 3,
	GATE_RATE_SYNS = 1 << 4,
	GATE_RATES = GATE_RATE_PACKETS | GATE_RATE_BYTES | GATE_RATE_SYNS,
	GATE_SCREEN_LAND = 1 << 5,
	GATE_SCREEN_FLAGS = 1 << 6,
	GATE_SCREEN_SOURCE = 1 << 7,
	GATE_SCREEN_FRAGMENTS = 1 << 8,
	GATE_SCREEN_LENGTHS = 1 << 9,
	GATE_SCREEN_OPTIONS = 1 << 10,
	GATE_SCREENS = 0x3f << 5,
};

enum gate_list { GATE_DENY, GATE_ALLOW };

/* A prefix of one of the lists; bits beyond len are zero. */
struct gate_key4 {
	__be32 addr;
	__u8 len;
	__u8 list; /* enum gate_list */
	__u16 pad;
};
_Static_assert(sizeof(struct gate_key4) == 8, "gate_key4 has no hidden padding");

struct gate_key6 {
	__be32 addr[4];
	__u8 len;
	__u8 list;
	__u16 pad;
};
_Static_assert(sizeof(struct gate_key6) == 20, "gate_key6 has no hidden padding");

/* Counts in epochs born <= epoch, and < dead if that is not 0. */
struct gate_entry {
	__u64 expires; /* ns, CLOCK_MONOTONIC; 0: never */
	__u64 hits;    /* packets; by XDP */
	__u64 born;
	__u64 dead;
};
_Static_assert(sizeof(struct gate_entry) == 32, "gate_entry has no hidden padding");

/* Sets of prefix lengths, by list: bit n is length n. What they are for is in gate.h. */
struct gate_lengths {
	__u64 list[2];
};

/* A token bucket as a virtual clock: units * cost >> 16 is how far the clock moves, in 1/16 ns; burst is how far it may run ahead. */
struct gate_rate {
	__u64 cost;
	__u64 burst;
};

enum gate_bucket { GATE_PACKETS, GATE_BYTES, GATE_SYNS, GATE_BUCKETS };

struct gate_settings {
	__u32 flags;   /* enum gate_flag */
	__u32 groups6; /* bit 0: lengths 16 to 31, 1: 32 to 47, 2: 48 to 63, 3: 64 to 127, 4: 128 */
	__u64 seed;    /* of the hash of sources */
	struct gate_lengths short6; /* lengths 0 to 15 */
	struct gate_rate rate[GATE_BUCKETS];
	__be32 mask6[4]; /* what of an address is a source, for the rates */
	__be32 mask4;
	__u32 sets; /* of gate_sources, less 1 */
};
_Static_assert(sizeof(struct gate_settings) == 104, "gate_settings has no hidden padding");

struct gate_source {
	__u64 tag;                 /* hash of the source */
	__u64 clock[GATE_BUCKETS]; /* 1/16 ns, CLOCK_MONOTONIC (coarse); not ahead of the time: a full bucket */
};

struct gate_set {
	struct bpf_spin_lock lock;
	__u32 pad;
	struct gate_source way[GATE_WAYS];
};
_Static_assert(sizeof(struct gate_set) == 136, "gate_set has no hidden padding");

#endif
