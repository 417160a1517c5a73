//go:build ignore

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
 *
 * Penstock's XDP program: parse, find the flow, or let the rules decide on a new one, then to the AF_XDP socket of this queue,
 * to the peer port, to the kernel, or nowhere. README.md has the maps, reasons and options. */

#include "include/parse.h"
#include "include/maps.h"
#include "include/options.h"
#include "include/exit.h"
#include "include/listener.h"
#include "include/flow.h"
#include "include/rules.h"

/* Metadata of exactly eight bytes, whatever a driver left there before, so that they end where the frame begins. */
static __always_inline bool put_metadata(struct xdp_md *ctx, __u16 chain, __u32 hash)
{
	struct steer_meta *m;
	long there = (void *)(long)ctx->data - (void *)(long)ctx->data_meta;

	if (bpf_xdp_adjust_meta(ctx, there - (long)sizeof(*m)))
		return false;
	m = (void *)(long)ctx->data_meta;
	if ((void *)(m + 1) > (void *)(long)ctx->data)
		return false;
	m->magic = META_MAGIC;
	m->chain = chain;
	m->hash = hash;
	return true;
}

/* The socket is looked up first: bpf_redirect_map can fall back to an action, but not to the peer port. */
static __always_inline int deliver(struct xdp_md *ctx, __u16 chain, __u32 hash, __u64 now, enum reason reason)
{
	enum listener l = find_listener(ctx, now);

	if (l != LISTENER_THERE)
		return steer_unheard(ctx, l);
	if (!put_metadata(ctx, chain, hash))
		reason = REASON_NO_METADATA;
	if (bpf_redirect_map(&sockets, socket_index(ctx), XDP_DROP) != XDP_REDIRECT)
		return steer_unheard(ctx, LISTENER_ABSENT);
	return steer_exit(ctx, VERDICT_SOCKET, reason);
}

static __always_inline int steer_new_flow(struct xdp_md *ctx, struct packet *p, __u64 now)
{
	__u32 hash = flow_hash(&p->key);
	enum listener listener;
	enum action action;
	__u16 chain;
	int rule;

	if (p->key.proto == PROTO_TCP && !is_pure_syn(p)) {
		if (midstream == MIDSTREAM_DROP) {
			fragment_note(p, ACTION_DROP, 0, 0);
			return steer_exit(ctx, VERDICT_DROP, REASON_MIDSTREAM);
		}
		if (midstream == MIDSTREAM_BYPASS) {
			fragment_note(p, ACTION_BYPASS, 0, 0);
			return steer_default(ctx, REASON_MIDSTREAM);
		}
	}
	rule = rule_find(p);
	action = rule == NO_MATCH ? ACTION_BYPASS : rule >> 16;
	if (action == ACTION_BYPASS) {
		fragment_note(p, ACTION_BYPASS, 0, 0);
		return steer_default(ctx, rule == NO_MATCH ? REASON_NO_RULE : REASON_RULE_BYPASS);
	}
	if (action == ACTION_DROP) {
		fragment_note(p, ACTION_DROP, 0, 0);
		return steer_exit(ctx, VERDICT_DROP, REASON_RULE_DROP);
	}
	/* Nobody listens: remember nothing, or a daemon that comes later would get flows it did not see begin. */
	listener = find_listener(ctx, now);
	if (listener != LISTENER_THERE)
		return steer_unheard(ctx, listener);
	chain = rule;
	if (!flow_install(p, &chain, hash, frame_len(ctx), now)) {
		fragment_note(p, ACTION_BYPASS, 0, 0);
		return steer_default(ctx, REASON_FLOW_TABLE_FULL);
	}
	fragment_note(p, ACTION_CHAIN, chain, hash);
	return deliver(ctx, chain, hash, now, REASON_FLOW_NEW);
}

static __always_inline int offloaded(struct xdp_md *ctx, struct packet *p, __u8 action)
{
	fragment_note(p, action, 0, 0);
	if (action == ACTION_DROP)
		return steer_exit(ctx, VERDICT_DROP, REASON_FLOW_OFFLOADED);
	return steer_default(ctx, REASON_FLOW_OFFLOADED);
}

static __always_inline int steer_flow(struct xdp_md *ctx, struct packet *p)
{
	struct flow *f = bpf_map_lookup_elem(&flows, &p->key);
	__u64 now = bpf_ktime_get_coarse_ns();

	if (!f)
		return steer_new_flow(ctx, p, now);
	flow_count(p, f, frame_len(ctx), now);
	if (f->action != ACTION_CHAIN) {
		if (!is_pure_syn(p))
			return offloaded(ctx, p, f->action);
		flow_recall(p, f);
	}
	fragment_note(p, ACTION_CHAIN, f->chain, f->hash);
	return deliver(ctx, f->chain, f->hash, now, REASON_FLOW_KNOWN);
}

static __always_inline int steer_fragment(struct xdp_md *ctx, struct packet *p)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	struct fragment_key k;
	struct fragment *f;

	fragment_key(p, &k);
	f = bpf_map_lookup_elem(&fragments, &k);
	if (!f || now - f->seen > FRAGMENT_LIFETIME_NS)
		return steer_default(ctx, REASON_FRAGMENT_UNKNOWN);
	switch (f->action) {
	case ACTION_CHAIN:
		return deliver(ctx, f->chain, f->hash, now, REASON_FRAGMENT_KNOWN);
	case ACTION_DROP:
		return steer_exit(ctx, VERDICT_DROP, REASON_FRAGMENT_KNOWN);
	default:
		return steer_default(ctx, REASON_FRAGMENT_KNOWN);
	}
}

/* Not counted in the flow: an error, which anybody can send, must not keep a flow alive. */
static __always_inline int steer_icmp_error(struct xdp_md *ctx, struct packet *p)
{
	struct flow *f = bpf_map_lookup_elem(&flows, &p->key);

	if (!f)
		return steer_default(ctx, REASON_ICMP_ERROR_UNKNOWN);
	return deliver(ctx, f->chain, f->hash, bpf_ktime_get_coarse_ns(), REASON_ICMP_ERROR);
}

SEC("xdp")
int steer(struct xdp_md *ctx)
{
	struct packet p = {};

	switch (parse(ctx, &p)) {
	case PARSED_FLOW:
		return steer_flow(ctx, &p);
	case PARSED_FRAGMENT:
		return steer_fragment(ctx, &p);
	case PARSED_ERROR:
		return steer_icmp_error(ctx, &p);
	case PARSED_BAD:
		return steer_malformed(ctx, p.reason);
	default:
		return steer_default(ctx, p.reason);
	}
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
