package closedloop_test

import (
	"testing"

	"penstock/pipeline"
)

var (
	reasonDenied = pipeline.DefineReason("closedloop_test_denied", "of a test")
	reasonWall   = pipeline.DefineReason("closedloop_test_wall", "of a test")
)

// streamRegistry has stages that refuse, each in its way.
func streamRegistry(t *testing.T) *pipeline.Registry {
	t.Helper()
	var reg pipeline.Registry
	stream := func(kind string, open func() pipeline.Stream) {
		pipeline.Register(&reg, pipeline.Descriptor[struct{}]{Kind: kind,
			NewStream: func(struct{}, *pipeline.Env) (pipeline.StreamStage, error) { return opener(open), nil }})
	}
	stream("deny", func() pipeline.Stream { return &refuser{} })
	stream("reply", func() pipeline.Stream { return &refuser{reply: []byte("no")} })
	stream("hold", func() pipeline.Stream { return &holder{} })
	pipeline.Register(&reg, pipeline.Descriptor[struct{}]{Kind: "wall",
		New: func(struct{}, *pipeline.Env) (pipeline.Stage, error) { return wall{}, nil }})
	return &reg
}

type opener func() pipeline.Stream

func (o opener) Open(*pipeline.Conn) pipeline.Stream { return o() }

// refuser denies with the first bytes.
type refuser struct{ reply []byte }

func (r *refuser) Data(_ pipeline.Direction, b []byte, _ int64) (int, pipeline.StreamVerdict) {
	return 0, pipeline.StreamVerdict{Action: pipeline.StreamDeny, Reason: reasonDenied, Reply: r.reply}
}
func (r *refuser) End(pipeline.Direction, int64) pipeline.StreamVerdict {
	return pipeline.StreamVerdict{Action: pipeline.StreamDeny, Reason: reasonDenied, Reply: r.reply}
}
func (*refuser) Close(int64) {}

// holder lets the client's bytes go when there are 20 of them.
type holder struct{ passed bool }

func (h *holder) Data(d pipeline.Direction, b []byte, _ int64) (int, pipeline.StreamVerdict) {
	if d == pipeline.ToServer && len(b) < 20 && !h.passed {
		return 0, pipeline.StreamVerdict{}
	}
	h.passed = h.passed || d == pipeline.ToServer
	return len(b), pipeline.StreamVerdict{}
}
func (*holder) End(pipeline.Direction, int64) pipeline.StreamVerdict { return pipeline.StreamVerdict{} }
func (*holder) Close(int64)                                          {}

// wall drops everything.
type wall struct{}

func (wall) Process(b *pipeline.Batch) {
	for p := range b.Live() {
		p.Drop(reasonWall)
	}
}
