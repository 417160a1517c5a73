package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
)

// Missing asks the kernel for each thing that the programs need, by trying it, and returns those that it lacks by their names in
// linux/bpf.h. It needs CAP_BPF, or root; without, the error wraps os.ErrPermission.
func Missing() (names []string, err error) {
	ask := func(name string, err error) error {
		if errors.Is(err, ebpf.ErrNotSupported) {
			names = append(names, name)
			return nil
		}
		if err != nil {
			return fmt.Errorf("ask the kernel for %s: %w", name, err)
		}
		return nil
	}
	err = ask("BPF_PROG_TYPE_XDP", features.HaveProgramType(ebpf.XDP))
	for _, t := range []struct {
		name string
		t    ebpf.MapType
	}{
		{"BPF_MAP_TYPE_XSKMAP", ebpf.XSKMap}, {"BPF_MAP_TYPE_DEVMAP", ebpf.DevMap}, {"BPF_MAP_TYPE_LRU_HASH", ebpf.LRUHash},
		{"BPF_MAP_TYPE_RINGBUF", ebpf.RingBuf}, {"BPF_MAP_TYPE_PERCPU_ARRAY", ebpf.PerCPUArray},
	} {
		if err == nil {
			err = ask(t.name, features.HaveMapType(t.t))
		}
	}
	for _, h := range []struct {
		name string
		fn   asm.BuiltinFunc
	}{
		{"bpf_redirect_map", asm.FnRedirectMap}, {"bpf_fib_lookup", asm.FnFibLookup}, {"bpf_xdp_adjust_meta", asm.FnXdpAdjustMeta},
		{"bpf_for_each_map_elem", asm.FnForEachMapElem}, {"bpf_ringbuf_output", asm.FnRingbufOutput},
	} {
		if err == nil {
			err = ask(h.name, features.HaveProgramHelper(ebpf.XDP, h.fn))
		}
	}
	return names, err
}

// NoTargetMend mends an interface that takes no redirected frames, where that is a veth.
const NoTargetMend = "ethtool -K PEER gro off and then gro on at its other end while both ends are up"

// Leftovers are the links that an instance of the name, dead or alive, has pinned.
func Leftovers(pinRoot, name string) (links []string, err error) {
	if !validName(name) {
		return nil, fmt.Errorf("look for pins: name %q: want 1 to 64 letters, digits, '-' or '_'", name)
	}
	return pinnedLinks(pinRoot, name)
}

// OnBPFFS says whether path, or the nearest folder above it that exists, is on a bpf file system.
func OnBPFFS(path string) bool { return onBPFFS(path) }
