/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef PENSTOCK_GATE_H
#define PENSTOCK_GATE_H

#include "event.h"
#include "exit.h"
#include "maps.h"
#include "parse.h"

/* What is dropped before anything else is looked at: screens, then lists, then rates.
 *
 * Lists. A prefix is an entry of a hash by address and length. Which lengths are worth a look says one code in gate_dir4, by
 * the first 24 bits of an IPv4 address, or a few slots of gate_slots6. These may name a length too many (while a change is under way,
 * and where hashes meet), never one too few.
 *
 * A change is one write to gate_epoch. What it adds is in the maps before, with born one epoch ahead; what it removes is marked dead
 * in that epoch, and goes from the maps when no program that read the old epoch runs any more. A packet reads the epoch once. */

enum { GATE_PASSED = -1 };

/* Who sent a packet: not what an ICMP error quotes. */
struct gate_sender {
	__be32 addr[4];
	__u8 family;
	__u8 land; /* source and destination are the same */
	__u16 pad;
};

enum {
	PROTO_IGMP = 2,
	GATE_MAX_LENGTH4 = 32,
};

static __always_inline __u64 gate_now(void)
{
	__u32 i = 0;
	__u64 *epoch = bpf_map_lookup_elem(&gate_epoch, &i);

	return epoch ? *(volatile __u64 *)epoch : 0;
}

static __always_inline struct gate_settings *gate_settings(__u64 epoch)
{
	__u32 i = epoch & 1;

	return bpf_map_lookup_elem(&gate_options, &i);
}

/* All that a gate without anything in it costs. */
static __always_inline bool gate_open(void)
{
	struct gate_settings *s = gate_settings(gate_now());

	return s && s->flags;
}

/* The only way out for packets that the gate drops. */
static __always_inline int gate_drop(struct xdp_md *ctx, const struct packet *p, enum reason reason)
{
	event_dropped(p, bpf_ktime_get_coarse_ns(), reason);
	return steer_exit(ctx, VERDICT_DROP, reason);
}

/* Number of the highest bit that is set; x is not 0. Like what follows a global function (see parse.h): else the verifier walks each
 * of its paths in each turn of a loop. */
__noinline __u32 highest_bit(__u64 x)
{
	__u32 n = 0;

	if (x >> 32) {
		n += 32;
		x >>= 32;
	}
	if (x >> 16) {
		n += 16;
		x >>= 16;
	}
	if (x >> 8) {
		n += 8;
		x >>= 8;
	}
	if (x >> 4) {
		n += 4;
		x >>= 4;
	}
	if (x >> 2) {
		n += 2;
		x >>= 2;
	}
	return n + (x >> 1);
}

/* Whether an entry counts, and if so a hit of it. */
static __always_inline bool gate_hit(struct gate_entry *e, __u64 epoch)
{
	__u64 dead = e->dead;

	if (e->born > epoch || (dead && dead <= epoch))
		return false;
	/* Not the coarse clock: an entry ends when it was said to. */
	if (e->expires && bpf_ktime_get_ns() >= e->expires)
		return false;
	__sync_fetch_and_add(&e->hits, 1);
	return true;
}

__noinline int gate_try4(__u32 addr, __u32 len, __u32 list, __u64 epoch)
{
	struct gate_key4 k = {.addr = bpf_htonl(addr & (__u32)(0xffffffff00000000ULL >> (len & 63))), .len = len, .list = list};
	struct gate_entry *e = bpf_map_lookup_elem(&gate_list4, &k);

	return e && gate_hit(e, epoch);
}

/* Whether addr, in host byte order, is on a list, as prefixes of these lengths, the longest first. */
__noinline int gate_find4(__u32 addr, __u64 lengths, __u32 list, __u64 epoch)
{
	for (int i = 0; i <= GATE_MAX_LENGTH4; i++) {
		__u32 len;

		if (!lengths)
			return 0;
		len = highest_bit(lengths) & 63;
		lengths &= ~(1ULL << len);
		if (gate_try4(addr, len, list, epoch))
			return 1;
	}
	return 0;
}

__noinline int gate_try6(const struct gate_sender *from, __u32 len, __u32 list, __u64 epoch)
{
	struct gate_key6 k __attribute__((aligned(8))) = {.list = list, .len = len};
	struct gate_entry *e;
	__u64 half, mask;

	if (!from)
		return 0;
	__builtin_memcpy(&half, from->addr, sizeof(half));
	mask = len >= 64 ? ~0ULL : ~(~0ULL >> (len & 63));
	half &= bpf_cpu_to_be64(mask);
	__builtin_memcpy(k.addr, &half, sizeof(half));
	if (len > 64) {
		__builtin_memcpy(&half, from->addr + 2, sizeof(half));
		mask = len >= 128 ? ~0ULL : ~(~0ULL >> (len & 63));
		half &= bpf_cpu_to_be64(mask);
		__builtin_memcpy(k.addr + 2, &half, sizeof(half));
	}
	e = bpf_map_lookup_elem(&gate_list6, &k);
	return e && gate_hit(e, epoch);
}

/* As gate_find4, for lengths base to base + 63. */
__noinline int gate_find6(const struct gate_sender *from, __u64 lengths, __u32 base, __u32 list, __u64 epoch)
{
	for (int i = 0; i < 64; i++) {
		__u32 n;

		if (!lengths)
			return 0;
		n = highest_bit(lengths) & 63;
		lengths &= ~(1ULL << n);
		if (gate_try6(from, base + n, list, epoch))
			return 1;
	}
	return 0;
}

static __always_inline __u32 gate_mix(__u32 h, __u32 word)
{
	h = (h ^ word) * 0x85ebca6b;
	return h ^ h >> 15;
}

static __always_inline void gate_slot6(__u32 hash, int shift, struct gate_lengths *l)
{
	__u32 i = hash * 0xc2b2ae35 >> (32 - GATE_SLOT_BITS6);
	struct gate_lengths *slot = bpf_map_lookup_elem(&gate_slots6, &i);

	if (slot) {
		l->list[GATE_DENY] |= slot->list[GATE_DENY] << shift;
		l->list[GATE_ALLOW] |= slot->list[GATE_ALLOW] << shift;
	}
}

enum { GATE_LISTED_ALLOW = 1, GATE_LISTED_DENY = 2 };

__noinline int gate_lists4(__be32 source, __u64 epoch)
{
	__u32 addr = bpf_ntohl(source), i = addr >> 13;
	__u16 *row = bpf_map_lookup_elem(&gate_dir4, &i);
	struct gate_lengths *l;

	if (!row)
		return 0;
	i = row[addr >> 8 & (GATE_DIR4_ROW - 1)];
	if (!i)
		return 0;
	l = bpf_map_lookup_elem(&gate_codes, &i);
	if (!l)
		return 0;
	if (l->list[GATE_ALLOW] && gate_find4(addr, l->list[GATE_ALLOW], GATE_ALLOW, epoch))
		return GATE_LISTED_ALLOW;
	if (l->list[GATE_DENY] && gate_find4(addr, l->list[GATE_DENY], GATE_DENY, epoch))
		return GATE_LISTED_DENY;
	return 0;
}

__noinline int gate_lists6(const struct gate_sender *from, __u64 epoch)
{
	struct gate_settings *s = gate_settings(epoch);
	struct gate_lengths lo, hi = {}, host = {};
	__u32 groups, h;
	const __be32 *a;

	if (!from || !s)
		return 0;
	a = from->addr;
	lo = s->short6;
	groups = s->groups6;
	h = gate_mix(16, a[0] & bpf_htonl(0xffff0000));
	if (groups & 1 << 0)
		gate_slot6(h, 16, &lo);
	h = gate_mix(32, a[0]);
	if (groups & 1 << 1)
		gate_slot6(h, 32, &lo);
	if (groups & 1 << 2)
		gate_slot6(gate_mix(h, a[1] & bpf_htonl(0xffff0000)), 48, &lo);
	h = gate_mix(h, a[1]);
	if (groups & 1 << 3)
		gate_slot6(h, 0, &hi);
	if (groups & 1 << 4)
		gate_slot6(gate_mix(gate_mix(h, a[2]), a[3]), 0, &host);

#pragma unroll
	for (int list = GATE_ALLOW; list >= GATE_DENY; list--) {
		if ((host.list[list] & 1 && gate_try6(from, 128, list, epoch)) ||
		    (hi.list[list] && gate_find6(from, hi.list[list], 64, list, epoch)) ||
		    (lo.list[list] && gate_find6(from, lo.list[list], 0, list, epoch)))
			return list == GATE_ALLOW ? GATE_LISTED_ALLOW : GATE_LISTED_DENY;
	}
	return 0;
}

static __always_inline __u64 gate_mix64(__u64 h, __u64 word)
{
	h = (h ^ word) * 0x9e3779b97f4a7c15ULL;
	return h ^ h >> 29;
}

static __always_inline __u64 gate_latest(const struct gate_source *w)
{
	__u64 t = w->clock[0];

	if ((__s64)(w->clock[1] - t) > 0)
		t = w->clock[1];
	if ((__s64)(w->clock[2] - t) > 0)
		t = w->clock[2];
	return t;
}

/* Takes what the packet costs out of its source's buckets, or, if one of them has too little, nothing: GATE_PASSED or the reason.
 *
 * A set of sources that is full forgets the one whose buckets are the fullest. If they are full altogether, nothing is lost; if not,
 * the newcomer takes over what was used up. So a source that was forgotten never comes back to more than it had left, however many
 * others an attacker makes up. The lock is for that: finding, forgetting and taking are one step, in a few dozen
 * instructions, on one set of 16384. */
__noinline int gate_rates(const struct gate_sender *from, __u64 bytes, int syn, __u64 epoch)
{
	struct gate_settings *s = gate_settings(epoch);
	__u64 now = bpf_ktime_get_coarse_ns() * GATE_RATE_UNIT;
	__u64 cost[GATE_BUCKETS], burst[GATE_BUCKETS], clock[GATE_BUCKETS];
	int reason = GATE_PASSED;
	struct gate_source *w;
	struct gate_set *set;
	const __be32 *a;
	__u64 tag;
	__u32 i;

	if (!from || !s)
		return GATE_PASSED;
	a = from->addr;
	tag = s->seed;
	if (from->family == 4) {
		tag = gate_mix64(gate_mix64(tag, 4), a[0] & s->mask4);
	} else {
		tag = gate_mix64(tag, (__u64)(a[0] & s->mask6[0]) << 32 | (a[1] & s->mask6[1]));
		tag = gate_mix64(tag, (__u64)(a[2] & s->mask6[2]) << 32 | (a[3] & s->mask6[3]));
	}
	tag = gate_mix64(tag, s->seed);
	cost[GATE_PACKETS] = s->flags & GATE_RATE_PACKETS ? s->rate[GATE_PACKETS].cost >> 16 : 0;
	cost[GATE_BYTES] = s->flags & GATE_RATE_BYTES ? bytes * s->rate[GATE_BYTES].cost >> 16 : 0;
	cost[GATE_SYNS] = 0;
	if (s->flags & GATE_RATE_SYNS && syn)
		cost[GATE_SYNS] = s->rate[GATE_SYNS].cost >> 16;
	burst[0] = s->rate[0].burst;
	burst[1] = s->rate[1].burst;
	burst[2] = s->rate[2].burst;

	i = tag >> 32 & s->sets;
	set = bpf_map_lookup_elem(&gate_sources, &i);
	if (!set)
		return GATE_PASSED;
	bpf_spin_lock(&set->lock);
	if (set->way[0].tag == tag) {
		w = &set->way[0];
	} else if (set->way[1].tag == tag) {
		w = &set->way[1];
	} else if (set->way[2].tag == tag) {
		w = &set->way[2];
	} else if (set->way[3].tag == tag) {
		w = &set->way[3];
	} else {
		__u64 least = gate_latest(&set->way[0]), t;

		w = &set->way[0];
		t = gate_latest(&set->way[1]);
		if ((__s64)(least - t) > 0) {
			least = t;
			w = &set->way[1];
		}
		t = gate_latest(&set->way[2]);
		if ((__s64)(least - t) > 0) {
			least = t;
			w = &set->way[2];
		}
		t = gate_latest(&set->way[3]);
		if ((__s64)(least - t) > 0) {
			least = t;
			w = &set->way[3];
		}
		w->tag = tag;
		w->clock[0] = w->clock[1] = w->clock[2] = least;
	}
#pragma unroll
	for (int b = 0; b < GATE_BUCKETS; b++) {
		clock[b] = w->clock[b];
		if ((__s64)(clock[b] - now) < 0)
			clock[b] = now;
		clock[b] += cost[b];
		if (cost[b] && clock[b] - now > burst[b] && reason == GATE_PASSED)
			reason = REASON_GATE_RATE_PACKETS + b;
	}
	if (reason == GATE_PASSED) {
		w->clock[0] = clock[0];
		w->clock[1] = clock[1];
		w->clock[2] = clock[2];
	}
	bpf_spin_unlock(&set->lock);
	return reason;
}

/* RFC 9293 and RFC 3168 leave these: SYN (with neither FIN nor RST), RST (without FIN), and ACK with anything else. */
static __always_inline bool gate_odd_flags(__u8 f)
{
	if (f & TCP_SYN)
		return f & (TCP_FIN | TCP_RST);
	if (f & TCP_RST)
		return f & TCP_FIN;
	return !(f & TCP_ACK);
}

static __always_inline bool gate_odd_source(const struct gate_sender *from)
{
	__be32 first = from->addr[0];

	if (from->family == 4)
		return (first & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000) || first == 0xffffffff;
	return (first & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
}

static __always_inline int gate_screens(const struct packet *p, const struct gate_sender *from, __u32 flags, int parsed)
{
	if (parsed == PARSED_BAD) {
		switch (p->reason) {
		case REASON_TINY_FRAGMENT:
			if (flags & GATE_SCREEN_FRAGMENTS)
				return REASON_GATE_TINY_FRAGMENT;
			break;
		case REASON_TRUNCATED:
		case REASON_IP_HEADER_LENGTH:
		case REASON_IP_LENGTH:
		case REASON_TCP_OFFSET:
		case REASON_UDP_LENGTH:
			if (flags & GATE_SCREEN_LENGTHS)
				return REASON_GATE_LENGTH;
		}
	}
	if (!from->family)
		return GATE_PASSED;
	if (flags & GATE_SCREEN_SOURCE && gate_odd_source(from))
		return REASON_GATE_SOURCE;
	if (flags & GATE_SCREEN_LAND && from->land)
		return REASON_GATE_LAND;
	if (flags & GATE_SCREEN_FLAGS && parsed == PARSED_FLOW && p->key.proto == PROTO_TCP && gate_odd_flags(p->tcp_flags))
		return REASON_GATE_TCP_FLAGS;
	/* Every IGMP message has a router alert: it is to IPv4 what MLD is to IPv6. */
	if (flags & GATE_SCREEN_OPTIONS && p->options && !(from->family == 4 && p->key.proto == PROTO_IGMP))
		return REASON_GATE_IP_OPTIONS;
	return GATE_PASSED;
}

static __always_inline void gate_from(struct gate_sender *from, const __be32 *src, const __be32 *dst, int words)
{
	__be32 differ = 0;

#pragma unroll
	for (int i = 0; i < words; i++) {
		from->addr[i] = src[i];
		differ |= src[i] ^ dst[i];
	}
	from->land = !differ;
}

/* A packet without a sender (not IP, or cut before the addresses) has family 0. */
static __always_inline void gate_find_sender(struct xdp_md *ctx, const struct packet *p, struct gate_sender *from)
{
	struct cursor c;

	from->family = p->key.family;
	if (!p->quotes) {
		gate_from(from, p->key.src, p->key.dst, 4);
		return;
	}
	c = cursor_at(ctx, sizeof(struct ethhdr) + p->tags * sizeof(struct vlan_header));
	if (p->key.family == 4) {
		struct ip4_header *ip = take(&c, sizeof(*ip));

		if (ip)
			gate_from(from, &ip->src, &ip->dst, 1);
	} else {
		struct ip6_header *ip = take(&c, sizeof(*ip));

		if (ip)
			gate_from(from, ip->src, ip->dst, 4);
	}
}

/* parsed is what parse said of *p. Returns GATE_PASSED, or the reason to drop it. A global function (see parse.h). */
__noinline int gate(struct xdp_md *ctx, struct packet *p, int parsed)
{
	__u64 epoch = gate_now();
	struct gate_settings *s = gate_settings(epoch);
	struct gate_sender from = {};
	int reason, listed = 0, syn;

	if (!p)
		return GATE_PASSED;
	/* What the wire itself needs is nobody's to cut: ARP and all that is not IP, neighbour discovery, MLD. */
	if (!s || (parsed == PARSED_OTHER && (!p->key.family || p->reason == REASON_ICMP_NEIGHBOR)))
		return GATE_PASSED;
	gate_find_sender(ctx, p, &from);
	if (s->flags & GATE_SCREENS) {
		reason = gate_screens(p, &from, s->flags, parsed);
		if (reason != GATE_PASSED)
			return reason;
	}
	if (from.family == 4) {
		if (s->flags & GATE_LIST4)
			listed = gate_lists4(from.addr[0], epoch);
	} else if (from.family == 6) {
		if (s->flags & GATE_LIST6)
			listed = gate_lists6(&from, epoch);
	} else {
		return GATE_PASSED;
	}
	if (listed == GATE_LISTED_DENY)
		return REASON_GATE_DENIED;
	if (!(s->flags & GATE_RATES) || listed == GATE_LISTED_ALLOW)
		return GATE_PASSED;
	syn = parsed == PARSED_FLOW && p->key.proto == PROTO_TCP && (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
	return gate_rates(&from, frame_len(ctx), syn, epoch);
}

#endif
