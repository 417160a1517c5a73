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
 * put back. */
static __noinline void flow_reopen(struct packet *p, struct flow *f, __u64 now)
{
	struct flow_key other_way;
	struct flow *r;

	flow_reverse(&p->key, &other_way);
	r = bpf_map_lookup_elem(&flows, &other_way);
	if (!r) {
		struct flow reply = {
			.start = f->start,
			.last_seen = now,
			.hash = f->hash,
			.chain = f->chain,
			.in_port = NO_PORT,
			.action = ACTION_CHAIN,
			.reply = !f->reply,
		};

		bpf_map_update_elem(&flows, &other_way, &reply, BPF_NOEXIST);
		r = f;
	}
	if (!((f->tcp_flags | r->tcp_flags) & (TCP_FIN | TCP_RST)))
		return;
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
}

/* A SYN on an offloaded flow may begin another connection, and the stages want to see it: both directions go up again, until
 * the flow is offloaded anew. */
static __noinline void flow_recall(struct packet *p, struct flow *f)
{
	struct flow_key other_way;
	struct flow *r;

	flow_reverse(&p->key, &other_way);
	f->action = ACTION_CHAIN;
	r = bpf_map_lookup_elem(&flows, &other_way);
	if (r)
		r->action = ACTION_CHAIN;
}

/* Counts p in its flow. Atomic, since RSS may move a flow from one queue to another, and veth does so freely. */
static __always_inline void flow_count(struct packet *p, struct flow *f, __u64 bytes, __u64 now)
{
	if (p->key.proto == PROTO_TCP) {
		if (is_pure_syn(p))
			flow_reopen(p, f, now);
		if ((f->tcp_flags & p->tcp_flags) != p->tcp_flags)
			__sync_fetch_and_or(&f->tcp_flags, p->tcp_flags);
	}
	__sync_fetch_and_add(&f->packets, 1);
	__sync_fetch_and_add(&f->bytes, bytes);
	f->last_seen = now;
	if (f->in_port != port_id)
		f->in_port = port_id;
}

/* Writes both entries of a new flow, or none. The lower one goes first, whichever direction begins: if two CPUs see the two
 * ends begin at once, one of them wins both entries. Returns false if there is no room. *chain is what counts in the end:
 * that of an entry which was there already. Not inlined: its two entries would not fit into the stack besides a route. */
static __noinline bool flow_install(struct packet *p, __u16 *chain, __u32 hash, __u64 bytes, __u64 now)
{
	struct flow_key other_way;
	struct flow first = {
		.start = now,
		.last_seen = now,
		.packets = 1,
		.bytes = bytes,
		.hash = hash,
		.tcp_flags = p->tcp_flags,
		.chain = *chain,
		.in_port = port_id,
		.action = ACTION_CHAIN,
	};
	struct flow reply = {
		.start = now,
		.last_seen = now,
		.hash = hash,
		.chain = *chain,
		.in_port = NO_PORT,
		.action = ACTION_CHAIN,
		.reply = 1,
	};
	int order = flow_order(&p->key);
	bool lower = order <= 0;
	struct flow_key *low, *high;
	struct flow *there;
	long err;

	flow_reverse(&p->key, &other_way);
	low = lower ? &p->key : &other_way;
	high = lower ? &other_way : &p->key;
	err = bpf_map_update_elem(&flows, low, lower ? &first : &reply, BPF_NOEXIST);
	if (err == -17 /* EEXIST */) {
		there = bpf_map_lookup_elem(&flows, low);
		if (there)
			*chain = first.chain = reply.chain = there->chain;
		err = bpf_map_update_elem(&flows, high, lower ? &reply : &first, BPF_NOEXIST);
		return !err || err == -17;
	}
	if (err)
		return false;
	/* Both ends the same address and port (a land packet): one entry is both directions. */
	if (order == 0)
		return true;
	/* We own the lower one, so a higher one is left over from a pair that is being removed: replace it. */
	if (!bpf_map_update_elem(&flows, high, lower ? &reply : &first, BPF_ANY))
		return true;
	bpf_map_delete_elem(&flows, low);
	return false;
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

/* Notes what becomes of a first fragment, for those that follow it. */
static __always_inline void fragment_note(const struct packet *p, enum action action, __u16 chain, __u32 hash)
{
	struct fragment v = {
		.seen = bpf_ktime_get_coarse_ns(),
		.hash = hash,
		.chain = chain,
		.action = action,
	};
	struct fragment_key k;

	if (!p->fragment)
		return;
	fragment_key(p, &k);
	bpf_map_update_elem(&fragments, &k, &v, BPF_ANY);
}

#endif
