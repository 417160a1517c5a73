/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef PENSTOCK_EXIT_H
#define PENSTOCK_EXIT_H

#include "maps.h"
#include "options.h"

static __always_inline __u64 frame_len(struct xdp_md *ctx)
{
	return (void *)(long)ctx->data_end - (void *)(long)ctx->data;
}

/* The only way out of the program: counts the packet under its reason and verdict and turns the verdict into the kernel's
 * action. VERDICT_PEER, VERDICT_SOCKET and VERDICT_TX want a successful bpf_redirect_map before; what becomes of the frame after it (target
 * down, ring full) is seen only in the tracepoints xdp:xdp_redirect_err, xdp:xdp_devmap_xmit and in the socket's statistics. */
static __noinline int steer_exit(struct xdp_md *ctx, enum verdict verdict, enum reason reason)
{
	__u32 i = (port_id * REASON_COUNT + reason) * VERDICT_COUNT + verdict;
	struct counter *c = bpf_map_lookup_elem(&counters, &i);

	if (c) {
		c->packets++;
		c->bytes += frame_len(ctx);
	}
	switch (verdict) {
	case VERDICT_PASS:
		return XDP_PASS;
	case VERDICT_PEER:
	case VERDICT_SOCKET:
	case VERDICT_TX:
		return XDP_REDIRECT;
	default:
		return XDP_DROP;
	}
}

/* What happens to packets that are nobody's: over to the peer port, or to the kernel, which routes them in router mode. */
static __always_inline int steer_default(struct xdp_md *ctx, enum reason reason)
{
	if (default_action != DEFAULT_BRIDGE)
		return steer_exit(ctx, VERDICT_PASS, reason);
	if (bpf_redirect_map(&peers, port_id, XDP_DROP) != XDP_REDIRECT)
		return steer_exit(ctx, VERDICT_DROP, REASON_NO_PEER);
	return steer_exit(ctx, VERDICT_PEER, reason);
}

/* Back out of this port. Not XDP_TX: a veth does not wake its other end for that unless there is an XDP program too, and the frames
 * wait there (drivers/net/veth.c, veth_xdp_flush). */
static __always_inline int steer_back(struct xdp_md *ctx, enum reason reason)
{
	if (bpf_redirect_map(&peers, default_action == DEFAULT_BRIDGE ? port_id ^ 1 : port_id, XDP_DROP) != XDP_REDIRECT)
		return steer_exit(ctx, VERDICT_DROP, REASON_NO_PEER);
	return steer_exit(ctx, VERDICT_TX, reason);
}

/* Out of a port that a decision names. */
static __always_inline int steer_out(struct xdp_md *ctx, __u32 port, enum reason reason)
{
	if (bpf_redirect_map(&peers, default_action == DEFAULT_BRIDGE ? port ^ 1 : port, XDP_DROP) != XDP_REDIRECT)
		return steer_exit(ctx, VERDICT_DROP, REASON_NO_PEER);
	return steer_exit(ctx, VERDICT_PEER, reason);
}

static __always_inline int steer_malformed(struct xdp_md *ctx, enum reason reason)
{
	if (malformed == MALFORMED_DROP)
		return steer_exit(ctx, VERDICT_DROP, reason);
	return steer_default(ctx, reason);
}

#endif
