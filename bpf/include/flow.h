/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef PENSTOCK_FLOW_H
#define PENSTOCK_FLOW_H

#include "maps.h"
#include "options.h"
#include "parse.h"

#define FRAGMENT_LIFETIME_NS (30ULL * 1000 * 1000 * 1000)

static __always_inline __u32 fmix32(__u32 h)
{
	h ^= h >> 16;
	h *= 0x85ebca6b;
	h ^= h >> 13;
	h *= 0xc2b2ae35;
	h ^= h >> 16;
	return h;
}

/* The same for both directions of a flow, and the same in Go (FlowHash):
 *	a = XOR of all 32-bit words of both addresses, read as big-endian numbers (IPv4 has one word an address)
 *	b = (source port XOR destination port) << 16 | protocol
 *	hash = fmix32(fmix32(a) XOR b), with fmix32 from MurmurHash3
 * It has no key: enough to spread flows, not enough for a hash table that an attacker may fill. */
static __always_inline __u32 flow_hash(const struct flow_key *k)
{
	__u32 a = 0;

#pragma unroll
	for (int i = 0; i < 4; i++)
		a ^= k->src[i] ^ k->dst[i];
	return fmix32(fmix32(bpf_ntohl(a)) ^ ((__u32)bpf_ntohs(k->sport ^ k->dport) << 16 | k->proto));
}

static __always_inline void flow_reverse(const struct flow_key *k, struct flow_key *r)
{
	*r = *k;
	__builtin_memcpy(r->src, k->dst, sizeof(r->src));
	__builtin_memcpy(r->dst, k->src, sizeof(r->dst));
	r->sport = k->dport;
	r->dport = k->sport;
}

static __always_inline __u64 decision_of(struct flow *f)
{
	return *(volatile __u64 *)&f->decision;
}

static __always_inline enum action decision_action(__u64 d)
{
	return d & 0xff;
}

/* 1 + port, or 0. */
static __always_inline __u32 decision_egress(__u64 d)
{
	return d >> DECISION_EGRESS_SHIFT & 0xff;
}

/* The rewrite that a decision names, or NULL: there is none, or it is another flow's by now. */
static __always_inline struct rewrite *decision_rewrite(__u64 d)
{
	__u32 i = d >> DECISION_REWRITE_SHIFT & DECISION_REWRITE_MASK;
	struct rewrite *w;

	if (!i)
		return NULL;
	w = bpf_map_lookup_elem(&rewrites, &i);
	if (!w || *(volatile __u32 *)&w->generation != d >> DECISION_GENERATION_SHIFT)
		return NULL;
	return w;
}

/* The decision that sends the packets of this direction to the chain. The element of rewrites stays. */
static __always_inline __u64 decision_to_chain(__u64 d)
{
	return d >> DECISION_REWRITE_SHIFT << DECISION_REWRITE_SHIFT;
}

/* The only place that knows where the other direction of a flow is: at the reverse key, unless addresses or ports are rewritten. */
static __always_inline void flow_other(const struct flow_key *k, __u64 decision, struct flow_key *other)
{
	struct rewrite *w = decision_rewrite(decision);

	if (w)
		*other = w->other;
	else
		flow_reverse(k, other);
}

static __always_inline bool same_key(const struct flow_key *a, const struct flow_key *b)
{
	const __u32 *x = (const __u32 *)a, *y = (const __u32 *)b;
	__u32 differs = 0;

#pragma unroll
	for (unsigned int i = 0; i < sizeof(*a) / 4; i++)
		differs |= x[i] ^ y[i];
	return !differs;
}

/* A total order of the two directions of a flow that both directions agree on: below 0 for the lower one, 0 if they are one. */
static __always_inline int flow_order(const struct flow_key *k)
{
#pragma unroll
	for (int i = 0; i < 4; i++) {
		if (k->src[i] != k->dst[i])
			return k->src[i] < k->dst[i] ? -1 : 1;
	}
	return (int)k->sport - (int)k->dport;
}

static __always_inline bool is_pure_syn(const struct packet *p)
{
	return (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/* A SYN on a flow that has seen FIN or RST begins a new connection on the same ports: forget the old one's flags, or the
 * new one would be expired as closed. The chain stays. A direction that is missing (its flow was being removed when it began) is
 * put back. Returns whether the old one had ended: RST, or both FINs. */
static __noinline bool flow_reopen(struct packet *p, struct flow *f, __u64 now)
{
	__u64 decision = decision_of(f);
	struct flow_key other_way;
	struct flow *r;
	bool ended;

	flow_other(&p->key, decision, &other_way);
	r = bpf_map_lookup_elem(&flows, &other_way);
	if (!r) {
		struct flow reply = {
			/* The two elements of a slot are neighbours. */
			.decision = (decision_to_chain(decision) ? decision_to_chain(decision) ^ 1 << DECISION_REWRITE_SHIFT : 0) |
				    (decision_action(decision) == ACTION_PASSED ? ACTION_PASSED : 0),
			.start = f->start,
			.last_seen = now,
			.hash = f->hash,
			.chain = f->chain,
			.in_port = NO_PORT,
			.reply = !f->reply,
			.depth = f->depth,
		};

		bpf_map_update_elem(&flows, &other_way, &reply, BPF_NOEXIST);
		r = f;
	}
	if (!((f->tcp_flags | r->tcp_flags) & (TCP_FIN | TCP_RST)))
		return false;
	ended = (f->tcp_flags | r->tcp_flags) & TCP_RST || f->tcp_flags & r->tcp_flags & TCP_FIN;
	if (ended)
		f->tracked = r->tracked = 0;
	r->tcp_flags = 0;
	r->start = now;
	r->last_seen = now;
	r->packets = 0;
	r->bytes = 0;
	f->tcp_flags = 0;
	f->start = now;
	f->packets = 0;
	f->bytes = 0;
	if (r != f) {
		r->reply = 1;
		f->reply = 0;
	}
	return ended;
}

/* If offload_flows has changed the decision meanwhile, that stands. */
static __always_inline void flow_to_chain(struct flow *f, __u64 d)
{
	__sync_val_compare_and_swap(&f->decision, d, decision_to_chain(d));
}

/* A SYN on an offloaded flow may begin another connection, and the stages want to see it: both directions go up again, until
 * the flow is offloaded anew. */
static __noinline void flow_recall(struct packet *p, struct flow *f, __u64 decision)
{
	struct flow_key other_way;
	struct flow *r;

	flow_other(&p->key, decision, &other_way);
	flow_to_chain(f, decision);
	r = bpf_map_lookup_elem(&flows, &other_way);
	if (r)
		flow_to_chain(r, decision_of(r));
}

/* The worker is silent, and on_exit open: whether a TCP packet of a flow of its chain passes. What is forwarded or inspected does. An
 * inspected connection is bypassed from then on: its stages have missed something. A terminated one is two, and their packets mean nothing to
 * the other end: they are dropped and will be sent again. But its SYN passes, if the server has not been heard of: it may lie in the socket,
 * and nobody has told the client anything. From then on the connection is that of the ends, whatever the worker does when it comes back. */
static __noinline bool flow_passes(struct packet *p, struct flow *f)
{
	__u64 decision = decision_of(f);
	struct flow_key other_way;
	struct flow *r;

	if (f->depth == DEPTH_FORWARD)
		return true;
	flow_other(&p->key, decision, &other_way);
	r = bpf_map_lookup_elem(&flows, &other_way);
	if (f->depth == DEPTH_TERMINATE && (!is_pure_syn(p) || f->reply || f->tracked || (r && r->packets)))
		return false;
	__sync_val_compare_and_swap(&f->decision, decision, decision_to_chain(decision) | ACTION_PASSED);
	if (r) {
		decision = decision_of(r);
		__sync_val_compare_and_swap(&r->decision, decision, decision_to_chain(decision) | ACTION_PASSED);
	}
	return true;
}

/* A SYN of a flow that no rule has sent to a chain: whether it begins another connection than the one that is remembered, which is then
 * forgotten. */
static __noinline bool flow_begins_again(struct packet *p, struct flow *f)
{
	struct flow_key other_way;
	struct flow *r;

	flow_reverse(&p->key, &other_way);
	r = bpf_map_lookup_elem(&flows, &other_way);
	if (!f->tracked && !((f->tcp_flags | (r ? r->tcp_flags : 0)) & (TCP_FIN | TCP_RST)))
		return false;
	bpf_map_delete_elem(&flows, &p->key);
	bpf_map_delete_elem(&flows, &other_way);
	return true;
}

/* How far from what is known of a direction its numbers may lie: more than what is lost in a row, and as little as can be, for it is what
 * somebody who sees nothing has to guess, in both numbers at once: one segment of 2^18. */
#define TRACK_NEAR (1U << 22)

static __always_inline bool track_near(__u32 n, __u32 known)
{
	return n - known + TRACK_NEAR < 2 * TRACK_NEAR;
}

/* Whether a reset of f has the number that the other direction acknowledged last, as it is when it answers a segment. */
static __noinline bool reset_answers(struct packet *p, struct flow *f, __u32 seq)
{
	__u64 decision = decision_of(f);
	struct rewrite *w = decision_rewrite(decision);
	struct flow_key other_way;
	struct flow *r;

	if (w && w->flags & ADD_SEQ)
		seq += w->seq;
	flow_other(&p->key, decision, &other_way);
	r = bpf_map_lookup_elem(&flows, &other_way);
	return r && r->tracked && r->acked == seq;
}

/* The flags of a segment that its flow is to remember. FIN and RST let it be forgotten early, and what goes on after that is not its
 * flow's any more, so they count only where the receiver would believe them: FIN in a segment that fits to those before, RST with the very
 * next sequence number (RFC 5961, section 3.2), or with that of a FIN which may not have been seen. Before its first acknowledgment nothing
 * is known of a direction, and all is believed; that takes back what was. A global function (see parse.h). */
__noinline int flow_track(struct xdp_md *ctx, struct packet *p, struct flow *f)
{
	struct tcp_header *tcp;
	struct cursor c;
	__u32 seq, end;
	__u8 flags;

	if (!p || !f)
		return 0;
	c = cursor_at(ctx, p->at);
	tcp = take(&c, sizeof(*tcp));
	if (!tcp)
		return p->tcp_flags;
	flags = tcp->flags;
	seq = bpf_ntohl(tcp->seq);
	if (flags & TCP_RST) {
		if (!f->tracked || seq == f->next || (f->tcp_flags & TCP_FIN && seq + 1 == f->next) || reset_answers(p, f, seq))
			return flags;
		return flags & ~(TCP_RST | TCP_FIN);
	}
	if (!(flags & TCP_ACK))
		return f->tracked ? flags & ~TCP_FIN : flags;
	/* The IP header says how long it is: a short frame is padded. */
	end = seq + p->len - (tcp->offset >> 4) * 4 + !!(flags & TCP_SYN) + (flags & TCP_FIN);
	if (!f->tracked) {
		f->next = end;
		f->acked = bpf_ntohl(tcp->ack);
		f->tracked = 1;
		__sync_fetch_and_and(&f->tcp_flags, ~(TCP_RST | TCP_FIN));
		return flags;
	}
	if (!track_near(end, f->next) || !track_near(bpf_ntohl(tcp->ack), f->acked))
		return flags & ~TCP_FIN;
	if ((__s32)(end - f->next) > 0)
		f->next = end;
	if ((__s32)(bpf_ntohl(tcp->ack) - f->acked) > 0)
		f->acked = bpf_ntohl(tcp->ack);
	return flags;
}

/* Counts p in its flow. Atomic, since RSS may move a flow from one queue to another, and veth does so freely. Returns whether p
 * begins the flow anew after its end. */
static __always_inline bool flow_count(struct xdp_md *ctx, struct packet *p, struct flow *f, __u64 bytes, __u64 now)
{
	bool anew = false;
	__u8 flags;

	if (p->key.proto == PROTO_TCP) {
		if (is_pure_syn(p))
			anew = flow_reopen(p, f, now);
		flags = flow_track(ctx, p, f);
		if ((f->tcp_flags & flags) != flags)
			__sync_fetch_and_or(&f->tcp_flags, flags);
	}
	__sync_fetch_and_add(&f->packets, 1);
	__sync_fetch_and_add(&f->bytes, bytes);
	f->last_seen = now;
	if (f->in_port != port_id)
		f->in_port = port_id;
	return anew;
}

/* Whether there is an entry at k that belongs with another one than other. */
static __noinline bool flow_is_others(struct flow_key *k, struct flow_key *other)
{
	struct flow *f = bpf_map_lookup_elem(&flows, k);
	struct flow_key its_other;

	if (!f)
		return false;
	flow_other(k, decision_of(f), &its_other);
	return !same_key(&its_other, other);
}

enum installed {
	INSTALLED,
	INSTALL_NO_ROOM,
	INSTALL_CONFLICT, /* the other direction's key is that of another flow */
};

#define EEXIST 17

/* Makes the entry of a new flow that of its first direction, which p is of, or of the other one. */
static __always_inline void flow_entry(struct flow *e, bool first, const struct packet *p)
{
	e->packets = first;
	e->bytes = first ? p->len : 0;
	e->tcp_flags = first ? p->tcp_flags : 0;
	e->in_port = first ? port_id : NO_PORT;
	e->reply = !first;
}

/* Writes both entries of a new flow, or none. The lower one goes first, whichever direction begins: if two CPUs see the two
 * ends begin at once, one of them wins both entries. p->chain is what counts in the end: that of an entry which was there already, p->len
 * the length of the frame. Not inlined: its entry would not fit into the stack besides a route; few arguments: they take stack too. */
static __noinline enum installed flow_install(struct packet *p, __u32 hash, __u64 now)
{
	struct flow_key other_way;
	struct flow entry = {
		.start = now,
		.last_seen = now,
		.decision = p->passed ? ACTION_PASSED : ACTION_CHAIN,
		.hash = hash,
		.chain = p->chain,
		.depth = p->depth,
	};
	int order = flow_order(&p->key);
	bool lower = order <= 0;
	struct flow_key *low, *high;
	struct flow *there;
	int err; /* not long: Linux 6.1 fills 32 bits of it only */

	flow_other(&p->key, 0, &other_way);
	low = lower ? &p->key : &other_way;
	high = lower ? &other_way : &p->key;
	flow_entry(&entry, lower, p);
	err = bpf_map_update_elem(&flows, low, &entry, BPF_NOEXIST);
	if (err == -EEXIST) {
		if (flow_is_others(low, high))
			return INSTALL_CONFLICT;
		there = bpf_map_lookup_elem(&flows, low);
		if (there)
			p->chain = entry.chain = there->chain;
		flow_entry(&entry, !lower, p);
		err = bpf_map_update_elem(&flows, high, &entry, BPF_NOEXIST);
		return !err || err == -EEXIST ? INSTALLED : INSTALL_NO_ROOM;
	}
	if (err)
		return INSTALL_NO_ROOM;
	/* Both ends the same address and port (a land packet): one entry is both directions. */
	if (order == 0)
		return INSTALLED;
	if (flow_is_others(high, low)) {
		bpf_map_delete_elem(&flows, low);
		return INSTALL_CONFLICT;
	}
	/* We own the lower one, so a higher one is left over from a pair that is being removed: replace it. */
	flow_entry(&entry, !lower, p);
	if (!bpf_map_update_elem(&flows, high, &entry, BPF_ANY))
		return INSTALLED;
	bpf_map_delete_elem(&flows, low);
	return INSTALL_NO_ROOM;
}

static __always_inline void fragment_key(const struct packet *p, struct fragment_key *k)
{
	__builtin_memset(k, 0, sizeof(*k));
	__builtin_memcpy(k->src, p->key.src, sizeof(k->src));
	__builtin_memcpy(k->dst, p->key.dst, sizeof(k->dst));
	k->id = p->fragment_id;
	k->proto = p->key.family == 4 ? p->key.proto : 0;
	k->family = p->key.family;
	k->vlan[0] = p->key.vlan[0];
	k->vlan[1] = p->key.vlan[1];
}

/* Notes what becomes of a first fragment, for those that follow it. decision may be a bare enum action. */
static __always_inline void fragment_note(const struct packet *p, __u64 decision, __u16 chain, __u32 hash)
{
	struct fragment v = {
		.seen = bpf_ktime_get_coarse_ns(),
		.decision = decision,
		.hash = hash,
		.chain = chain,
	};
	struct fragment_key k;

	if (!p->fragment)
		return;
	fragment_key(p, &k);
	bpf_map_update_elem(&fragments, &k, &v, BPF_ANY);
}

#endif
