package closedloop

import "container/heap"

// timer is something that happens at a time. It fires once.
type timer struct {
	at    int64
	seq   uint64 // of equal times, the first that was set comes first
	fn    func()
	index int
	on    bool
	q     *timers
}

// stop reports whether it was in time.
func (t *timer) stop() bool {
	if !t.on {
		return false
	}
	t.on = false
	heap.Remove(t.q, t.index)
	t.fn = nil
	return true
}

// timers is a heap of timers.
type timers struct {
	list []*timer
	seq  uint64
}

func (q *timers) set(at int64, fn func()) *timer {
	q.seq++
	t := &timer{at: at, seq: q.seq, fn: fn, on: true, q: q}
	heap.Push(q, t)
	return t
}

// fire runs the timers whose time has come, in order.
func (q *timers) fire(now int64) (fired bool) {
	for len(q.list) > 0 && q.list[0].at <= now {
		t := heap.Pop(q).(*timer)
		t.on = false
		fn := t.fn
		t.fn = nil
		fn()
		fired = true
	}
	return fired
}

// Len implements heap.Interface.
func (q *timers) Len() int { return len(q.list) }

// Less implements heap.Interface.
func (q *timers) Less(i, j int) bool {
	a, b := q.list[i], q.list[j]
	return a.at < b.at || a.at == b.at && a.seq < b.seq
}

// Swap implements heap.Interface.
func (q *timers) Swap(i, j int) {
	q.list[i], q.list[j] = q.list[j], q.list[i]
	q.list[i].index, q.list[j].index = i, j
}

// Push implements heap.Interface.
func (q *timers) Push(x any) {
	t := x.(*timer)
	t.index = len(q.list)
	q.list = append(q.list, t)
}

// Pop implements heap.Interface.
func (q *timers) Pop() any {
	last := len(q.list) - 1
	t := q.list[last]
	q.list[last] = nil
	q.list = q.list[:last]
	return t
}
