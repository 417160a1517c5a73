/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef PENSTOCK_ROUTE_H
#define PENSTOCK_ROUTE_H

#include "exit.h"
#include "flow.h"
#include "headers.h"
#include "maps.h"
#include "options.h"

/* Routing of steered and offloaded packets (DEFAULT_ROUTE) by the kernel's own tables. Whatever the kernel would answer, drop or
 * keep is left as it is and goes to the kernel, before a chain sees it; only what is sure to leave by a port is changed. */

enum {
	FAMILY_INET = 2,   /* AF_INET */
	FAMILY_INET6 = 10, /* AF_INET6 */
};

struct route {
	struct bpf_fib_lookup fib;
	__u16 reason; /* enum reason, unless done */
	__u8 state;   /* enum route_state */
	__u8 family;  /* 4 or 6: of the packet, fib.family is that of the next hop */
	__u8 port;
};

static __always_inline int route_is(struct route *r, enum route_state state, enum reason reason)
{
	r->state = state;
	r->reason = reason;
	return state;
}

/* MAC addresses as six bytes that begin at an even address. */
static __always_inline bool mac_equal(const void *a, const void *b)
{
	const __u16 *x = a, *y = b;

	return !((x[0] ^ y[0]) | (x[1] ^ y[1]) | (x[2] ^ y[2]));
}

/* A frame that user space gave to the kernel comes by once more where XDP is generic. */
static __always_inline bool is_injected(struct xdp_md *ctx)
{
	struct ethhdr *eth = (void *)(long)ctx->data;
	__u8 mac[6];

	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return false;
#pragma unroll
	for (int i = 0; i < 6; i++)
		mac[i] = injected_mac[i] ^ eth->h_source[i];
	return !(mac[0] | mac[1] | mac[2] | mac[3] | mac[4] | mac[5]);
}

/* Addresses that no router forwards to or from (RFC 1812 5.3.7, RFC 4291 2.5): the kernel knows what to do. */
static __always_inline bool is_martian4(__be32 src, __be32 dst)
{
	__u32 s = bpf_ntohl(src) >> 24, d = bpf_ntohl(dst) >> 24;

	return s == 0 || s == 127 || s >= 224 || d == 0 || d == 127 || d >= 224;
}

static __always_inline bool is_scoped6(const __be32 *a)
{
	__u32 high = bpf_ntohl(a[0]);

	return high >> 24 == 0xff || (high & 0xffc00000) == 0xfe800000 || !(a[0] | a[1] | a[2]);
}

/* Fills r->fib from the packet's own IP header, not from its flow's key: an ICMP error's key is what it quotes. */
static __always_inline int route_question(struct xdp_md *ctx, struct route *r)
{
	struct cursor c = {.pos = (void *)(long)ctx->data, .end = (void *)(long)ctx->data_end};
	struct ethhdr *eth = take(&c, sizeof(*eth));
	struct port_mac *mine;
	__u32 port = port_id;

	mine = bpf_map_lookup_elem(&port_macs, &port);
	if (!eth || !mine || !mac_equal(eth->h_dest, mine->mac))
		return route_is(r, ROUTE_PASS, REASON_ROUTE_FRAME);
	r->fib.ifindex = ctx->ingress_ifindex;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		struct ip4_header *ip = take(&c, sizeof(*ip));

		if (!ip)
			return route_is(r, ROUTE_PASS, REASON_TRUNCATED);
		if (ip->ttl <= 1)
			return route_is(r, ROUTE_PASS, REASON_ROUTE_TTL);
		if (is_martian4(ip->src, ip->dst))
			return route_is(r, ROUTE_PASS, REASON_ROUTE_NONE);
		r->family = 4;
		r->fib.family = FAMILY_INET;
		r->fib.tos = ip->tos;
		r->fib.l4_protocol = ip->proto;
		r->fib.tot_len = bpf_ntohs(ip->length);
		r->fib.ipv4_src = ip->src;
		r->fib.ipv4_dst = ip->dst;
		if (ip->version_ihl != 0x45)
			return route_is(r, ROUTE_KERNEL, REASON_ROUTE_BY_KERNEL);
		/* Fragmentation, should it be needed, is the kernel's. */
		return route_is(r, ip->fragment & bpf_htons(IP4_DONT_FRAGMENT) ? ROUTE_PASS : ROUTE_KERNEL, REASON_ROUTE_TOO_BIG);
	}
	if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ip6_header *ip = take(&c, sizeof(*ip));

		if (!ip)
			return route_is(r, ROUTE_PASS, REASON_TRUNCATED);
		if (ip->hops <= 1)
			return route_is(r, ROUTE_PASS, REASON_ROUTE_TTL);
		if (is_scoped6(ip->src) || is_scoped6(ip->dst))
			return route_is(r, ROUTE_PASS, REASON_ROUTE_NONE);
		r->family = 6;
		r->fib.family = FAMILY_INET6;
		r->fib.flowinfo = *(__be32 *)ip & bpf_htonl(0x0fffffff);
		r->fib.l4_protocol = ip->next;
		r->fib.tot_len = bpf_ntohs(ip->length) + sizeof(*ip);
		__builtin_memcpy(r->fib.ipv6_src, ip->src, sizeof(r->fib.ipv6_src));
		__builtin_memcpy(r->fib.ipv6_dst, ip->dst, sizeof(r->fib.ipv6_dst));
		if (ip->next == PROTO_HOPOPTS || ip->next == PROTO_ROUTING)
			return route_is(r, ROUTE_KERNEL, REASON_ROUTE_BY_KERNEL);
		return route_is(r, ROUTE_PASS, REASON_ROUTE_TOO_BIG);
	}
	return route_is(r, ROUTE_PASS, REASON_ROUTE_FRAME);
}

static __always_inline void hop_of(const struct route *r, struct hop_key *k)
{
	__builtin_memset(k, 0, sizeof(*k));
	k->ifindex = r->fib.ifindex;
	if (r->fib.family == FAMILY_INET) {
		k->family = 4;
		k->addr[0] = r->fib.ipv4_dst;
	} else {
		k->family = 6;
		__builtin_memcpy(k->addr, r->fib.ipv6_dst, sizeof(k->addr));
	}
}

/* Asks the kernel's tables about the packet and changes nothing. *r must be zero on entry; returns enum route_state. note: tell user
 * space that the next hop is in use. A global function (see parse.h). */
__noinline int route_find(struct xdp_md *ctx, struct route *r, int note)
{
	__u32 too_big;
	long err;

	if (!r)
		return ROUTE_PASS;
	route_question(ctx, r);
	/* Decided by the packet alone; the source port and such are not looked at: a fragment must go where its first one went. */
	if (r->reason != REASON_ROUTE_TOO_BIG)
		return r->state;
	too_big = r->state;
	err = bpf_fib_lookup(ctx, &r->fib, sizeof(r->fib), 0);
	switch (err) {
	case BPF_FIB_LKUP_RET_SUCCESS:
	case BPF_FIB_LKUP_RET_NO_NEIGH:
		break;
	case BPF_FIB_LKUP_RET_FRAG_NEEDED:
		return route_is(r, too_big, too_big == ROUTE_KERNEL ? REASON_ROUTE_BY_KERNEL : REASON_ROUTE_TOO_BIG);
	case BPF_FIB_LKUP_RET_UNSUPP_LWT:
		return route_is(r, ROUTE_KERNEL, REASON_ROUTE_BY_KERNEL);
	case BPF_FIB_LKUP_RET_FWD_DISABLED:
		return route_is(r, ROUTE_PASS, REASON_ROUTE_DISABLED);
	default:
		return route_is(r, ROUTE_PASS, REASON_ROUTE_NONE);
	}
	for (__u32 i = 0; i < MAX_PORTS && i < port_count; i++) {
		if (port_ifindex[i] != r->fib.ifindex)
			continue;
		r->port = i;
		if (note || err) {
			struct hop h = {.used = bpf_ktime_get_coarse_ns()};
			struct hop_key k;

			hop_of(r, &k);
			bpf_map_update_elem(&hops, &k, &h, BPF_ANY);
		}
		if (err)
			return route_is(r, ROUTE_WAIT, REASON_ROUTE_NO_NEIGHBOR);
		return route_is(r, ROUTE_DONE, REASON_COUNT);
	}
	return route_is(r, ROUTE_KERNEL, REASON_ROUTE_OFF_PORT);
}

/* Makes a packet that route_find returned ROUTE_DONE for ready to leave. A global function (see parse.h); returns 0. */
__noinline int route_apply(struct xdp_md *ctx, const struct route *r)
{
	struct ethhdr *eth = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;

	if (!r)
		return 0;

	if (r->family == 4) {
		struct ip4_header *ip = (void *)(eth + 1);
		__u32 sum;

		if ((void *)(ip + 1) > end)
			return 0;
		/* RFC 1624: the TTL is the upper byte of its word. */
		sum = ip->sum + (__u32)bpf_htons(0x0100);
		ip->sum = sum + (sum >= 0xffff);
		ip->ttl--;
	} else {
		struct ip6_header *ip = (void *)(eth + 1);

		if ((void *)(ip + 1) > end)
			return 0;
		ip->hops--;
	}
	__builtin_memcpy(eth->h_dest, r->fib.dmac, sizeof(eth->h_dest));
	__builtin_memcpy(eth->h_source, r->fib.smac, sizeof(eth->h_source));
	return 0;
}

static __always_inline int route_ask(struct xdp_md *ctx, struct route *r, bool note)
{
	__builtin_memset(r, 0, sizeof(*r));
	return route_find(ctx, r, note);
}

/* A packet that needs no chain and whose way is known: out by a port without leaving XDP, else what the kernel makes of it. */
static __always_inline int route_out(struct xdp_md *ctx, struct route *r, enum reason reason)
{
	if (r->state != ROUTE_DONE)
		return steer_exit(ctx, VERDICT_PASS, r->reason);
	route_apply(ctx, r);
	if (bpf_redirect_map(&peers, r->port, XDP_DROP) != XDP_REDIRECT)
		return steer_exit(ctx, VERDICT_DROP, REASON_NO_PEER);
	return steer_exit(ctx, VERDICT_PEER, reason);
}

/* Whether this is a packet of the flow's first in a second or so: often enough to tell that its next hop is in use. */
static __always_inline bool flow_note(const struct flow *f, __u64 now)
{
	return default_action == DEFAULT_ROUTE && f->last_seen >> 30 != now >> 30;
}

#endif
