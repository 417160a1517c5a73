package stack

import (
	"penstock/pipeline"
)

// Adopt goes on with a connection that an earlier process has spliced: XDP has it, and
// what XDP leaves alone is translated here.
func (s *Stack) Adopt(a pipeline.AdoptedFlow, now int64) {
	key, reversed := tableKey(a.Flow)
	if _, known := s.flows.Peek(key); known || s.closed || s.env.Splicer == nil {
		return // another VLAN's, or a SYN was faster
	}
	place, ok := s.flows.Insert(key, now)
	if !ok {
		return
	}
	f := &flow{s: s, key: key, rev: reversed, state: stateSpliced}
	f.conn = pipeline.Conn{
		ID: s.nextConn(), Flow: a.Flow, Client: a.Flow.SrcAddr(), Server: a.Flow.DstAddr(),
		In: a.In[pipeline.ToServer], Depth: pipeline.DepthTerminate, Start: now,
	}
	f.splice = &spliced{start: now, rules: *a.Rules, asked: now, taken: true, heard: heard{deaf: true}}
	f.client.f, f.server.f = f, f
	f.server.toServer = true
	f.client.out, f.server.out = a.In[pipeline.ToServer], a.In[pipeline.ToClient]
	f.client.mute, f.server.mute = true, true
	*place = f
	s.n.adopted.Add(1)
}
