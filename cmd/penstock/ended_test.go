package main

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"penstock/internal/record"
)

// TestFlowEvents: what a flow's record says, as a reader of JSON sees it.
func TestFlowEvents(t *testing.T) {
	start := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.FixedZone("", 3600))
	flow := flowEvent{
		SrcIP: netip.MustParseAddr("10.0.0.1"), SrcPort: 40000, DestIP: netip.MustParseAddr("2001:db8::1"), DestPort: 443, Proto: "TCP",
	}
	tagged := flow
	tagged.VLAN, tagged.vlans = [2]uint16{7, 8}, 2
	over := tagged
	over.Chain, over.Depth, over.Action, over.ended = "web \"1\"", "offload", "forward", true
	over.Flow = flowRecord{1, 2, 3, 4, start, start.Add(1500 * time.Millisecond), "closed"}
	begun := flow
	begun.Chain, begun.InIface = "web", "eth1"
	for _, tc := range []struct {
		event record.Appender
		want  string
	}{
		{&begun, `{"src_ip":"10.0.0.1","src_port":40000,"dest_ip":"2001:db8::1","dest_port":443,"proto":"TCP","chain":"web","in_iface":"eth1"}`},
		{&flow, `{"src_ip":"10.0.0.1","src_port":40000,"dest_ip":"2001:db8::1","dest_port":443,"proto":"TCP","chain":""}`},
		{&over, `{"src_ip":"10.0.0.1","src_port":40000,"dest_ip":"2001:db8::1","dest_port":443,"proto":"TCP","vlan":[7,8],"chain":"web \"1\"","depth":"offload","action":"forward",
			"flow":{"pkts_toserver":1,"pkts_toclient":2,"bytes_toserver":3,"bytes_toclient":4,"start":"2026-01-02T02:04:05.000006Z","end":"2026-01-02T02:04:06.500006Z","age_seconds":1.5,"reason":"closed"}}`},
		{&dropEvent{tagged, "denied", 9}, `{"src_ip":"10.0.0.1","src_port":40000,"dest_ip":"2001:db8::1","dest_port":443,"proto":"TCP","vlan":[7,8],"in_iface":"","reason":"denied","packets":9}`},
	} {
		m := record.Members("{")
		tc.event.AppendMembers(&m)
		got := append(m, '}')
		var a, b any
		if err := json.Unmarshal([]byte(tc.want), &a); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(got, &b); err != nil || !reflect.DeepEqual(a, b) {
			t.Errorf("got %s (%v)\nwant %s", got, err, tc.want)
		}
	}
}

func BenchmarkFlowEvent(b *testing.B) {
	r, err := record.Open([]record.Spec{{To: "file:/dev/null", Events: []string{"flow"}}}, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = r.Close() })
	lane, e := r.Lane(), flowEvent{
		SrcIP: netip.MustParseAddr("10.0.0.1"), SrcPort: 40000, DestIP: netip.MustParseAddr("10.0.0.2"), DestPort: 443, Proto: "TCP", Chain: "web", Depth: "offload",
		Action: "forward", ended: true, Flow: flowRecord{10, 9, 1500, 9000, time.Now().Add(-time.Second), time.Now(), "closed"},
	}
	b.ReportAllocs()
	for b.Loop() {
		lane.Record("flow", &e)
	}
}
