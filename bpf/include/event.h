/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef PENSTOCK_EVENT_H
#define PENSTOCK_EVENT_H

#include "maps.h"
#include "options.h"
#include "parse.h"

/* What user space is told of. Nothing is told of every packet: a flow begins once, and drops are sampled. Nobody is woken; who reads
 * looks every now and then. A full ring loses events and counts them. */

#define EVENT_SAMPLE_NS (10ULL * 1000 * 1000) /* a CPU tells of one drop in this time */

static __always_inline bool event_wanted(enum event_kind kind)
{
	__u32 zero = 0;
	const __u32 *kinds = bpf_map_lookup_elem(&event_wants, &zero);

	return kinds && *kinds >> kind & 1;
}

static __always_inline struct event_state *event_state(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&event_states, &zero);
}

static __always_inline void event_send(struct event_state *s, const struct packet *p, __u64 now, enum event_kind kind)
{
	s->event.time = now;
	s->event.kind = kind;
	s->event.port = port_id;
	s->event.key = p->key;
	if (bpf_ringbuf_output(&events, &s->event, sizeof(s->event), BPF_RB_NO_WAKEUP))
		s->lost++;
}

static __always_inline void event_flow_began(const struct packet *p, __u64 now, __u16 chain)
{
	struct event_state *s;

	if (!event_wanted(EVENT_FLOW_BEGAN))
		return;
	s = event_state();
	if (!s)
		return;
	s->event.chain = chain;
	s->event.reason = 0;
	s->event.count = 1;
	event_send(s, p, now, EVENT_FLOW_BEGAN);
}

/* Tells of one of the packets that are dropped, with how many this CPU has dropped since it last told of one. */
static __always_inline void event_dropped(const struct packet *p, __u64 now, enum reason reason)
{
	struct event_state *s;

	if (!event_wanted(EVENT_DROPPED))
		return;
	s = event_state();
	if (!s)
		return;
	s->drops++;
	if (now - s->told < EVENT_SAMPLE_NS)
		return;
	s->event.chain = 0;
	s->event.reason = reason;
	s->event.count = s->drops;
	s->told = now;
	s->drops = 0;
	event_send(s, p, now, EVENT_DROPPED);
}

#endif
