package record

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Brief are fields of an event of which all but some figures was written before, for
// others. A Lane copies them, which is the least that it can do, and its sink makes lines
// of many of them in one go. They are Borrowed: whoever records them may change them then, but not
// what they point to.
type Brief struct {
	Form    *Form
	Before  [2]*Members // how the event begins, each at least one member
	When    int64       // by the clock of the Lane, in ns
	Figures [5]int64    // as the Form says
}

// Form is what events have in common that are a Brief.
type Form struct {
	event   string
	figures []figure
	end     string
}

type figure struct {
	key     string
	seconds bool // from ns
	some    bool // left out if it is zero
}

// NewForm returns the form of an event. Its figures are given by their keys; behind
// one that is a time in ns, to be written in seconds, stands ":seconds", behind one that is
// left out if it is zero "?". Before has left so many objects open as depth says, none
// of them empty; the figures stand in the innermost.
func NewForm(event string, depth int, figures ...string) *Form {
	f := &Form{event: event, end: strings.Repeat("}", depth+1) + "\n"}
	all, at := "", 0
	for _, name := range figures {
		name, some := strings.CutSuffix(name, "?")
		name, seconds := strings.CutSuffix(name, ":seconds")
		f.figures = append(f.figures, figure{`,"` + name + `":`, seconds, some})
		all += f.figures[len(f.figures)-1].key
	}
	for i := range f.figures { // they lie side by side
		n := len(f.figures[i].key)
		f.figures[i].key, at = all[at:at+n], at+n
	}
	return f
}

// appendTo appends the figures, and what ends the line.
func (f *Form) appendTo(b []byte, values *[5]int64) []byte {
	for i := range f.figures {
		switch k, v := &f.figures[i], values[i]; {
		case v == 0 && k.some:
		case k.seconds:
			b = appendSeconds(append(b, k.key...), v)
		default:
			b = appendUint(append(b, k.key...), uint64(v))
		}
	}
	return append(b, f.end...)
}

// At implements Timed.
func (v *Brief) At() int64 { return v.When }

// AppendMembers implements Appender.
func (v *Brief) AppendMembers(m *Members) {
	m.Written(*v.Before[0])
	m.Written(*v.Before[1])
	b := v.Form.appendTo(*m, &v.Figures)
	*m = b[:len(b)-len("}\n")]
}

// Keep implements pipeline.Borrowed.
func (v *Brief) Keep() any { return Keep(v) }

// Keep returns what fields write as something that encoding/json writes.
func Keep(fields Appender) any {
	m := Members("{")
	fields.AppendMembers(&m)
	return json.RawMessage(append(m, '}'))
}

// size returns about how long the line is.
func (v *Brief) size() int { return 192 + len(*v.Before[0]) + len(*v.Before[1]) }

// appendBrief appends the line of v, which was at a time in ns since the epoch.
func (e *encoder) appendBrief(b []byte, v *Brief, at int64) []byte {
	second, ns := unix(time.Unix(0, at))
	b = append(b, e.begin(second, ns, v.Form.event)...)
	b = append(append(b, ','), *v.Before[0]...)
	b = append(append(b, ','), *v.Before[1]...)
	return v.Form.appendTo(b, &v.Figures)
}

// encodeBriefs makes lines of the first ones, up to event n, and returns the others.
func (s *sink) encodeBriefs(all []laterBrief) (rest []laterBrief) {
	done := 0
	defer func() {
		// As in appendLine.
		if r := recover(); r != nil {
			s.lost(fmt.Errorf("encode event %q: panic: %v", all[done].fields.Form.event, r))
			rest = all[done+1:]
		}
	}()
	for ; done < len(all); done++ {
		v := &all[done]
		if done > 0 && v.n != all[done-1].n+1 {
			break
		}
		s.buf = s.enc.appendBrief(s.buf, &v.fields, v.at)
		s.ends = append(s.ends, len(s.buf))
	}
	return all[done:]
}

// unix returns a time in ns since the epoch as the encoder wants it.
func unix(t time.Time) (second int64, ns uint32) { return t.Unix(), uint32(t.Nanosecond()) }
