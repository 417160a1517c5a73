package bpf

import (
	"testing"
	"time"

	"penstock/internal/rewrite"
)

// segmentOf is a packet of one connection: flags, and in front of them "<" if the server sends it.
func segmentOf(t testing.TB, s string) (port int, packet []byte) {
	if s[0] == '<' {
		return 1, tcp4Reply(t, s[1:], 0)
	}
	return 0, tcp4(t, s, 0)
}

var (
	toKnown  = fate{VerdictSocket, "flow_known"}
	goesPast = fate{VerdictPeer, "worker_silent_open"}
	isHeld   = fate{VerdictDrop, "worker_silent_held"}
	isPassed = fate{VerdictPeer, "flow_passed"}
	isClosed = fate{VerdictDrop, "worker_silent_closed"}
)

// What becomes of a connection when its worker is silent for a while: in each step a packet, with "!" in front of it while the worker is
// silent.
func TestSilenceOfTCP(t *testing.T) {
	const silence = time.Minute
	type step struct {
		packet string
		want   fate
	}
	for _, c := range []struct {
		name   string
		depth  Depth
		onExit OnExit
		steps  []step
		passed bool
	}{
		{"terminate: it begins meanwhile", Terminates, OnExitOpen, []step{
			{"!S", goesPast}, {"S", isPassed}, {"<SA", isPassed}, {"S", isPassed}, {"A", isPassed}, {"<PA", isPassed}, {"!PA", isPassed},
		}, true},
		{"terminate: its SYN waits for the worker", Terminates, OnExitOpen, []step{
			{"S", toSocket}, {"!S", goesPast}, {"!<SA", isPassed}, {"S", isPassed}, {"A", isPassed}, {"<PA", isPassed},
		}, true},
		{"terminate: the server was heard of before", Terminates, OnExitOpen, []step{
			{"S", toSocket}, {"<SA", toKnown}, {"!S", isHeld}, {"!<SA", isHeld}, {"S", toKnown}, {"<SA", toKnown}, {"A", toKnown},
		}, false},
		{"terminate: the server is heard of meanwhile", Terminates, OnExitOpen, []step{
			{"S", toSocket}, {"!<SA", isHeld}, {"!S", isHeld}, {"<SA", toKnown},
		}, false},
		{"terminate: it stands", Terminates, OnExitOpen, []step{
			{"S", toSocket}, {"<SA", toKnown}, {"A", toKnown}, {"!PA", isHeld}, {"!<PA", isHeld}, {"!S", isHeld}, {"!RA", isHeld}, {"PA", toKnown}, {"<PA", toKnown},
		}, false},
		{"terminate: another one begins on its ports meanwhile", Terminates, OnExitOpen, []step{
			{"S", toSocket}, {"<SA", toKnown}, {"A", toKnown}, {"FA", toKnown}, {"<FA", toKnown}, {"!S", goesPast}, {"<SA", isPassed}, {"A", isPassed},
		}, true},
		{"terminate: another one begins on its ports later", Terminates, OnExitOpen, []step{
			{"!S", goesPast}, {"<SA", isPassed}, {"A", isPassed}, {"FA", isPassed}, {"<FA", isPassed}, {"S", toKnown}, {"<SA", toKnown},
		}, false},
		{"terminate: it was refused, and is tried again", Terminates, OnExitOpen, []step{
			{"!S", goesPast}, {"<RA", isPassed}, {"S", toKnown},
		}, false},
		{"inspect: it begins meanwhile", Inspects, OnExitOpen, []step{
			{"!S", goesPast}, {"<SA", isPassed}, {"A", isPassed},
		}, true},
		{"inspect: it stands, and something is missed", Inspects, OnExitOpen, []step{
			{"S", toSocket}, {"<SA", toKnown}, {"A", toKnown}, {"!PA", goesPast}, {"<PA", isPassed}, {"PA", isPassed},
		}, true},
		{"inspect: it stands, and is quiet", Inspects, OnExitOpen, []step{
			{"S", toSocket}, {"<SA", toKnown}, {"A", toKnown}, {"PA", toKnown}, {"<PA", toKnown},
		}, false},
		{"forward: it begins meanwhile", Forwards, OnExitOpen, []step{
			{"!S", goesPast}, {"<SA", isPassed}, {"A", isPassed},
		}, true},
		{"forward: it stands", Forwards, OnExitOpen, []step{
			{"S", toSocket}, {"!S", goesPast}, {"<SA", toKnown}, {"!A", goesPast}, {"!<PA", goesPast}, {"PA", toKnown}, {"<PA", toKnown},
		}, false},
		{"closed", Terminates, OnExitClosed, []step{
			{"!S", isClosed}, {"S", toSocket}, {"!S", isClosed}, {"!<SA", isClosed}, {"<SA", toKnown},
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, func(o *Options) {
				o.Rules, o.OnExit, o.Silence = []Rule{{From: -1, Action: ToChain, Chain: 7, Depth: c.depth}}, c.onExit, silence
			})
			before := r.Past()
			past := uint64(0)
			for i, s := range c.steps {
				age, text := time.Duration(0), s.packet
				if text[0] == '!' {
					age, text = silence+time.Second, text[1:]
				}
				port, packet := segmentOf(t, text)
				r.Beat(0, 0, Now()-age)
				r.Beat(1, 0, Now()-age)
				if got := r.run(port, packet).fate(); got != s.want {
					t.Fatalf("step %d, %s: got %v, want %v", i+1, s.packet, got, s.want)
				}
				if s.want == goesPast {
					past++
				}
			}
			for _, s := range []string{"S", "<S"} {
				_, packet := segmentOf(t, s)
				if got := r.Passed(flowOf(t, packet)); got != c.passed {
					t.Errorf("Passed is %t, want %t", got, c.passed)
				}
			}
			if got := r.Past() - before; got != past {
				t.Errorf("Past has counted %d, want %d", got, past)
			}
			for k, e := range r.entries() {
				if other, ok := r.entries()[k.Reverse()]; !ok || other.Action != e.Action {
					t.Errorf("%+v: the directions are not of one mind: %+v", e, other)
				}
			}
		})
	}
}

// A spliced connection, while its worker is silent: what begins on its ports after its end is not rewritten.
func TestSilenceOfOffloaded(t *testing.T) {
	const silence = time.Minute
	r := newRig(t, func(o *Options) {
		o.Rules, o.Silence = []Rule{{From: -1, Action: ToChain, Chain: 7, Depth: Terminates}}, silence
	})
	send := func(text string, want fate) {
		t.Helper()
		age := time.Duration(0)
		if text[0] == '!' {
			age, text = silence+time.Second, text[1:]
		}
		port, packet := segmentOf(t, text)
		r.Beat(0, 0, Now()-age)
		r.Beat(1, 0, Now()-age)
		if got := r.rewritten(port, packet).fate(); got != want {
			t.Fatalf("%s: got %v, want %v", text, got, want)
		}
	}
	send("S", toSocket)
	send("<SA", toKnown)
	send("A", toKnown)
	_, syn := segmentOf(t, "S")
	flows := []OffloadFlow{{Key: flowOf(t, syn)}}
	flows[0].Rewrite.Flags, flows[0].Rewrite.Seq = rewrite.AddSeq, 1000
	flows[0].ReplyRewrite.Flags, flows[0].ReplyRewrite.Ack = rewrite.AddAck, 1<<32-1000
	if n, err := r.Offload(flows); n != 1 || err != nil {
		t.Fatal(n, err, flows[0].Result)
	}
	offloaded := fate{VerdictPeer, "flow_offloaded"}
	send("!PA", offloaded)
	send("!S", isHeld) // it is not over: a stranger's, perhaps
	send("!PA", isHeld)
	if n, err := r.Offload(flows); n != 1 || err != nil { // the worker, back again
		t.Fatal(n, err, flows[0].Result)
	}
	send("FA", offloaded)
	send("<FA", offloaded)
	send("!S", goesPast)
	send("<SA", isPassed)
	send("A", isPassed)
	if !r.Passed(flowOf(t, syn)) {
		t.Error("it has not passed")
	}
}

// With midstream = drop, a connection whose SYN takes the default action is not dropped afterwards.
func TestMidstreamDropKnowsWhatPassed(t *testing.T) {
	toBypass, none := []Rule{{From: -1, Action: Bypass}}, []Rule(nil)
	type step struct {
		packet string
		want   fate
	}
	dropped := fate{VerdictDrop, "midstream"}
	for _, c := range []struct {
		name  string
		rules []Rule
		first fate
	}{{"rule", toBypass, fate{VerdictPeer, "rule_bypass"}}, {"no rule", none, fate{VerdictPeer, "no_rule"}}} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, func(o *Options) { o.Rules, o.Midstream = c.rules, MidstreamDrop })
			send := func(steps ...step) {
				t.Helper()
				for _, s := range steps {
					port, packet := segmentOf(t, s.packet)
					if got := r.run(port, packet).fate(); got != s.want {
						t.Fatalf("%s: got %v, want %v", s.packet, got, s.want)
					}
				}
			}
			send(step{"A", dropped}, step{"S", c.first}, step{"S", isPassed}, step{"<SA", isPassed}, step{"A", isPassed}, step{"<PA", isPassed})
			for k, e := range r.entries() {
				if e.Chain != NoChain || e.Action != Passed {
					t.Errorf("%v: %+v", k, e)
				}
			}
			// An error about it is nobody's in particular.
			_, about := segmentOf(t, "<A")
			if got := r.run(0, icmpError4(t, 3, about, 8)).fate(); got != isPassed {
				t.Errorf("an ICMP error: got %v, want %v", got, isPassed)
			}
			// The rules decide on the next one.
			send(step{"S", c.first}, step{"<RA", isPassed}, step{"S", c.first}, step{"<SA", isPassed}, step{"A", isPassed})
			if err := r.SetRules(all); err != nil {
				t.Fatal(err)
			}
			send(step{"PA", isPassed}, step{"<FA", isPassed}, step{"FA", isPassed}, step{"S", toSocket}, step{"<SA", toKnown})
			if n := len(r.entries()); n != 2 {
				t.Errorf("%d entries, want 2", n)
			}
		})
	}
	r := newRig(t, func(o *Options) { o.Rules, o.Midstream = toBypass, MidstreamDrop })
	r.run(0, udp4(t, 10))
	if n := len(r.entries()); n != 0 {
		t.Errorf("%d entries for a datagram, want none", n)
	}
	// Nobody listens, and the wire stays open.
	r = newRig(t, func(o *Options) { o.Rules, o.Midstream = all, MidstreamDrop })
	for port := range 2 {
		if err := r.SetSocket(port, 0, -1); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range []step{{"S", fate{VerdictPeer, "no_socket_open"}}, {"<SA", isPassed}, {"A", isPassed}} {
		port, packet := segmentOf(t, s.packet)
		if got := r.run(port, packet).fate(); got != s.want {
			t.Errorf("nobody listens, %s: got %v, want %v", s.packet, got, s.want)
		}
	}
}
