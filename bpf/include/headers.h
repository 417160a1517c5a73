/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef PENSTOCK_HEADERS_H
#define PENSTOCK_HEADERS_H

#include <linux/types.h>
#include <stdbool.h>

/* Headers as they stand in a frame, and the numbers in them. The kernel's own declarations would bring bit fields, whose order
 * depends on the machine, and the C library. */

struct vlan_header {
	__be16 tci;
	__be16 next;
};

struct ip4_header {
	__u8 version_ihl;
	__u8 tos;
	__be16 length;
	__be16 id;
	__be16 fragment;
	__u8 ttl;
	__u8 proto;
	__be16 sum;
	__be32 src;
	__be32 dst;
};

struct ip6_header {
	__u8 version_class;
	__u8 class_label[3];
	__be16 length;
	__u8 next;
	__u8 hops;
	__be32 src[4];
	__be32 dst[4];
};

struct ip6_extension {
	__u8 next;
	__u8 length;        /* unit depends on the header */
	__u8 kind;          /* routing header; fragment header: offset and flags, upper byte */
	__u8 segments_left; /* routing header; fragment header: lower byte */
	__be32 fragment_id; /* fragment header */
};

struct tcp_header {
	__be16 sport;
	__be16 dport;
	__be32 seq;
	__be32 ack;
	__u8 offset;
	__u8 flags;
	__be16 window;
	__be16 sum;
	__be16 urgent;
};

struct udp_header {
	__be16 sport;
	__be16 dport;
	__be16 length;
	__be16 sum;
};

struct icmp_header {
	__u8 type;
	__u8 code;
	__be16 sum;
	__be16 id; /* echo */
	__be16 seq;
};

/* IANA protocol numbers (linux/in.h would drag the C library in). */
enum {
	PROTO_HOPOPTS = 0,
	PROTO_ICMP = 1,
	PROTO_TCP = 6,
	PROTO_UDP = 17,
	PROTO_ROUTING = 43,
	PROTO_FRAGMENT = 44,
	PROTO_AH = 51,
	PROTO_ICMPV6 = 58,
	PROTO_DSTOPTS = 60,
};

enum {
	TCP_FIN = 0x01,
	TCP_SYN = 0x02,
	TCP_RST = 0x04,
	TCP_ACK = 0x10,
};

enum {
	IP4_DONT_FRAGMENT = 0x4000,
	IP4_MORE_FRAGMENTS = 0x2000,
	IP4_FRAGMENT_OFFSET = 0x1fff,
	IP6_MORE_FRAGMENTS = 0x0001,
	IP6_FRAGMENT_OFFSET = 0xfff8,
};

enum icmp_kind {
	ICMP_OTHER,
	ICMP_ECHO,
	ICMP_ERROR,
	ICMP_NEIGHBOR,
};

static __always_inline enum icmp_kind icmp_kind(__u8 proto, __u8 type)
{
	if (proto == PROTO_ICMP) {
		switch (type) {
		case 0: case 8:
			return ICMP_ECHO;
		case 3: case 4: case 5: case 11: case 12:
			return ICMP_ERROR;
		}
		return ICMP_OTHER;
	}
	switch (type) {
	case 128: case 129:
		return ICMP_ECHO;
	case 1: case 2: case 3: case 4:
		return ICMP_ERROR;
	case 130 ... 137: /* MLD, router and neighbour discovery, redirect */
	case 141: case 142: /* inverse discovery */
	case 143: /* MLDv2 */
	case 148: case 149: /* SEND */
	case 151 ... 153: /* multicast routers */
		return ICMP_NEIGHBOR;
	}
	return ICMP_OTHER;
}

#endif
