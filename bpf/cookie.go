package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
)

// maxCookieChains is how many chains can have their SYNs answered: COOKIE_CHAINS in bpf/include/types.h.
const maxCookieChains = 256

// Where things are in struct cookie_chain.
const (
	cookieChainSize = 64
	cookieOn        = 0
	cookieSent      = 16
	cookieGood      = 24
	cookieMSS4      = 32
)

// ErrNoCookies says that the kernel has no SYN cookies for XDP.
var ErrNoCookies = errors.New("the kernel has no SYN cookies for XDP; mend: Linux 6.0 or later with CONFIG_SYN_COOKIES, or syn_cookies = \"off\"")

// CookieAnswer is what SYN-ACKs with a cookie say to clients. All of a chain's are the same, whatever the server would have said.
type CookieAnswer struct {
	MSS4, MSS6 uint16 // segment sizes, IPv4 and IPv6
	Window     uint16 // bytes
	Shift      uint8  // of later windows, if the client shifts
}

// cookies is the part of a Steerer that switches SYN cookies.
type cookies struct {
	usable bool
	chains *ebpf.Map
	works  *ebpf.Map
	memory *ebpf.Memory

	mu sync.Mutex
	on [maxCookieChains]bool
	n  int // of them
}

// haveCookieHelpers asks the kernel once.
var haveCookieHelpers = sync.OnceValue(func() bool {
	for _, h := range []asm.BuiltinFunc{asm.FnTcpRawGenSyncookieIpv4, asm.FnTcpRawGenSyncookieIpv6, asm.FnTcpRawCheckSyncookieIpv4, asm.FnTcpRawCheckSyncookieIpv6} {
		if features.HaveProgramHelper(ebpf.XDP, h) != nil {
			return false
		}
	}
	return true
})

// constant is cookie_helpers in the program, without which it does not name the kernel's functions.
func (c *cookies) constant() uint32 {
	if c.usable {
		return 1
	}
	return 0
}

func (c *cookies) open(m *steerMaps) (err error) {
	c.chains, c.works = m.CookieChains, m.CookieWorks
	if c.memory, err = c.chains.Memory(); err != nil {
		return fmt.Errorf("map memory of SYN cookies: %w", err)
	}
	return nil
}

// AnswerSYNs has the program answer the SYNs of new flows of a chain with SYN-ACKs whose numbers are cookies, and keep nothing of them; nil: no
// longer. A segment that gives a cookie back begins the flow: it comes with Meta.Cookie. Good cookies are known for two minutes after
// the last SYN-ACK, whether SYNs are still answered or not. It writes into memory that it shares with the program.
func (s *Steerer) AnswerSYNs(chain int, a *CookieAnswer) error {
	c := &s.cookies
	switch {
	case a != nil && !c.usable:
		return ErrNoCookies
	case chain < 0 || chain >= maxCookieChains:
		return fmt.Errorf("answer SYNs: want a chain from 0 to %d, got %d", maxCookieChains-1, chain)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	at := int64(chain) * cookieChainSize
	if a != nil {
		var b [8]byte
		for i, v := range []uint16{a.MSS4, a.MSS6, a.Window, uint16(a.Shift)} {
			binary.NativeEndian.PutUint16(b[2*i:], v)
		}
		if _, err := c.memory.WriteAt(b[:], at+cookieMSS4); err != nil {
			return fmt.Errorf("answer SYNs: %w", err)
		}
	}
	if c.on[chain] != (a != nil) {
		if c.on[chain] = a != nil; a != nil {
			c.n++
		} else {
			c.n--
		}
	}
	for _, w := range []struct {
		at int64
		on bool
	}{{at, a != nil}, {maxCookieChains * cookieChainSize, c.n > 0}} {
		var b [8]byte // one store: see Beat
		if w.on {
			binary.NativeEndian.PutUint64(b[:], 1)
		}
		if _, err := c.memory.WriteAt(b[:], w.at+cookieOn); err != nil {
			return fmt.Errorf("answer SYNs: %w", err)
		}
	}
	return nil
}

// Cookies returns how many SYNs of a chain were answered, and how many segments have given a cookie back.
func (s *Steerer) Cookies(chain int) (sent, good uint64) {
	if chain < 0 || chain >= maxCookieChains || s.cookies.memory == nil {
		return 0, 0
	}
	var b [16]byte
	_, _ = s.cookies.memory.ReadAt(b[:], int64(chain)*cookieChainSize+cookieSent)
	return binary.NativeEndian.Uint64(b[:]), binary.NativeEndian.Uint64(b[cookieGood-cookieSent:])
}
