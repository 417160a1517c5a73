/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef PENSTOCK_RULES_H
#define PENSTOCK_RULES_H

#include "maps.h"
#include "options.h"
#include "parse.h"

/* ports: 1 if the packet has them. Zero is a match. */
static __always_inline __u32 rule_differs(const struct rule *r, const struct flow_key *k, __u32 ports, __u32 sport, __u32 dport)
{
	__u32 differs = 0, outside;

#pragma unroll
	for (int i = 0; i < 4; i++) {
		differs |= (k->src[i] ^ r->src[i]) & r->src_mask[i];
		differs |= (k->dst[i] ^ r->dst[i]) & r->dst_mask[i];
	}
	/* The sign bit of a difference of two 16-bit numbers says which one is larger. */
	outside = (sport - r->sport_lo) | (r->sport_hi - sport) | (dport - r->dport_lo) | (r->dport_hi - dport);
	return differs | (r->ports & (outside >> 31 | !ports));
}

enum { NO_MATCH = -1 };

/* The first rule that matches the packet: its chain's depth << 24 | its action << 16 | its chain, or NO_MATCH. A global function (see parse.h). */
__noinline int rule_find(const struct packet *p)
{
	const struct flow_key *k;
	__u32 zero = 0, ports, sport, dport;
	__u32 *active = bpf_map_lookup_elem(&rules_active, &zero);
	struct rule_list *l;

	if (!p || !active)
		return NO_MATCH;
	l = bpf_map_lookup_elem(&rules, active);
	if (!l)
		return NO_MATCH;
	k = &p->key;
	ports = k->proto == PROTO_TCP || k->proto == PROTO_UDP;
	sport = bpf_ntohs(k->sport);
	dport = bpf_ntohs(k->dport);
	for (__u32 i = 0; i < MAX_RULES && i < l->count; i++) {
		struct rule *r = &l->rule[i];

		if (((port_id ^ r->from) & r->from_mask) | ((k->proto ^ r->proto) & r->proto_mask) |
		    ((k->family ^ r->family) & r->family_mask))
			continue;
		if (!rule_differs(r, k, ports, sport, dport))
			return r->depth << 24 | r->action << 16 | r->chain;
	}
	return NO_MATCH;
}

#endif
