package configs

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"penstock/internal/config"
	"penstock/pcap"
	"penstock/pipeline"
	"penstock/stages"
)

// TestCapturesThroughEveryChain sends every capture of the repository, the
// malformed ones too, through every chain that is shipped, also those that
// terminate, from both sides. Nothing may panic or disappear. PENSTOCK_PCAPS
// names a directory of more captures.
func TestCapturesThroughEveryChain(t *testing.T) {
	var captures []string
	dirs := []string{"../pcap/testdata", "../internal/wire/testdata"}
	if more := os.Getenv("PENSTOCK_PCAPS"); more != "" {
		dirs = append(dirs, more)
	}
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(file string, _ fs.DirEntry, err error) error {
			if ext := filepath.Ext(file); ext == ".pcap" || ext == ".pcapng" {
				captures = append(captures, file)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(captures) < 20 {
		t.Fatalf("%d captures", len(captures))
	}
	files, err := fs.Glob(FS, "*.toml")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		src, err := FS.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		cfg, problems := config.Parse(file, src, stages.Builtin())
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		for i := range cfg.Chains {
			t.Run(file+"/"+cfg.Chains[i].Name, func(t *testing.T) {
				var packets uint64
				for _, capture := range captures {
					packets += throughChain(t, &cfg.Chains[i].Spec, capture)
				}
				if packets < 500 {
					t.Errorf("%d packets", packets)
				}
			})
		}
	}
}

// throughChain sends a capture through a chain, packets alternately from either
// side, and returns how many there were.
func throughChain(t *testing.T, spec *pipeline.ChainSpec, capture string) uint64 {
	t.Helper()
	const frames, frameSize = 256, 1 << 11
	arena, err := pipeline.NewArena(make([]byte, frames*frameSize), frameSize, 256, 1)
	if err != nil {
		t.Fatal(err)
	}
	infos := []pipeline.PortInfo{{ID: 0, Name: "lan", MTU: 1500}, {ID: 1, Name: "wan", MTU: 1500}}
	var ports []*pipeline.MemoryPort
	for _, info := range infos {
		ports = append(ports, pipeline.NewMemoryPort(info, arena.Pool(0), 1<<16))
	}
	w := pipeline.NewWorker(pipeline.WorkerOptions{
		Ports: []pipeline.Port{ports[0], ports[1]}, Infos: infos, Pool: arena.Pool(0), Waiter: pipeline.NewChanWaiter(),
	})
	chain, err := spec.Build(w.Env())
	if err != nil {
		t.Fatal(err)
	}
	w.SetChains([]*pipeline.Chain{chain}, []bool{spec.Affinity()})

	r, err := pcap.Open(capture)
	if err != nil {
		if cerr := w.Close(); cerr != nil {
			t.Error(cerr)
		}
		return 0 // a file that is no capture: the reader's own tests
	}
	defer r.Close()
	var rec pcap.Record
	for n := 0; r.Next(&rec) == nil; n++ {
		frame := rec.Data
		if len(frame) > 1514 {
			frame = frame[:1514] // longer ones do not fit into a frame, on a wire either
		}
		ports[n%2].Inject(frame)
		if n%32 == 0 {
			turn(t, w, capture)
		}
		ports[0].Sent()
		ports[1].Sent()
	}
	for range 4 {
		turn(t, w, capture)
	}
	if err := w.Close(); err != nil {
		t.Errorf("%s: %v", capture, err)
	}
	s := w.Stats()
	if !s.Totals.Balanced() || s.Panics > 0 {
		t.Errorf("%s: %d panics, %+v", capture, s.Panics, s.Totals)
	}
	if free := arena.Pool(0).Free(); free != frames || s.Pool.DoubleFrees > 0 {
		t.Errorf("%s: %d frames free of %d, %d freed twice", capture, free, frames, s.Pool.DoubleFrees)
	}
	return s.Totals.Packets
}

func turn(t *testing.T, w *pipeline.Worker, capture string) {
	t.Helper()
	if _, err := w.Turn(); err != nil && !errors.Is(err, io.EOF) {
		t.Fatalf("%s: %v", capture, err)
	}
}
