package stack_test

import (
	"fmt"
	"gvisor.dev/gvisor/pkg/tcpip"
	"io"
	"net"
	"testing"
)

func dump(n string, s tcpip.Stats) {
	tc := s.TCP
	fmt.Println(n, "retrans", tc.Retransmits.Value(), "timeouts", tc.Timeouts.Value(), "fast", tc.FastRetransmit.Value(), "sackrec", tc.SACKRecovery.Value(), "dropped", s.DroppedPackets.Value(), "sent", tc.SegmentsSent.Value(), "recv", tc.ValidSegmentsReceived.Value(), "senderr", tc.SegmentSendErrors.Value(), "tlp", tc.TLPRecovery.Value(), "csum", tc.ChecksumErrors.Value())
}
func TestDbg(t *testing.T) {
	b := newBed(t, bedOptions{})
	to := addr(server4, 80)
	l := b.server.listen(t, to)
	served := serveOnce(l, func(c net.Conn) { n, _ := io.Copy(io.Discard, c); fmt.Println("got", n) })
	c, err := b.client.dial(addr(client4, 0), to, dialTime)
	if err != nil {
		t.Fatal(err)
	}
	c.Write(noise(1, 8<<20))
	c.Close()
	<-served
	dump("client", b.client.net.Stats())
	dump("server", b.server.net.Stats())
	dump("mid", b.stage.NetStats())
	for _, c := range b.worker.Stats().Chains[0].Stages {
		fmt.Println(c)
	}
	fmt.Println(b.worker.Stats().Totals)
}
