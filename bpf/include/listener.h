/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef PENSTOCK_LISTENER_H
#define PENSTOCK_LISTENER_H

#include "exit.h"
#include "maps.h"
#include "options.h"

/* Who takes the packets of a queue. */
enum listener {
	LISTENER_THERE,
	LISTENER_ABSENT, /* no socket: the process has ended, or not begun */
	LISTENER_SILENT, /* a socket, but its worker has shown no sign of life for longer than silence_ns */
};

static __always_inline __u32 socket_index(struct xdp_md *ctx)
{
	return port_id * MAX_QUEUES + ctx->rx_queue_index;
}

static __always_inline enum listener find_listener(struct xdp_md *ctx, __u64 now)
{
	__u32 i = socket_index(ctx);
	__u64 *beat;

	if (ctx->rx_queue_index >= MAX_QUEUES || !bpf_map_lookup_elem(&sockets, &i))
		return LISTENER_ABSENT;
	if (!silence_ns)
		return LISTENER_THERE;
	beat = bpf_map_lookup_elem(&beats, &i);
	/* Signed: the coarse clock is behind the one that Go reads. */
	if (beat && (__s64)(now - *(volatile __u64 *)beat) <= (__s64)silence_ns)
		return LISTENER_THERE;
	return LISTENER_SILENT;
}

/* What on_exit says about packets that a chain wants. */
static __always_inline int steer_unheard(struct xdp_md *ctx, enum listener l)
{
	bool silent = l == LISTENER_SILENT;

	if (on_exit == ON_EXIT_CLOSED)
		return steer_exit(ctx, VERDICT_DROP, silent ? REASON_WORKER_SILENT_CLOSED : REASON_NO_SOCKET_CLOSED);
	return steer_default(ctx, silent ? REASON_WORKER_SILENT_OPEN : REASON_NO_SOCKET_OPEN);
}

#endif
