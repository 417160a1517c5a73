/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef PENSTOCK_COOKIE_H
#define PENSTOCK_COOKIE_H

#include "exit.h"
#include "maps.h"
#include "options.h"
#include "parse.h"

/* SYN cookies: while a chain asks for it, its SYNs are answered here, and nothing is kept of them. What a chain would have remembered is in the
 * numbers of the SYN-ACK, which the client sends back: the kernel's cookie (net/ipv4/syncookies.c) as sequence number, and, if the client
 * has timestamps, its window scale and SACK in the lowest bits of ours. An ACK that gives back a good cookie begins the flow.
 *
 * A packet that is not plain (IP options, fragments, signed, odd options) is not answered: it takes the way that it has without cookies.
 * Headers are worked on in a map of one element a CPU: the stack has no room for them. */

enum cookie_verdict {
	COOKIE_GOOD,
	COOKIE_NONE, /* not for cookies */
	COOKIE_BAD,  /* gives back what was never given out, or too long ago */
};

enum {
	COOKIE_VALID_NS_SHIFT = 37, /* 137 s: the kernel takes cookies that are two minutes old */
	COOKIE_OPTION_STEPS = 16,
	COOKIE_TTL = 64,
	COOKIE_LONG = 40,  /* TCP header with timestamps */
	COOKIE_SHORT = 24, /* without */

	OPTION_SACK_PERMITTED = 4,
	OPTION_MD5 = 19,
	OPTION_AO = 29,
};

struct cookie_work {
	union {
		struct ip4_header v4;
		struct ip6_header v6;
	} ip;
	__u8 tcp[64];
	__u8 pseudo[40];
	__u32 l3;
	__u32 l4;
	__u32 option; /* of the walk: offset in the TCP header */
	/* What the client offers. */
	__u8 sack;
	__u8 stamps;
	__u8 scale;    /* 15: none */
	__u8 pad;
	__u8 stamp[4]; /* its timestamp */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct cookie_work);
	__uint(max_entries, 1);
} cookie_works SEC(".maps");

static __always_inline struct cookie_chain *cookie_chain(__u32 chain)
{
	return bpf_map_lookup_elem(&cookie_chains, &chain);
}

/* Whether SYNs are answered, or were a short time ago, for a chain or, with COOKIE_ANY, for any. */
static __always_inline bool cookie_open(__u32 chain, __u64 now)
{
	struct cookie_chain *c = cookie_chain(chain);

	if (!c)
		return false;
	if (*(volatile __u64 *)&c->on)
		return true;
	return c->last && (now - c->last) >> COOKIE_VALID_NS_SHIFT == 0;
}

static __always_inline struct cookie_work *cookie_work(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&cookie_works, &zero);
}

/* Fetches the IP header, and len bytes from the TCP header on: of a TCP packet whose headers are plain. */
static __always_inline int cookie_fetch(struct xdp_md *ctx, const struct packet *p, struct cookie_work *w, __u32 len)
{
	__u32 l3 = sizeof(struct ethhdr) + p->tags * sizeof(struct vlan_header);

	if (p->options || p->fragment || p->quotes)
		return COOKIE_NONE;
	w->l3 = l3;
	if (p->key.family == 4) {
		w->l4 = l3 + sizeof(struct ip4_header);
		if (bpf_xdp_load_bytes(ctx, l3, &w->ip, sizeof(struct ip4_header)))
			return COOKIE_NONE;
	} else {
		w->l4 = l3 + sizeof(struct ip6_header);
		if (p->at != w->l4 || bpf_xdp_load_bytes(ctx, l3, &w->ip, sizeof(struct ip6_header)))
			return COOKIE_NONE;
	}
	return bpf_xdp_load_bytes(ctx, w->l4, w->tcp, len) ? COOKIE_NONE : COOKIE_GOOD;
}

static __always_inline bool cookie_right(struct cookie_work *w, __u32 family)
{
	if (family == 4)
		return bpf_tcp_raw_check_syncookie_ipv4((void *)&w->ip, (void *)w->tcp) == 0;
	return bpf_tcp_raw_check_syncookie_ipv6((void *)&w->ip, (void *)w->tcp) == 0;
}

/* Whether the segment gives back a good cookie, and if so p->size: which segment size it stands for. The kernel does not say which: but a cookie is a
 * sum of which the number of the size, 0 to 3, is one summand, and it takes no others. So it is as many away from 3 as it can be
 * raised and still be good. */
__noinline int cookie_check(struct xdp_md *ctx, struct packet *p, __u32 chain, __u64 now)
{
	struct cookie_work *w = cookie_work();
	struct cookie_chain *c = cookie_chain(chain);
	struct tcp_header *tcp;
	__u32 ack, size;

	if (!cookie_helpers || !p || !w || !c || chain >= COOKIE_CHAINS || !cookie_open(chain, now))
		return COOKIE_NONE;
	if ((p->tcp_flags & (TCP_SYN | TCP_RST | TCP_ACK)) != TCP_ACK || cookie_fetch(ctx, p, w, sizeof(*tcp)))
		return COOKIE_NONE;
	if (!cookie_right(w, p->key.family))
		return COOKIE_BAD;
	tcp = (struct tcp_header *)w->tcp;
	ack = bpf_ntohl(tcp->ack);
	tcp->ack = bpf_htonl(ack + 2);
	size = cookie_right(w, p->key.family) ? 0 : 2;
	tcp->ack = bpf_htonl(ack + (size ? 1 : 3));
	if (!cookie_right(w, p->key.family))
		size++;
	p->cookie = 1;
	p->size = size;
	__sync_fetch_and_add(&c->good, 1);
	return COOKIE_GOOD;
}

/* Walks the options of the SYN in w->tcp, which ends at offset end. Like find_options in translate.h it keeps its place in memory. */
__noinline int cookie_options(__u32 end)
{
	struct cookie_work *w = cookie_work();
	volatile __u32 *at;

	if (!w || end > 60)
		return COOKIE_NONE;
	at = &w->option;
	*at = sizeof(struct tcp_header);
	for (int i = 0; i < COOKIE_OPTION_STEPS; i++) {
		__u32 off = *at, size;
		__u8 kind;

		if (off >= end)
			break;
		off &= 63;
		kind = w->tcp[off];
		if (kind == 0)
			return COOKIE_GOOD;
		if (kind == 1) {
			*at = off + 1;
			continue;
		}
		size = w->tcp[(off + 1) & 63];
		if (size < 2 || off + size > end)
			return COOKIE_NONE;
		if (kind == OPTION_MD5 || kind == OPTION_AO)
			return COOKIE_NONE;
		if (kind == OPTION_SACK_PERMITTED && size == 2)
			w->sack = 1;
		if (kind == 3 && size == 3) {
			w->scale = w->tcp[(off + 2) & 63];
			if (w->scale > 14)
				w->scale = 14;
		}
		if (kind == 8 && size == 10) {
			w->stamps = 1;
			for (int j = 0; j < 4; j++)
				w->stamp[j] = w->tcp[(off + 2 + j) & 63];
		}
		*at = off + size;
	}
	return *at == end ? COOKIE_GOOD : COOKIE_NONE;
}

static __always_inline __be16 cookie_fold(__s64 sum)
{
	__u64 s = (__u32)sum;

	s = (s >> 16) + (s & 0xffff);
	s = (s >> 16) + (s & 0xffff);
	return ~(__u16)s;
}

/* Makes the IP header of the SYN that of the answer, with its TCP length, and returns the sum of the pseudo header. */
static __always_inline __s64 cookie_ip(struct cookie_work *w, __u32 family, __u32 len)
{
	struct pseudo {
		__be32 src[4];
		__be32 dst[4];
		__be32 len;
		__be32 proto;
	} *s = (struct pseudo *)w->pseudo;

	__builtin_memset(s, 0, sizeof(*s));
	s->len = bpf_htonl(len);
	s->proto = bpf_htonl(PROTO_TCP);
	if (family == 4) {
		struct ip4_header *ip = &w->ip.v4;
		__be32 src = ip->src;

		s->dst[0] = src;
		s->src[0] = ip->dst;
		ip->src = ip->dst;
		ip->dst = src;
		ip->tos = 0;
		ip->length = bpf_htons(sizeof(*ip) + len);
		ip->id = 0;
		ip->fragment = bpf_htons(IP4_DONT_FRAGMENT);
		ip->ttl = COOKIE_TTL;
		ip->sum = 0;
		ip->sum = cookie_fold(bpf_csum_diff(NULL, 0, (void *)ip, sizeof(*ip), 0));
	} else {
		struct ip6_header *ip = &w->ip.v6;

		__builtin_memcpy(s->src, ip->dst, sizeof(s->src));
		__builtin_memcpy(s->dst, ip->src, sizeof(s->dst));
		__builtin_memcpy(ip->src, s->src, sizeof(s->src));
		__builtin_memcpy(ip->dst, s->dst, sizeof(s->dst));
		ip->version_class = 0x60;
		__builtin_memset(ip->class_label, 0, sizeof(ip->class_label));
		ip->length = bpf_htons(len);
		ip->hops = COOKIE_TTL;
	}
	return bpf_csum_diff(NULL, 0, (void *)s, sizeof(*s), 0);
}

/* Ours: milliseconds, and in the six lowest bits what a timestamp of the kernel's cookies has there: the client's window scale, or 15 for
 * none, and 16 if it takes SACK. */
static __always_inline __u32 cookie_stamp(const struct cookie_work *w)
{
	__u32 ms = bpf_ktime_get_ns() / 1000000;

	return (ms & ~63U) | (w->scale & 15) | (w->sack ? 16 : 0);
}

/* Makes the TCP header of the answer in w->tcp, and returns its length. */
static __always_inline __u32 cookie_tcp(struct cookie_work *w, const struct cookie_chain *c, __u32 family, __u32 cookie)
{
	struct tcp_header *tcp = (struct tcp_header *)w->tcp;
	__be32 *o = (__be32 *)(w->tcp + sizeof(*tcp));
	__u32 len = w->stamps ? COOKIE_LONG : COOKIE_SHORT;
	__be16 port = tcp->sport;

	tcp->sport = tcp->dport;
	tcp->dport = port;
	tcp->ack = bpf_htonl(bpf_ntohl(tcp->seq) + 1);
	tcp->seq = bpf_htonl(cookie);
	tcp->offset = len << 2;
	tcp->flags = TCP_SYN | TCP_ACK;
	tcp->window = bpf_htons(c->window);
	tcp->sum = 0;
	tcp->urgent = 0;
	o[0] = bpf_htonl(0x02040000 | (family == 4 ? c->mss4 : c->mss6));
	if (w->stamps) {
		o[1] = bpf_htonl((w->sack ? 0x04020000 : 0x01010000) | 0x080a);
		o[2] = bpf_htonl(cookie_stamp(w));
		__builtin_memcpy(&o[3], w->stamp, sizeof(w->stamp));
		o[4] = bpf_htonl(w->scale == 15 ? 0x01010101 : 0x01030300 | c->shift);
	}
	return len;
}

/* Answers a SYN, and returns COOKIE_GOOD; the frame is the answer then. Else it is as it came. */
__noinline int cookie_answer(struct xdp_md *ctx, const struct packet *p, __u32 chain, __u64 now)
{
	struct cookie_work *w = cookie_work();
	struct cookie_chain *c = cookie_chain(chain), *any = cookie_chain(COOKIE_ANY);
	struct cursor at;
	struct ethhdr *eth;
	__u64 there;
	__u8 mac[6];
	__u32 len;
	__s64 sum;

	if (!cookie_helpers || !p || !w || !c || !any || chain >= COOKIE_CHAINS || !*(volatile __u64 *)&c->on)
		return COOKIE_NONE;
	if ((p->tcp_flags & (TCP_SYN | TCP_RST | TCP_FIN | TCP_ACK)) != TCP_SYN)
		return COOKIE_NONE;
	/* An ACK comes up with what it has proved in its metadata: without, nobody could tell it from others. */
	if (bpf_xdp_adjust_meta(ctx, 0) || cookie_fetch(ctx, p, w, sizeof(struct tcp_header)))
		return COOKIE_NONE;
	len = (((struct tcp_header *)w->tcp)->offset >> 4) * 4;
	barrier_var(len);
	if (len < sizeof(struct tcp_header) || len > sizeof(w->tcp) - 4)
		return COOKIE_NONE;
	if (bpf_xdp_load_bytes(ctx, w->l4, w->tcp, len))
		return COOKIE_NONE;
	w->sack = w->stamps = 0;
	w->scale = 15;
	if (cookie_options(len))
		return COOKIE_NONE;
	if (p->key.family == 4)
		sum = bpf_tcp_raw_gen_syncookie_ipv4((void *)&w->ip, (void *)w->tcp, len);
	else
		sum = bpf_tcp_raw_gen_syncookie_ipv6((void *)&w->ip, (void *)w->tcp, len);
	if (sum < 0)
		return COOKIE_NONE;
	len = cookie_tcp(w, c, p->key.family, sum);
	sum = cookie_ip(w, p->key.family, len);
	if (len == COOKIE_LONG)
		sum = bpf_csum_diff(NULL, 0, (void *)w->tcp, COOKIE_LONG, sum);
	else
		sum = bpf_csum_diff(NULL, 0, (void *)w->tcp, COOKIE_SHORT, sum);
	((struct tcp_header *)w->tcp)->sum = cookie_fold(sum);

	there = frame_len(ctx);
	barrier_var(there); /* else clang subtracts the lower halves of two pointers, which the verifier forbids */
	if (bpf_xdp_adjust_tail(ctx, (int)(w->l4 + len - there)))
		return COOKIE_NONE;
	/* The frame is as long as it has to be: these cannot fail. */
	if (p->key.family == 4)
		bpf_xdp_store_bytes(ctx, w->l3, &w->ip, sizeof(struct ip4_header));
	else
		bpf_xdp_store_bytes(ctx, w->l3, &w->ip, sizeof(struct ip6_header));
	if (len == COOKIE_LONG)
		bpf_xdp_store_bytes(ctx, w->l4, w->tcp, COOKIE_LONG);
	else
		bpf_xdp_store_bytes(ctx, w->l4, w->tcp, COOKIE_SHORT);
	at = cursor_at(ctx, 0);
	eth = take(&at, sizeof(*eth));
	if (eth) {
		__builtin_memcpy(mac, eth->h_source, sizeof(mac));
		__builtin_memcpy(eth->h_source, eth->h_dest, sizeof(mac));
		__builtin_memcpy(eth->h_dest, mac, sizeof(mac));
	}
	if (c->last != now)
		c->last = now;
	if (any->last != now)
		any->last = now;
	__sync_fetch_and_add(&c->sent, 1);
	return COOKIE_GOOD;
}

#endif
