/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef PENSTOCK_TABLE_H
#define PENSTOCK_TABLE_H

#include "flow.h"
#include "maps.h"

#define UNUSED __attribute__((unused))

/* Programs that user space runs on the flow table (BPF_PROG_RUN, Linux 5.14). User space cannot write into an element of a hash map, only
 * replace it, and what packets count in the old one meanwhile is lost; a program can. Go runs one of offload_flows and end_flows at a
 * time: none of them deletes what the other holds. */

static __always_inline bool decide(struct flow *f, __u64 before, __u64 after)
{
	/* A full barrier too: who sees the decision sees the rewrite that was written before. */
	return __sync_val_compare_and_swap(&f->decision, before, after) == before;
}

/* Gives the direction that answers another key. The new entry takes over what the old one counted. */
static __noinline enum offload_result move_reply(struct offload_job *j, struct flow_key *from, struct flow_key *to)
{
	struct flow *r = bpf_map_lookup_elem(&flows, from);
	struct flow copy;
	int err; /* not long: Linux 6.1 fills 32 bits of it only */

	if (!r)
		return OFFLOAD_FLOW_GONE;
	__builtin_memcpy(&copy, r, sizeof(copy));
	copy.decision = j->reply_decision;
	err = bpf_map_update_elem(&flows, to, &copy, BPF_NOEXIST);
	if (err)
		return err == -EEXIST ? OFFLOAD_REPLY_IN_USE : OFFLOAD_FLOW_TABLE_FULL;
	return OFFLOAD_TAKEN;
}

/* Changes both directions or none. A global function (see parse.h). */
__noinline enum offload_result offload_one(struct offload_job *j)
{
	struct flow_key key, reply, other;
	__u64 before, before_reply;
	enum offload_result err;
	struct flow *f, *r;
	__u32 i;

	if (!j)
		return OFFLOAD_FLOW_GONE;
	key = j->key;
	reply = j->reply;
	i = j->decision >> DECISION_REWRITE_SHIFT & DECISION_REWRITE_MASK;
	f = bpf_map_lookup_elem(&flows, &key);
	if (!f)
		return OFFLOAD_FLOW_GONE;
	before = decision_of(f);
	flow_other(&key, before, &other);
	r = bpf_map_lookup_elem(&flows, &other);
	if (!r)
		return OFFLOAD_FLOW_GONE;
	before_reply = decision_of(r);
	if (i) { /* nobody knows of these elements yet */
		struct rewrite *w = bpf_map_lookup_elem(&rewrites, &i), *v;

		i ^= 1;
		v = bpf_map_lookup_elem(&rewrites, &i);
		if (!w || !v)
			return OFFLOAD_REWRITES_FULL;
		*w = j->rewrite[0];
		*v = j->rewrite[1];
	}
	if (!same_key(&reply, &other)) {
		if (r == f)
			return OFFLOAD_REPLY_IN_USE;
		err = move_reply(j, &other, &reply);
		if (err)
			return err;
		if (!decide(f, before, j->decision)) {
			bpf_map_delete_elem(&flows, &reply);
			return OFFLOAD_FLOW_CHANGED;
		}
		bpf_map_delete_elem(&flows, &other);
	} else {
		if (!decide(f, before, j->decision))
			return OFFLOAD_FLOW_CHANGED;
		if (r != f && !decide(r, before_reply, j->reply_decision)) {
			decide(f, j->decision, before);
			return OFFLOAD_FLOW_CHANGED;
		}
	}
	j->before = before;
	return OFFLOAD_TAKEN;
}

SEC("syscall")
int offload_flows(void *unused UNUSED)
{
	__u32 zero = 0, count;
	struct offload_work *w = bpf_map_lookup_elem(&offload_jobs, &zero);

	if (!w)
		return 0;
	count = *(volatile __u32 *)&w->count;
	for (__u32 i = 0; i < MAX_OFFLOAD_JOBS && i < count; i++)
		w->job[i].result = offload_one(&w->job[i]);
	return 0;
}

/* How long both directions of a flow may be idle. r is NULL if its entry is missing. */
static __always_inline __u64 flow_timeout(const struct end_work *w, __u8 proto, const struct flow *f, const struct flow *r)
{
	__u32 flags = r ? r->tcp_flags : 0;
	bool one_way = !f->packets || !r || !r->packets;

	switch (proto) {
	case PROTO_TCP:
		if ((f->tcp_flags | flags) & TCP_RST || f->tcp_flags & flags & TCP_FIN)
			return w->timeout[TIMEOUT_TCP_CLOSED];
		if ((f->tcp_flags | flags) & TCP_FIN)
			return w->timeout[TIMEOUT_TCP_HALF_CLOSED];
		return w->timeout[one_way ? TIMEOUT_TCP_OPENING : TIMEOUT_TCP_ESTABLISHED];
	case PROTO_UDP:
		return w->timeout[one_way ? TIMEOUT_UDP : TIMEOUT_UDP_REPLIED];
	case PROTO_ICMP:
	case PROTO_ICMPV6:
		return w->timeout[TIMEOUT_ICMP];
	}
	return w->timeout[TIMEOUT_OTHER];
}

/* The least that flow_timeout can say: an entry that is younger needs no look at its other direction. */
static __always_inline __u64 shortest_timeout(const struct end_work *w, __u8 proto)
{
	__u64 least;

	switch (proto) {
	case PROTO_TCP:
		least = w->timeout[TIMEOUT_TCP_OPENING];
#pragma unroll
		for (int i = TIMEOUT_TCP_ESTABLISHED; i <= TIMEOUT_TCP_CLOSED; i++)
			least = w->timeout[i] < least ? w->timeout[i] : least;
		return least;
	case PROTO_UDP:
		least = w->timeout[TIMEOUT_UDP];
		return w->timeout[TIMEOUT_UDP_REPLIED] < least ? w->timeout[TIMEOUT_UDP_REPLIED] : least;
	case PROTO_ICMP:
	case PROTO_ICMPV6:
		return w->timeout[TIMEOUT_ICMP];
	}
	return w->timeout[TIMEOUT_OTHER];
}

/* Signed: an entry may have been used after now. */
static __always_inline bool idle_for_longer(const struct flow *f, __u64 now, __u64 timeout)
{
	return (__s64)(now - f->last_seen) > (__s64)timeout;
}

/* Whether both directions of the flow at k have been idle for longer than they may. The first direction answers for both; the reply only
 * where it stands alone. */
static __always_inline bool flow_idle(const struct end_work *w, const struct flow_key *k, struct flow *f, struct flow *r)
{
	__u64 timeout = flow_timeout(w, k->proto, f, r);

	if (f->reply && r && !r->reply)
		return false;
	return idle_for_longer(f, w->now, timeout) && (!r || idle_for_longer(r, w->now, timeout));
}

/* Counts a flow once, by its first direction. Not atomic: one walk runs at a time. */
static __always_inline void count_flow(struct end_work *w, struct flow *f)
{
	__u32 chain = f->chain, action = decision_action(decision_of(f));

	if (!f->reply && chain < MAX_COUNTED_CHAINS && action < ACTION_COUNT)
		w->flows[chain][action]++;
}

static long find_idle_flow(void *map UNUSED, struct flow_key *k, struct flow *f, void *unused UNUSED)
{
	__u32 zero = 0, n;
	struct end_work *w = bpf_map_lookup_elem(&end_jobs, &zero);
	struct flow_key other;

	if (!w)
		return 1;
	if (w->counting)
		count_flow(w, f);
	if (!idle_for_longer(f, w->now, shortest_timeout(w, k->proto)))
		return 0;
	flow_other(k, decision_of(f), &other);
	if (!flow_idle(w, k, f, bpf_map_lookup_elem(&flows, &other)))
		return 0;
	n = w->count;
	if (n >= MAX_END_JOBS)
		return 1;
	w->job[n].key = *k;
	w->count = n + 1;
	return 0;
}

/* Writes the keys of idle flows to end_jobs, as many as it has room for, and counts all flows on the way if it is asked to. The walk ends
 * where there is no more room; the count then is of a part of the table. */
SEC("syscall")
int find_idle_flows(void *unused UNUSED)
{
	__u32 zero = 0;
	struct end_work *w = bpf_map_lookup_elem(&end_jobs, &zero);

	if (!w)
		return 0;
	w->count = 0;
	bpf_for_each_map_elem(&flows, find_idle_flow, NULL, 0);
	return 0;
}

__noinline int end_one(const struct end_work *w, struct end_job *j)
{
	struct flow_key key, other;
	struct flow *f, *r;

	if (!w || !j)
		return 0;
	key = j->key;
	f = bpf_map_lookup_elem(&flows, &key);
	if (!f)
		return 0;
	flow_other(&key, decision_of(f), &other);
	r = bpf_map_lookup_elem(&flows, &other);
	if (!w->evict && !flow_idle(w, &key, f, r))
		return 0;
	j->other = other;
	j->flow[0] = *f;
	if (r)
		j->flow[1] = *r;
	else
		__builtin_memset(&j->flow[1], 0, sizeof(j->flow[1]));
	bpf_map_delete_elem(&flows, &key);
	bpf_map_delete_elem(&flows, &other);
	return 1;
}

/* Removes the flows of some jobs, both directions together, those that are idle (still, since find_idle_flows) or all. */
SEC("syscall")
int end_flows(void *unused UNUSED)
{
	__u32 zero = 0;
	struct end_work *w = bpf_map_lookup_elem(&end_jobs, &zero);
	__u32 from, to;

	if (!w)
		return 0;
	from = *(volatile __u32 *)&w->from;
	to = *(volatile __u32 *)&w->to;
	for (__u32 i = 0; i < MAX_OFFLOAD_JOBS; i++) {
		__u64 at = (__u64)from + i;

		barrier_var(at); /* one register for the bound and the address, see cursor_at */
		if (at >= to || at >= MAX_END_JOBS)
			break;
		w->job[at].result = end_one(w, &w->job[at]);
	}
	return 0;
}

#endif
