/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef PENSTOCK_TRANSLATE_H
#define PENSTOCK_TRANSLATE_H

#include "flow.h"
#include "headers.h"
#include "maps.h"
#include "parse.h"

/* The packets of an offloaded flow are changed by constants. internal/rewrite/README.md has the rules, which this follows to the
 * letter; a test holds it against internal/rewrite. Everything is checked first and only then written: a packet that goes up is
 * as it came.
 *
 * The steps are global functions, and what one tells the next stands in struct parts, so that the verifier looks at each step once,
 * with unknown offsets (see parse.h). The walk over the options keeps even its own offset there: in a register, each path to it would be
 * another state, and 16 steps of them are more than a million instructions (kernel 6.18, clang 14). */

enum translated {
	TRANSLATED,
	TRANSLATE_SLOW,  /* not for XDP: untouched */
	TRANSLATE_STALE, /* the rewrite is not this flow's any more: untouched */
};

enum {
	ADDRESS_FIELDS = SET_SRC | SET_DST,
	PORT_FIELDS = SET_SRC_PORT | SET_DST_PORT,
	TCP_FIELDS = ADD_SEQ | ADD_ACK | ADD_TS | SHIFT_WINDOW,
	OPTION_FIELDS = ADD_ACK | ADD_TS,
	TRANSPORT_FIELDS = ADDRESS_FIELDS | PORT_FIELDS | TCP_FIELDS,
	IP_FIELDS = TRANSPORT_FIELDS | DEC_TTL,

	MAX_OPTIONS = 16, /* steps of the walk */
	MAX_SACK_EDGES = 8,
};

/* Where things are in the frame. */
struct parts {
	__u32 l3;
	__u32 l4;
	__u32 option; /* of the walk: offset in the TCP header */
	__u32 ts;     /* offset of the timestamps option in the TCP header, 0: none */
	__u32 sack;   /* of the SACK option */
	__u32 edges;  /* twice the blocks in it */
	__u8 tags;
	__u8 version; /* 4, 6, or 0 if nobody asked */
	__u8 proto;
	__u8 ack; /* the ACK flag */
};

/* By how much a ones' complement sum changes: the sum over the changed words of ~old + new (RFC 1624, eqn. 3), not folded. 2^16 is 1
 * modulo 0xffff, so a 32-bit word is added as it is. */
static __always_inline __u64 change16(__be16 old, __be16 new)
{
	return (__u64)(__u16)~bpf_ntohs(old) + bpf_ntohs(new);
}

static __always_inline __u64 change32(__be32 old, __be32 new)
{
	return (__u64)(__u32)~bpf_ntohl(old) + bpf_ntohl(new);
}

/* The checksum after the change: where nothing changed the old one, bit by bit. */
static __always_inline __be16 changed_sum(__be16 sum, __u64 change)
{
	change = (change >> 32) + (change & 0xffffffff);
	change = (change >> 16) + (change & 0xffff);
	change = (change >> 16) + (change & 0xffff);
	change = (change >> 16) + (change & 0xffff);
	if (change == 0 || change == 0xffff)
		return sum;
	change += (__u16)~bpf_ntohs(sum);
	change = (change >> 16) + (change & 0xffff);
	return bpf_htons(~(__u16)change);
}

/* Walks the options of the TCP header at t->l4, which ends at offset end of itself, and notes what a rewrite may change. */
__noinline int find_options(struct xdp_md *ctx, struct parts *t, __u32 end)
{
	volatile __u32 *option;
	__be32 *words;
	struct cursor c;

	if (!t)
		return TRANSLATE_SLOW;
	option = &t->option;
	if (end == 32) {
		c = cursor_at(ctx, t->l4 + 20);
		words = take(&c, 12);
		if (words && words[0] == bpf_htonl(0x0101080a)) { /* what almost every segment has (RFC 7323, appendix A) */
			t->ts = 22;
			return TRANSLATED;
		}
	}
	*option = 20;
	for (int i = 0; i < MAX_OPTIONS; i++) {
		__u32 off = *option, size;
		__u8 *kind, *length;

		if (off == end)
			return TRANSLATED;
		c = cursor_at(ctx, t->l4 + off);
		kind = take(&c, 1);
		if (!kind)
			return TRANSLATE_SLOW;
		if (*kind == 0)
			return TRANSLATED;
		if (*kind == 1) {
			*option = off + 1;
			continue;
		}
		length = take(&c, 1);
		if (!length || off + 2 > end)
			return TRANSLATE_SLOW;
		size = *length;
		if (size < 2 || off + size > end)
			return TRANSLATE_SLOW;
		if (*kind == 8) {
			if (size != 10 || t->ts)
				return TRANSLATE_SLOW;
			t->ts = off;
		}
		if (*kind == 5) {
			if (size % 8 != 2 || t->sack)
				return TRANSLATE_SLOW;
			t->sack = off;
			t->edges = size / 8 * 2;
		}
		*option = off + size;
	}
	return *option == end ? TRANSLATED : TRANSLATE_SLOW;
}

static __always_inline int check_transport(struct xdp_md *ctx, const struct rewrite *w, struct parts *t)
{
	struct cursor c = cursor_at(ctx, t->l4);
	__u16 flags = w->flags;
	struct icmp_header *icmp;
	struct tcp_header *tcp;

	switch (t->proto) {
	case PROTO_TCP:
		tcp = take(&c, sizeof(*tcp));
		if (!tcp || (flags & TCP_FIELDS && tcp->flags & TCP_SYN))
			return TRANSLATE_SLOW;
		t->ack = tcp->flags & TCP_ACK;
		return flags & OPTION_FIELDS ? find_options(ctx, t, (tcp->offset >> 4) * 4) : TRANSLATED;
	case PROTO_UDP:
		return flags & TCP_FIELDS ? TRANSLATE_SLOW : TRANSLATED;
	case PROTO_ICMP:
	case PROTO_ICMPV6:
		icmp = take(&c, sizeof(*icmp));
		if (!icmp || (t->proto == PROTO_ICMP) != (t->version == 4) || flags & (TCP_FIELDS | PORT_FIELDS) ||
		    icmp_kind(t->proto, icmp->type) != ICMP_ECHO)
			return TRANSLATE_SLOW;
		return TRANSLATED;
	}
	return TRANSLATE_SLOW;
}

/* Makes all checks of README.md and fills *t, which is zero. */
__noinline int check_rewrite(struct xdp_md *ctx, const struct rewrite *w, struct parts *t)
{
	struct cursor c = cursor_at(ctx, 0);
	struct ethhdr *eth = take(&c, sizeof(*eth));
	__u8 ttl, plain, fragment = 0;
	__u32 at = sizeof(*eth);
	__be16 ethertype;
	__u16 flags;

	if (!w || !t || !eth)
		return TRANSLATE_SLOW;
	flags = w->flags;
	ethertype = eth->h_proto;
#pragma unroll
	for (int i = 0; i < MAX_VLANS; i++) {
		struct vlan_header *tag;

		if (!is_vlan(ethertype))
			break;
		tag = take(&c, sizeof(*tag));
		if (!tag)
			return TRANSLATE_SLOW;
		at += sizeof(*tag);
		ethertype = tag->next;
	}
	t->tags = (at - sizeof(*eth)) / sizeof(struct vlan_header);
	if (flags & SET_VLAN && (t->tags != w->vlans || is_vlan(ethertype)))
		return TRANSLATE_SLOW;
	if (!(flags & IP_FIELDS))
		return TRANSLATED;
	t->l3 = at;
	if (ethertype == bpf_htons(ETH_P_IP)) {
		struct ip4_header *ip = take(&c, sizeof(*ip));

		if (!ip)
			return TRANSLATE_SLOW;
		t->version = 4;
		t->proto = ip->proto;
		t->l4 = at + sizeof(*ip);
		ttl = ip->ttl;
		plain = ip->version_ihl == 0x45;
		fragment = !!(ip->fragment & bpf_htons(IP4_FRAGMENT_OFFSET | IP4_MORE_FRAGMENTS));
	} else if (ethertype == bpf_htons(ETH_P_IPV6)) {
		struct ip6_header *ip = take(&c, sizeof(*ip));

		if (!ip)
			return TRANSLATE_SLOW;
		t->version = 6;
		t->proto = ip->next;
		t->l4 = at + sizeof(*ip);
		ttl = ip->hops;
		plain = !is_extension(ip->next); /* the fragment header is one */
	} else {
		return TRANSLATE_SLOW;
	}
	if (flags & DEC_TTL && ttl <= 1)
		return TRANSLATE_SLOW;
	if ((flags & SET_SRC && w->src_family != t->version) || (flags & SET_DST && w->dst_family != t->version))
		return TRANSLATE_SLOW;
	if (!(flags & TRANSPORT_FIELDS))
		return TRANSLATED;
	if (fragment || !plain)
		return TRANSLATE_SLOW;
	return check_transport(ctx, w, t);
}

static __always_inline void write_link(struct xdp_md *ctx, const struct rewrite *w, const struct parts *t)
{
	struct cursor c = cursor_at(ctx, 0);
	struct ethhdr *eth = take(&c, sizeof(*eth));

	if (!eth)
		return;
	if (w->flags & SET_DST_MAC)
		__builtin_memcpy(eth->h_dest, w->dst_mac, sizeof(eth->h_dest));
	if (w->flags & SET_SRC_MAC)
		__builtin_memcpy(eth->h_source, w->src_mac, sizeof(eth->h_source));
	if (!(w->flags & SET_VLAN))
		return;
#pragma unroll
	for (int i = 0; i < MAX_VLANS; i++) {
		struct vlan_header *tag = take(&c, sizeof(*tag));

		if (!tag || i >= t->tags)
			return;
		tag->tci = (tag->tci & bpf_htons(0xf000)) | bpf_htons(w->vlan[i] & 0xfff);
	}
}

/* Returns by how much the sum of the pseudo-header changes. */
static __always_inline __u64 write_ip4(struct xdp_md *ctx, const struct rewrite *w, const struct parts *t)
{
	struct cursor c = cursor_at(ctx, t->l3);
	struct ip4_header *ip = take(&c, sizeof(*ip));
	__u64 pseudo = 0, header;

	if (!ip)
		return 0;
	if (w->flags & SET_SRC) {
		pseudo += change32(ip->src, w->src[0]);
		ip->src = w->src[0];
	}
	if (w->flags & SET_DST) {
		pseudo += change32(ip->dst, w->dst[0]);
		ip->dst = w->dst[0];
	}
	header = pseudo;
	if (w->flags & DEC_TTL) {
		ip->ttl--;
		header += 0xffff - 0x0100; /* the TTL is the upper half of its word */
	}
	ip->sum = changed_sum(ip->sum, header);
	return pseudo;
}

static __always_inline __u64 write_ip6(struct xdp_md *ctx, const struct rewrite *w, const struct parts *t)
{
	struct cursor c = cursor_at(ctx, t->l3);
	struct ip6_header *ip = take(&c, sizeof(*ip));
	__u64 pseudo = 0;

	if (!ip)
		return 0;
	if (w->flags & DEC_TTL)
		ip->hops--;
	if (w->flags & SET_SRC) {
#pragma unroll
		for (int i = 0; i < 4; i++) {
			pseudo += change32(ip->src[i], w->src[i]);
			ip->src[i] = w->src[i];
		}
	}
	if (w->flags & SET_DST) {
#pragma unroll
		for (int i = 0; i < 4; i++) {
			pseudo += change32(ip->dst[i], w->dst[i]);
			ip->dst[i] = w->dst[i];
		}
	}
	return pseudo;
}

/* Adds delta to the number at an offset of the TCP header, which may be odd: its bytes then fall into the other halves of the words that
 * are summed. spare_zero: not to a number that is 0. Returns by how much the sum changes. */
__noinline __u64 add_at(struct xdp_md *ctx, __u32 l4, __u32 off, __u32 delta, __u32 spare_zero)
{
	struct cursor c = cursor_at(ctx, l4 + off);
	__be32 *field = take(&c, sizeof(*field)), was;
	__u64 change;

	if (!field || (spare_zero && !*field))
		return 0;
	was = *field;
	*field = bpf_htonl(bpf_ntohl(was) + delta);
	change = change32(was, *field);
	return off & 1 ? change << 8 : change;
}

__noinline __u64 add_to_edges(struct xdp_md *ctx, const struct parts *t, __u32 delta)
{
	__u64 change = 0;

	if (!t)
		return 0;
	for (__u32 i = 0; i < MAX_SACK_EDGES && i < t->edges; i++)
		change += add_at(ctx, t->l4, t->sack + 2 + 4 * i, delta, 0);
	return change;
}

/* by lies within -16..16 where it matters: a window has 16 bits. */
static __always_inline __u16 shifted_window(__u32 window, __s32 by)
{
	__u32 out;

	if (by >= 0) {
		out = window << (by > 16 ? 16 : by);
		return out > 0xffff ? 0xffff : out;
	}
	out = window >> (by < -16 ? 16 : -by);
	return !out && window ? 1 : out;
}

static __always_inline __u64 write_tcp(struct tcp_header *tcp, const struct rewrite *w, bool ack)
{
	__u64 change = 0;

	if (w->flags & ADD_SEQ) {
		__be32 seq = bpf_htonl(bpf_ntohl(tcp->seq) + w->seq);

		change += change32(tcp->seq, seq);
		tcp->seq = seq;
	}
	if (w->flags & ADD_ACK && ack) {
		__be32 n = bpf_htonl(bpf_ntohl(tcp->ack) + w->ack);

		change += change32(tcp->ack, n);
		tcp->ack = n;
	}
	if (w->flags & SHIFT_WINDOW) {
		__be16 window = bpf_htons(shifted_window(bpf_ntohs(tcp->window), w->window_shift));

		change += change16(tcp->window, window);
		tcp->window = window;
	}
	return change;
}

static __always_inline __u64 write_ports(__be16 *sport, __be16 *dport, const struct rewrite *w)
{
	__u64 change = 0;

	if (w->flags & SET_SRC_PORT) {
		change += change16(*sport, w->sport);
		*sport = w->sport;
	}
	if (w->flags & SET_DST_PORT) {
		change += change16(*dport, w->dport);
		*dport = w->dport;
	}
	return change;
}

/* change is that of the addresses. */
__noinline int write_transport(struct xdp_md *ctx, const struct rewrite *w, const struct parts *t, __u64 change)
{
	struct icmp_header *icmp;
	struct tcp_header *tcp;
	struct udp_header *udp;
	struct cursor c;

	if (!w || !t)
		return 0;
	if (t->proto == PROTO_TCP) {
		if (t->ts && w->flags & ADD_TS) {
			change += add_at(ctx, t->l4, t->ts + 2, w->tsval, 0);
			if (t->ack)
				change += add_at(ctx, t->l4, t->ts + 6, w->tsecr, 1);
		}
		if (t->sack && w->flags & ADD_ACK && t->ack)
			change += add_to_edges(ctx, t, w->ack);
	}
	c = cursor_at(ctx, t->l4);
	switch (t->proto) {
	case PROTO_TCP:
		tcp = take(&c, sizeof(*tcp));
		if (!tcp)
			return 0;
		change += write_ports(&tcp->sport, &tcp->dport, w);
		change += write_tcp(tcp, w, t->ack);
		tcp->sum = changed_sum(tcp->sum, change);
		return 0;
	case PROTO_UDP:
		udp = take(&c, sizeof(*udp));
		if (!udp)
			return 0;
		change += write_ports(&udp->sport, &udp->dport, w);
		if (udp->sum) { /* 0: there is none, and what comes out as 0 is sent as 0xffff */
			__be16 sum = changed_sum(udp->sum, change);

			udp->sum = sum ? sum : 0xffff;
		}
		return 0;
	case PROTO_ICMPV6:
		icmp = take(&c, sizeof(*icmp));
		if (icmp)
			icmp->sum = changed_sum(icmp->sum, change);
		return 0;
	}
	return 0; /* ICMP has no pseudo-header: nothing that it sums has changed */
}

__noinline int write_rewrite(struct xdp_md *ctx, const struct rewrite *w, const struct parts *t)
{
	__u64 change = 0;

	if (!w || !t)
		return 0;
	if (w->flags & (SET_SRC_MAC | SET_DST_MAC | SET_VLAN))
		write_link(ctx, w, t);
	if (w->flags & (ADDRESS_FIELDS | DEC_TTL))
		change = t->version == 4 ? write_ip4(ctx, w, t) : write_ip6(ctx, w, t);
	if (w->flags & TRANSPORT_FIELDS)
		write_transport(ctx, w, t, change);
	return 0;
}

static __always_inline enum translated translate(struct xdp_md *ctx, __u64 decision)
{
	struct rewrite *w = decision_rewrite(decision);
	struct parts t = {};

	if (!w)
		return TRANSLATE_STALE;
	if (!w->flags)
		return TRANSLATED;
	if (check_rewrite(ctx, w, &t) != TRANSLATED)
		return TRANSLATE_SLOW;
	write_rewrite(ctx, w, &t);
	return TRANSLATED;
}

#endif
