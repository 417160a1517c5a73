package watchdog

// Passage watches something that packets go into at one end and come out of at the
// other, by what is counted at each: a ring and the driver behind it. It is stalled
// if they go in and none comes out. The zero value has seen nothing.
//
// Counts are looked at once a tick, by one goroutine; what is watched does not know
// of it.
type Passage struct {
	// Rate is how many packets a tick have to go in, on average, for it to matter that
	// none comes out. 0: any.
	Rate uint64

	in, out uint64 // at the last look
	from    uint64 // in, when something came out last
	silent  int    // ticks since
	grown   int    // of them, those in which something went in
	idle    int    // ticks since something went in
	begun   bool
	stalled bool
	Stalls  uint64 // how often it has been
}

const (
	// StallTicks is for how many ticks nothing has come out of what is stalled.
	StallTicks = 5
	// Packets have to go in again and again: there are drivers that give back a
	// frame when they are given the next.
	stallGrowth = 3
)

// Change is what a look has found.
type Change uint8

// The changes.
const (
	Same   Change = iota
	Stuck         // it is stalled from now on
	Moving        // it is not any more
)

// Look takes the counts of a tick. Counts only rise; they may be a little apart in
// time.
func (p *Passage) Look(in, out uint64) Change {
	rose := in != p.in
	if !p.begun || out != p.out {
		p.reset(in, out)
		if p.stalled {
			p.stalled = false
			return Moving
		}
		return Same
	}
	p.in = in
	p.silent++
	if p.idle++; rose {
		p.grown, p.idle = p.grown+1, 0
	}
	if p.stalled {
		return Same
	}
	if p.idle >= 2*StallTicks { // nothing is wanted of it
		p.reset(in, out)
		return Same
	}
	if p.silent < StallTicks || p.grown < stallGrowth || in-p.from < p.Rate*uint64(p.silent) {
		return Same
	}
	p.stalled = true
	p.Stalls++
	return Stuck
}

func (p *Passage) reset(in, out uint64) {
	p.in, p.out, p.from, p.silent, p.grown, p.idle, p.begun = in, out, in, 0, 0, 0, true
}

// Forget takes the counts of a tick in which nothing can be expected: the link is
// down. What was stalled is not any more.
func (p *Passage) Forget(in, out uint64) {
	p.reset(in, out)
	p.stalled = false
}

// Stalled says whether it is stalled, and for how many ticks and packets.
func (p *Passage) Stalled() (stalled bool, ticks int, packets uint64) {
	return p.stalled, p.silent, p.in - p.from
}
