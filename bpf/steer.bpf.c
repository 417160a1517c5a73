//go:build ignore

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
 *
 * Penstock's XDP program: parse, gate, find the flow, or let the rules decide on a new one, then to the AF_XDP socket of this queue,
 * to the peer port, to the kernel, or nowhere. README.md has the maps, reasons and options. */

#include "include/parse.h"
#include "include/maps.h"
#include "include/options.h"
#include "include/exit.h"
#include "include/listener.h"
#include "include/event.h"
#include "include/gate.h"
#include "include/cookie.h"
#include "include/flow.h"
#include "include/route.h"
#include "include/rules.h"
#include "include/table.h"
#include "include/translate.h"

/* Metadata of exactly eight bytes, sixteen in router mode, whatever a driver left there before, so that they end where the frame
 * begins. */
static __always_inline bool put_metadata(struct xdp_md *ctx, __u16 chain, __u32 hash, const struct route *r)
{
	long size = sizeof(struct steer_meta) + (default_action == DEFAULT_ROUTE ? sizeof(struct route_meta) : 0);
	long there = (void *)(long)ctx->data - (void *)(long)ctx->data_meta;
	struct steer_meta *m;

	if (bpf_xdp_adjust_meta(ctx, there - size))
		return false;
	if (default_action == DEFAULT_ROUTE) {
		struct route_meta *way = (void *)(long)ctx->data_meta;

		m = (void *)(way + 1);
		if ((void *)(m + 1) > (void *)(long)ctx->data)
			return false;
		way->magic = ROUTE_MAGIC;
		way->state = r->state;
		way->port = r->port;
		way->mtu = r->fib.mtu_result;
		way->pad = 0;
	} else {
		m = (void *)(long)ctx->data_meta;
		if ((void *)(m + 1) > (void *)(long)ctx->data)
			return false;
	}
	m->magic = META_MAGIC;
	m->chain = chain;
	m->hash = hash;
	return true;
}

/* To the socket, which is there: bpf_redirect_map can fall back to an action, but not to the peer port. */
static __always_inline int deliver_routed(struct xdp_md *ctx, __u16 chain, __u32 hash, enum reason reason, const struct route *r)
{
	bool has_metadata = put_metadata(ctx, chain, hash, r);

	if (default_action == DEFAULT_ROUTE) {
		/* User space could not tell a routed packet from another one. */
		if (!has_metadata)
			return steer_exit(ctx, VERDICT_DROP, REASON_NO_METADATA);
		if (r->state == ROUTE_DONE)
			route_apply(ctx, r);
		else
			reason = r->reason;
	} else if (!has_metadata) {
		reason = REASON_NO_METADATA;
	}
	if (bpf_redirect_map(&sockets, socket_index(ctx), XDP_DROP) != XDP_REDIRECT)
		return steer_unheard(ctx, LISTENER_ABSENT);
	return steer_exit(ctx, VERDICT_SOCKET, reason);
}

static __always_inline int deliver_to(struct xdp_md *ctx, enum listener l, __u16 chain, __u32 hash, enum reason reason, struct route *r,
				      bool note)
{
	if (l != LISTENER_THERE)
		return steer_unheard(ctx, l);
	if (default_action == DEFAULT_ROUTE && route_ask(ctx, r, note) == ROUTE_PASS)
		return steer_exit(ctx, VERDICT_PASS, r->reason);
	return deliver_routed(ctx, chain, hash, reason, r);
}

static __always_inline int deliver(struct xdp_md *ctx, __u16 chain, __u32 hash, __u64 now, enum reason reason, struct route *r,
				   bool note)
{
	return deliver_to(ctx, find_listener(ctx, now), chain, hash, reason, r, note);
}

/* Remembers a TCP connection whose SYN takes the default action: what follows it does too, until it ends. Without room it is not. */
static __always_inline void steer_remember(struct xdp_md *ctx, struct packet *p, __u16 chain, __u32 hash, __u64 now)
{
	p->chain = chain;
	p->passed = 1;
	p->len = frame_len(ctx);
	if (flow_install(p, hash, now) == INSTALLED && chain != NO_CHAIN)
		event_flow_began(p, now, chain);
}

/* A TCP segment of a flow that nobody saw begin, unless the rules are to decide on it. */
static __always_inline int steer_midstream(struct xdp_md *ctx, struct packet *p, __u64 now, enum reason reason)
{
	if (midstream == MIDSTREAM_DROP) {
		event_dropped(p, now, reason);
		fragment_note(p, ACTION_DROP, 0, 0);
		return steer_exit(ctx, VERDICT_DROP, reason);
	}
	fragment_note(p, ACTION_BYPASS, 0, 0);
	return steer_default(ctx, reason);
}

static __always_inline int steer_new_flow(struct xdp_md *ctx, struct packet *p, struct route *r, __u64 now)
{
	__u32 hash = flow_hash(&p->key);
	enum installed installed;
	enum listener listener;
	enum action action;
	bool middle = p->key.proto == PROTO_TCP && !is_pure_syn(p);
	bool cookies = cookie_helpers && middle && cookie_open(COOKIE_ANY, now);
	int rule;

	if (middle && !cookies && midstream != MIDSTREAM_INSPECT)
		return steer_midstream(ctx, p, now, REASON_MIDSTREAM);
	rule = rule_find(p);
	action = rule == NO_MATCH ? ACTION_BYPASS : rule >> 16 & 0xff;
	p->depth = rule == NO_MATCH ? DEPTH_FORWARD : rule >> 24;
	if (rule != NO_MATCH)
		rule &= 0xffff;
	if (cookies) {
		int cookie = action == ACTION_CHAIN ? cookie_check(ctx, p, rule, now) : COOKIE_NONE;

		if (cookie != COOKIE_GOOD && midstream != MIDSTREAM_INSPECT)
			return steer_midstream(ctx, p, now, cookie == COOKIE_BAD ? REASON_SYN_COOKIE_BAD : REASON_MIDSTREAM);
	}
	if (action == ACTION_BYPASS) {
		fragment_note(p, ACTION_BYPASS, 0, 0);
		/* Else its next segment would be one of a flow that nobody saw begin. */
		if (midstream == MIDSTREAM_DROP && p->key.proto == PROTO_TCP)
			steer_remember(ctx, p, NO_CHAIN, hash, now);
		return steer_default(ctx, rule == NO_MATCH ? REASON_NO_RULE : REASON_RULE_BYPASS);
	}
	if (action == ACTION_DROP) {
		event_dropped(p, now, REASON_RULE_DROP);
		fragment_note(p, ACTION_DROP, 0, 0);
		return steer_exit(ctx, VERDICT_DROP, REASON_RULE_DROP);
	}
	/* Nobody listens: what passes is remembered as such where somebody might take its SYN, sent again, for the first one, or drop what follows. */
	listener = find_listener(ctx, now);
	if (listener != LISTENER_THERE) {
		if (listener == LISTENER_SILENT && on_exit == ON_EXIT_OPEN && cookie_helpers && p->cookie)
			return steer_exit(ctx, VERDICT_DROP, REASON_WORKER_SILENT_HELD); /* the server knows nothing of it, and would reset it */
		if (on_exit == ON_EXIT_OPEN && p->key.proto == PROTO_TCP && !middle && (listener == LISTENER_SILENT || midstream == MIDSTREAM_DROP))
			steer_remember(ctx, p, rule, hash, now);
		return steer_unheard(ctx, listener);
	}
	p->chain = rule;
	if (default_action == DEFAULT_ROUTE && route_ask(ctx, r, true) == ROUTE_PASS)
		return steer_exit(ctx, VERDICT_PASS, r->reason);
	if (cookie_helpers && is_pure_syn(p) && cookie_open(rule, now) && cookie_answer(ctx, p, rule, now) == COOKIE_GOOD)
		return steer_back(ctx, REASON_SYN_COOKIE_SENT);
	p->len = frame_len(ctx);
	installed = flow_install(p, hash, now);
	if (installed != INSTALLED) {
		fragment_note(p, ACTION_BYPASS, 0, 0);
		return steer_default(ctx, installed == INSTALL_CONFLICT ? REASON_FLOW_CONFLICT : REASON_FLOW_TABLE_FULL);
	}
	event_flow_began(p, now, p->chain);
	fragment_note(p, ACTION_CHAIN, p->chain, hash);
	if (cookie_helpers && p->cookie)
		return deliver_routed(ctx, p->chain | META_COOKIE | p->size << META_MSS_SHIFT, hash, REASON_SYN_COOKIE_GOOD, r);
	return deliver_routed(ctx, p->chain, hash, REASON_FLOW_NEW, r);
}

/* A packet that should be changed and is not goes up as it came, not routed either. Its receiver could do nothing with it as it is: if
 * nobody listens, it is dropped. */
static __always_inline int steer_unchanged(struct xdp_md *ctx, __u16 chain, __u32 hash, __u64 now, enum reason reason, struct route *r)
{
	if (find_listener(ctx, now) != LISTENER_THERE)
		return steer_exit(ctx, VERDICT_DROP, reason);
	__builtin_memset(r, 0, sizeof(*r));
	route_is(r, ROUTE_KERNEL, reason);
	return deliver_routed(ctx, chain, hash, reason, r);
}

/* What was decided on an offloaded flow is done with one of its packets. routed: in router mode, the way that XDP finds. */
static __always_inline int steer_offloaded(struct xdp_md *ctx, __u64 decision, __u16 chain, __u32 hash, __u64 now, enum reason reason,
					   struct route *r, bool note, bool routed)
{
	if (decision_action(decision) == ACTION_DROP)
		return steer_exit(ctx, VERDICT_DROP, reason);
	routed = default_action == DEFAULT_ROUTE && routed && !decision_egress(decision);
	/* Before anything is changed: what the kernel says of a packet quotes it, and its sender has to know it again. */
	if (routed && route_ask(ctx, r, note) == ROUTE_PASS)
		return steer_exit(ctx, VERDICT_PASS, r->reason);
	if (decision >> DECISION_REWRITE_SHIFT && decision_action(decision) != ACTION_PASSED) {
		enum translated t = translate(ctx, decision);

		if (t != TRANSLATED)
			return steer_unchanged(ctx, chain, hash, now, t == TRANSLATE_STALE ? REASON_REWRITE_STALE : REASON_REWRITE_SLOW, r);
	}
	if (decision_egress(decision))
		return steer_out(ctx, decision_egress(decision) - 1, reason);
	if (routed)
		return route_out(ctx, r, reason);
	return steer_default(ctx, reason);
}

static __always_inline int steer_flow(struct xdp_md *ctx, struct packet *p, struct route *r)
{
	struct flow *f = bpf_map_lookup_elem(&flows, &p->key);
	__u64 now = bpf_ktime_get_coarse_ns();
	bool note, anew;
	enum listener l;
	__u64 decision;

	if (f && f->chain == NO_CHAIN && is_pure_syn(p) && flow_begins_again(p, f))
		f = NULL;
	if (!f)
		return steer_new_flow(ctx, p, r, now);
	note = flow_note(f, now);
	anew = flow_count(ctx, p, f, frame_len(ctx), now);
	decision = decision_of(f);
	if (decision_action(decision) != ACTION_CHAIN) {
		bool passed = decision_action(decision) == ACTION_PASSED;

		/* The SYN of a connection that has passed is that SYN again, as long as the client has acknowledged nothing. */
		if (!is_pure_syn(p) || (passed && (f->chain == NO_CHAIN || (!anew && !f->tracked)))) {
			fragment_note(p, decision, f->chain, f->hash);
			return steer_offloaded(ctx, decision, f->chain, f->hash, now, passed ? REASON_FLOW_PASSED : REASON_FLOW_OFFLOADED, r, note,
					       true);
		}
		flow_recall(p, f, decision);
	}
	fragment_note(p, ACTION_CHAIN, f->chain, f->hash);
	l = find_listener(ctx, now);
	if (l == LISTENER_SILENT && on_exit == ON_EXIT_OPEN && p->key.proto == PROTO_TCP && !flow_passes(p, f))
		return steer_exit(ctx, VERDICT_DROP, REASON_WORKER_SILENT_HELD);
	return deliver_to(ctx, l, f->chain | (anew ? META_ANEW : 0), f->hash, REASON_FLOW_KNOWN, r, note);
}

static __always_inline int steer_fragment(struct xdp_md *ctx, struct packet *p, struct route *r)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	struct fragment_key k;
	struct fragment *f;

	fragment_key(p, &k);
	f = bpf_map_lookup_elem(&fragments, &k);
	if (!f || now - f->seen > FRAGMENT_LIFETIME_NS)
		return steer_default(ctx, REASON_FRAGMENT_UNKNOWN);
	if (decision_action(f->decision) == ACTION_CHAIN)
		return deliver(ctx, f->chain, f->hash, now, REASON_FRAGMENT_KNOWN, r, false);
	return steer_offloaded(ctx, f->decision, f->chain, f->hash, now, REASON_FRAGMENT_KNOWN, r, false, f->decision >> DECISION_REWRITE_SHIFT);
}

/* Not counted in the flow: an error, which anybody can send, must not keep a flow alive. */
static __always_inline int steer_icmp_error(struct xdp_md *ctx, struct packet *p, struct route *r)
{
	struct flow *f = bpf_map_lookup_elem(&flows, &p->key);
	struct flow_key reverse;

	if (!f) {
		/* What it quotes may have been rewritten on its way out: then only the answers' key is known. */
		flow_reverse(&p->key, &reverse);
		f = bpf_map_lookup_elem(&flows, &reverse);
	}
	if (!f)
		return steer_default(ctx, REASON_ICMP_ERROR_UNKNOWN);
	if (decision_action(decision_of(f)) == ACTION_PASSED)
		return steer_default(ctx, REASON_FLOW_PASSED);
	return deliver(ctx, f->chain, f->hash, bpf_ktime_get_coarse_ns(), REASON_ICMP_ERROR, r, false);
}

SEC("xdp")
int steer(struct xdp_md *ctx)
{
	struct packet p = {};
	struct route r; /* one for all ways through: the stack is small */
	int parsed;

	if (default_action == DEFAULT_ROUTE && is_injected(ctx))
		return steer_exit(ctx, VERDICT_PASS, REASON_ROUTE_INJECTED);
	parsed = parse(ctx, &p);
	if (gate_open()) {
		int reason = gate(ctx, &p, parsed);

		if (reason != GATE_PASSED)
			return gate_drop(ctx, &p, reason);
	}
	switch (parsed) {
	case PARSED_FLOW:
		return steer_flow(ctx, &p, &r);
	case PARSED_FRAGMENT:
		return steer_fragment(ctx, &p, &r);
	case PARSED_ERROR:
		return steer_icmp_error(ctx, &p, &r);
	case PARSED_BAD:
		return steer_malformed(ctx, p.reason);
	default:
		return steer_default(ctx, p.reason);
	}
}

/* The kernel runs it on the way out by a port. A frame from a zero-copy queue was copied to where it has no room in front of it
 * (xdp_convert_zc_to_xdp_frame in net/core/xdp.c), and virtio_net, which puts its header there, drops it with EOVERFLOW
 * (__virtnet_xdp_xmit_one). Such a frame is moved towards the end of its page. Room can't be asked for before the redirect: what is put
 * in front of the frame there counts as its length, and is too much for the MTU. Drops are bugs: frames of maxXDPMTU bytes fit. */
SEC("xdp/devmap")
int make_headroom(struct xdp_md *ctx)
{
	__u64 len = frame_len(ctx);
	struct frame_copy *copy;
	__u32 zero = 0;

	if (!bpf_xdp_adjust_head(ctx, -HEADROOM))
		return bpf_xdp_adjust_head(ctx, HEADROOM) ? XDP_DROP : XDP_PASS;
	copy = bpf_map_lookup_elem(&frame_copies, &zero);
	/* Two comparisons, of 64 bits, with less and more: of others Linux 6.1 learns nothing, and of both made one none does. */
	if (!copy || len < sizeof(struct ethhdr))
		return XDP_DROP;
	barrier_var(len);
	if (len > sizeof(copy->bytes))
		return XDP_DROP;
	if (bpf_xdp_load_bytes(ctx, 0, copy->bytes, len) || bpf_xdp_adjust_tail(ctx, HEADROOM) ||
	    bpf_xdp_store_bytes(ctx, HEADROOM, copy->bytes, len) || bpf_xdp_adjust_head(ctx, HEADROOM))
		return XDP_DROP;
	return XDP_PASS;
}

/* User space asks where a packet goes: the answer is in route_answers, and the packet as it would leave. */
SEC("xdp")
int route(struct xdp_md *ctx)
{
	struct route r = {};
	struct route_answer a = {};
	__u32 zero = 0;

	a.state = route_find(ctx, &r, 1);
	a.reason = r.reason;
	if (a.state == ROUTE_DONE || a.state == ROUTE_WAIT)
		hop_of(&r, &a.hop);
	if (a.state == ROUTE_DONE) {
		a.port = r.port;
		a.mtu = r.fib.mtu_result;
		route_apply(ctx, &r);
	}
	bpf_map_update_elem(&route_answers, &zero, &a, BPF_ANY);
	return XDP_PASS;
}

/* User space gives a packet to the kernel, as if it had come in by a port (BPF_F_TEST_XDP_LIVE_FRAMES). */
SEC("xdp")
int inject(struct xdp_md *ctx)
{
	(void)ctx;
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
