package main

import (
	"penstock/bpf"
	"penstock/pipeline"
)

// adoptStep bounds for how long a worker enters connections in one go.
const adoptStep = 1024

// adopt makes known what an instance before this one has left: to the collectors, of
// what they have been told, and to the workers the connections that it has spliced. XDP
// translates the packets of those, but for some that come up.
func (a *appliance) adopt() {
	if a.steerer.Inherited().Flows == 0 {
		return
	}
	if err := a.inheritOngoing(); err != nil {
		a.log.Warn("collectors are told again of flows that went on", "err", err)
	}
	flows, err := a.steerer.Rewritten()
	if err != nil {
		a.log.Warn("spliced connections are not taken over: of them, fragments, packets with options and ICMP errors pass untranslated", "err", err)
		return
	}
	byWorker := make([][]bpf.RewrittenFlow, len(a.workers))
	for _, f := range flows {
		// A connection has packets of both ends.
		if f.Reply == f.Key.Reverse() && f.InPort >= 0 && f.ReplyInPort >= 0 {
			w := int(f.Hash % uint32(len(a.workers)))
			byWorker[w] = append(byWorker[w], f)
		}
	}
	for w, list := range byWorker {
		for len(list) > 0 {
			some := list[:min(len(list), adoptStep)]
			list = list[len(some):]
			adoptBy(a.workers[w], some)
		}
	}
}

func adoptBy(w *pipeline.Worker, flows []bpf.RewrittenFlow) {
	w.Call(func() {
		now, chains := w.Env().Now(), w.Chains()
		for _, f := range flows {
			if int(f.Chain) < len(chains) && chains[f.Chain] != nil {
				chains[f.Chain].Adopt(pipeline.AdoptedFlow{
					Flow: wireFlow(f.Key), Rules: &f.Rules,
					In: [2]pipeline.PortID{pipeline.PortID(f.InPort), pipeline.PortID(f.ReplyInPort)},
				}, now)
			}
		}
	})
}
