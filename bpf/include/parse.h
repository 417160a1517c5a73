/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef PENSTOCK_PARSE_H
#define PENSTOCK_PARSE_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "headers.h"
#include "reasons.h"
#include "types.h"

/* Cursor parsers: each takes its header off the front, checks it against the frame, and hands on to the next. They never
 * write the frame. A length that a header claims is checked twice: as a number against the IP packet (Ethernet pads short
 * frames, and padding is nobody's data) and as a pointer against the frame (for the verifier).
 *
 * parse, parse_transport, parse_quote and parse_extensions are global functions: the verifier looks at each once, with
 * unknown arguments, instead of once per path that leads to it (inlined, kernel 6.18 and clang 14: more than 340,000
 * instructions before it gave up). What one hands to the next is an offset into the frame. */

enum parsed {
	PARSED_FLOW,     /* key is complete */
	PARSED_FRAGMENT, /* a later fragment: key has addresses and protocol, fragment_id is set */
	PARSED_ERROR,    /* an ICMP error: key is that of the quoted packet */
	PARSED_OTHER,    /* nothing to steer by; reason says why */
	PARSED_BAD,      /* malformed; reason says how */
};

/* Small, since the verifiers before 6.8 round each function's stack up to 32 bytes, and 512 must do for three. */
struct packet {
	struct flow_key key;
	__be32 fragment_id;
	__u16 chain;   /* of the flow, once a rule has named one */
	__u16 at;      /* TCP header, or any behind IPv6 extension headers: offset, at most MAX_OFFSET, */
	__u32 len;     /* and bytes of the IP packet from there on; steer, of a new flow: of the frame */
	__u8 reason;   /* enum reason */
	__u8 fragment : 1; /* first of several fragments */
	__u8 options : 1;  /* IPv4 options, IPv6 hop-by-hop options or routing header */
	__u8 quotes : 1;   /* key is that of a packet that an ICMP error quotes */
	__u8 tags : 2;     /* VLAN tags before the IP header */
	__u8 cookie : 1;   /* gives back a good SYN cookie, */
	__u8 size : 2;     /* which stands for this segment size */
	__u8 tcp_flags;
	__u8 depth : 2;  /* enum depth, of the chain that a rule has named */
	__u8 passed : 1; /* a new flow is to begin as ACTION_PASSED */
};

struct cursor {
	void *pos;
	void *end;
};

/* No header begins beyond this offset: Ethernet, tags, ICMP, and two IP headers with MAX_IP6_EXTENSIONS of 2048 bytes each make
 * 32878. The verifier does not know, and takes offsets into a packet up to 65535. */
enum { MAX_OFFSET = 0x8fff };

static __always_inline struct cursor cursor_at(struct xdp_md *ctx, __u32 at)
{
	struct cursor c = {.pos = (void *)(long)ctx->data, .end = (void *)(long)ctx->data_end};

	__u64 offset = at;

	/* Keeps clang 14 from comparing the lower half and adding the whole, of which the verifier then knows no bound. */
	barrier_var(offset);
	if (offset > MAX_OFFSET)
		offset = MAX_OFFSET;
	c.pos += offset;
	return c;
}

static __always_inline void *take(struct cursor *c, __u32 len)
{
	void *head = c->pos;

	if (head + len > c->end)
		return NULL;
	c->pos = head + len;
	return head;
}

/* A length out of a header. The verifiers of 6.1 to 6.18 know nothing of what a byte swap gives, not even that it has 16 bits,
 * and refuses to add it to a pointer: the mask says so, and the barrier keeps clang from leaving the mask out. */
static __always_inline __u32 length16(__be16 length)
{
	__u32 n = bpf_ntohs(length);

	barrier_var(n);
	return n & 0xffff;
}

static __always_inline int bad(struct packet *p, enum reason reason)
{
	p->reason = reason;
	return PARSED_BAD;
}

static __always_inline int other(struct packet *p, enum reason reason)
{
	p->reason = reason;
	return PARSED_OTHER;
}

/* A transport header that does not fit is a truncated packet, or, in a first fragment, an attempt to hide it. */
static __always_inline int cut(struct packet *p)
{
	return bad(p, p->fragment ? REASON_TINY_FRAGMENT : REASON_TRUNCATED);
}

/* A fragment of len bytes at an offset. header: what counts against the 64 KiB of the whole packet besides. Returns PARSED_FLOW
 * for the first one, where parsing goes on, PARSED_FRAGMENT or PARSED_BAD. */
static __always_inline int parse_fragment(struct packet *p, __u8 next, __u32 offset, __u32 len, __u32 header, bool more)
{
	if (!len || (more && len % 8) || header + offset + len > 0xffff)
		return bad(p, REASON_IP_LENGTH);
	/* RFC 3128: nothing honest puts a boundary inside the first 16 bytes of TCP. */
	if (offset == 8 && next == PROTO_TCP)
		return bad(p, REASON_TINY_FRAGMENT);
	if (offset)
		return PARSED_FRAGMENT;
	p->fragment = 1;
	return PARSED_FLOW;
}

static __always_inline bool is_extension(__u8 next)
{
	return next == PROTO_HOPOPTS || next == PROTO_ROUTING || next == PROTO_DSTOPTS || next == PROTO_AH || next == PROTO_FRAGMENT;
}

/* Walks IPv6 extension headers at offset at, of an IP packet with len bytes from there on. *p: key.proto is the kind of the first
 * in and the transport protocol out; at and len are those of the transport header. Returns PARSED_FLOW, PARSED_FRAGMENT
 * (nothing behind the fragment header can be read) or PARSED_BAD. */
__noinline int parse_extensions(struct xdp_md *ctx, struct packet *p, __u32 at, __u32 len)
{
	bool fragmented = false;
	__u8 first;
	int r = PARSED_BAD;

	if (!p)
		return PARSED_BAD;
	first = p->key.proto;
	p->at = at;
	p->len = len;
	if (!is_extension(first))
		return PARSED_FLOW;
	/* The condition stands at the end: in 6.1 a loop that is entered in its middle is one that the verifier refuses (back-edge). */
	for (int i = 0; i < MAX_IP6_EXTENSIONS; i++) {
		struct ip6_extension *x;
		struct cursor c;
		__u32 size;
		__u8 next;

		/* From header to header all goes by way of *p, of whose contents verifiers know nothing. In registers each order of
		 * headers is a state of its own: 202,338 of the 317,948 instructions that 7.3 looked at were those of this loop. */
		barrier();
		next = p->key.proto;
		at = p->at;
		len = p->len;
		c = cursor_at(ctx, at);
		x = take(&c, sizeof(*x));
		if (!x || len < sizeof(*x)) {
			r = cut(p);
			goto undone;
		}
		if (next == PROTO_AH)
			size = ((__u32)x->length + 2) * 4;
		else if (next == PROTO_FRAGMENT)
			size = sizeof(*x);
		else
			size = ((__u32)x->length + 1) * 8;
		if (next == PROTO_HOPOPTS && i) /* RFC 8200, 4.1 */
			break;
		if ((next == PROTO_HOPOPTS || next == PROTO_ROUTING) && !p->quotes)
			p->options = 1;
		if (next == PROTO_ROUTING && x->segments_left) {
			if (!x->kind) /* type 0: RFC 5095 */
				break;
			/* Not at its destination yet, and the address of that is not in the IPv6 header: no flow of ours. */
			return PARSED_FLOW;
		}
		if (next == PROTO_FRAGMENT && fragmented)
			break;
		if (size > len) {
			r = cut(p);
			goto undone;
		}
		p->len = len - size;
		p->at = at + size;
		if (next == PROTO_FRAGMENT) {
			__u32 f = (__u32)x->kind << 8 | x->segments_left;

			fragmented = true;
			/* Offset 0 and no more: an atomic fragment is a whole packet (RFC 6946). */
			if (f & (IP6_FRAGMENT_OFFSET | IP6_MORE_FRAGMENTS)) {
				r = parse_fragment(p, x->next, f & IP6_FRAGMENT_OFFSET, len - size, 0, f & IP6_MORE_FRAGMENTS);
				p->fragment_id = x->fragment_id;
				if (r != PARSED_FLOW)
					goto undone;
			}
		}
		p->key.proto = x->next;
		if (!is_extension(x->next))
			return PARSED_FLOW;
	}
	r = bad(p, REASON_IP6_EXTENSIONS);
undone:
	p->key.proto = first;
	return r;
}

/* The packet an ICMP error quotes, at offset at: its header and at least 8 bytes more, usually cut there. Fills key as that packet
 * had it. The lengths it states are those of the whole packet, so the frame bounds the reading. Returns PARSED_ERROR, or
 * PARSED_OTHER if it cannot be matched with a flow. */
__noinline int parse_quote(struct xdp_md *ctx, struct packet *p, __u32 at)
{
	struct cursor c = cursor_at(ctx, at);
	struct icmp_header *icmp;
	struct flow_key *k;
	__be16 *ports;

	if (!p)
		return PARSED_BAD;
	k = &p->key;
	p->quotes = 1;
	p->fragment = 0;
	p->reason = REASON_ICMP_ERROR_UNKNOWN;
	if (k->family == 4) {
		struct ip4_header *ip = take(&c, sizeof(*ip));
		__u32 size;

		if (!ip || ip->version_ihl >> 4 != 4)
			return PARSED_OTHER;
		size = (ip->version_ihl & 0xf) * 4;
		if (size < sizeof(*ip) || ip->fragment & bpf_htons(IP4_FRAGMENT_OFFSET))
			return PARSED_OTHER;
		k->src[0] = ip->src;
		k->dst[0] = ip->dst;
		k->proto = ip->proto;
		at += size;
	} else {
		struct ip6_header *ip = take(&c, sizeof(*ip));

		if (!ip || ip->version_class >> 4 != 6)
			return PARSED_OTHER;
		__builtin_memcpy(k->src, ip->src, sizeof(k->src));
		__builtin_memcpy(k->dst, ip->dst, sizeof(k->dst));
		k->proto = ip->next;
		if (parse_extensions(ctx, p, at + sizeof(*ip), length16(ip->length)) != PARSED_FLOW)
			return other(p, REASON_ICMP_ERROR_UNKNOWN);
		at = p->at;
	}
	c = cursor_at(ctx, at);
	switch (k->proto) {
	case PROTO_TCP:
	case PROTO_UDP:
		ports = take(&c, 4);
		if (!ports)
			return PARSED_OTHER;
		k->sport = ports[0];
		k->dport = ports[1];
		return PARSED_ERROR;
	case PROTO_ICMP:
	case PROTO_ICMPV6:
		icmp = take(&c, sizeof(*icmp));
		if (!icmp || icmp_kind(k->proto, icmp->type) != ICMP_ECHO)
			return PARSED_OTHER;
		k->sport = k->dport = icmp->id;
		return PARSED_ERROR;
	}
	return PARSED_ERROR;
}

/* The transport header at offset at, of an IP packet with len bytes from there on. */
__noinline int parse_transport(struct xdp_md *ctx, struct packet *p, __u32 at, __u32 len)
{
	struct cursor c = cursor_at(ctx, at);
	struct icmp_header *icmp;
	struct tcp_header *tcp;
	struct udp_header *udp;
	struct flow_key *k;
	__u32 size;

	if (!p)
		return PARSED_BAD;
	k = &p->key;
	switch (k->proto) {
	case PROTO_TCP:
		tcp = take(&c, sizeof(*tcp));
		if (!tcp || len < sizeof(*tcp))
			return cut(p);
		size = (tcp->offset >> 4) * 4;
		if (size > len && p->fragment)
			return bad(p, REASON_TINY_FRAGMENT);
		if (size < sizeof(*tcp) || size > len)
			return bad(p, REASON_TCP_OFFSET);
		k->sport = tcp->sport;
		k->dport = tcp->dport;
		p->tcp_flags = tcp->flags;
		p->at = at;
		p->len = len;
		return PARSED_FLOW;
	case PROTO_UDP:
		udp = take(&c, sizeof(*udp));
		if (!udp || len < sizeof(*udp))
			return cut(p);
		size = length16(udp->length);
		/* The first fragment of a datagram states the length of all of it. */
		if (size < sizeof(*udp) || (size > len && !p->fragment))
			return bad(p, REASON_UDP_LENGTH);
		k->sport = udp->sport;
		k->dport = udp->dport;
		return PARSED_FLOW;
	case PROTO_ICMP:
	case PROTO_ICMPV6:
		/* ICMPv4 over IPv6 and the reverse do not exist: a protocol like any other. */
		if ((k->proto == PROTO_ICMP) != (k->family == 4))
			return PARSED_FLOW;
		icmp = take(&c, sizeof(*icmp));
		if (!icmp || len < sizeof(*icmp))
			return cut(p);
		switch (icmp_kind(k->proto, icmp->type)) {
		case ICMP_ECHO:
			k->sport = k->dport = icmp->id;
			return PARSED_FLOW;
		case ICMP_ERROR:
			return parse_quote(ctx, p, at + sizeof(*icmp));
		case ICMP_NEIGHBOR:
			return other(p, REASON_ICMP_NEIGHBOR);
		case ICMP_OTHER:
			return PARSED_FLOW;
		}
	}
	return PARSED_FLOW;
}

static __always_inline int parse_ip4(struct xdp_md *ctx, struct packet *p, __u32 at)
{
	struct cursor c = cursor_at(ctx, at);
	struct ip4_header *ip = take(&c, sizeof(*ip));
	struct flow_key *k = &p->key;
	__u32 size, len;
	__u16 f;

	if (!ip)
		return bad(p, REASON_TRUNCATED);
	if (ip->version_ihl >> 4 != 4)
		return bad(p, REASON_IP_VERSION);
	size = (ip->version_ihl & 0xf) * 4;
	if (size < sizeof(*ip))
		return bad(p, REASON_IP_HEADER_LENGTH);
	len = length16(ip->length);
	if (len < size || (void *)ip + len > c.end)
		return bad(p, REASON_IP_LENGTH);
	len -= size;
	p->options = size > sizeof(*ip);
	k->family = 4;
	k->src[0] = ip->src;
	k->dst[0] = ip->dst;
	k->proto = ip->proto;
	f = bpf_ntohs(ip->fragment);
	if (f & (IP4_FRAGMENT_OFFSET | IP4_MORE_FRAGMENTS)) {
		int r = parse_fragment(p, k->proto, (f & IP4_FRAGMENT_OFFSET) * 8, len, size, f & IP4_MORE_FRAGMENTS);

		p->fragment_id = ip->id;
		if (r != PARSED_FLOW)
			return r;
	}
	return parse_transport(ctx, p, at + size, len);
}

static __always_inline int parse_ip6(struct xdp_md *ctx, struct packet *p, __u32 at)
{
	struct cursor c = cursor_at(ctx, at);
	struct ip6_header *ip = take(&c, sizeof(*ip));
	struct flow_key *k = &p->key;
	__u32 len;
	int r;

	if (!ip)
		return bad(p, REASON_TRUNCATED);
	if (ip->version_class >> 4 != 6)
		return bad(p, REASON_IP_VERSION);
	len = length16(ip->length);
	/* No length and hop-by-hop options: a jumbogram (RFC 2675). */
	if (c.pos + len > c.end || (!len && ip->next == PROTO_HOPOPTS))
		return bad(p, REASON_IP_LENGTH);
	k->family = 6;
	__builtin_memcpy(k->src, ip->src, sizeof(k->src));
	__builtin_memcpy(k->dst, ip->dst, sizeof(k->dst));
	k->proto = ip->next;
	r = parse_extensions(ctx, p, at + sizeof(*ip), len);
	if (r != PARSED_FLOW)
		return r;
	return parse_transport(ctx, p, p->at, p->len);
}

static __always_inline bool is_vlan(__be16 ethertype)
{
	return ethertype == bpf_htons(ETH_P_8021Q) || ethertype == bpf_htons(ETH_P_8021AD);
}

/* Returns enum parsed. *p must be zero on entry. */
__noinline int parse(struct xdp_md *ctx, struct packet *p)
{
	struct cursor c = cursor_at(ctx, 0);
	struct ethhdr *eth = take(&c, sizeof(*eth));
	__u32 at = sizeof(*eth);
	__be16 ethertype;

	if (!p)
		return PARSED_BAD;
	if (!eth)
		return bad(p, REASON_TRUNCATED);
	ethertype = eth->h_proto;
#pragma unroll
	for (int i = 0; i < MAX_VLANS; i++) {
		struct vlan_header *tag;

		if (!is_vlan(ethertype))
			break;
		tag = take(&c, sizeof(*tag));
		if (!tag)
			return bad(p, REASON_TRUNCATED);
		at += sizeof(*tag);
		p->tags++;
		p->key.vlan[i] = bpf_ntohs(tag->tci) & 0xfff;
		ethertype = tag->next;
	}
	if (is_vlan(ethertype))
		return other(p, REASON_VLAN_DEPTH);
	if (ethertype == bpf_htons(ETH_P_IP))
		return parse_ip4(ctx, p, at);
	if (ethertype == bpf_htons(ETH_P_IPV6))
		return parse_ip6(ctx, p, at);
	return other(p, REASON_NOT_IP);
}

#endif
