package ratelimit

import (
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"testing"
	"time"
)

func TestPaceIsExact(t *testing.T) {
	for _, c := range []struct {
		perSecond float64
		num, den  uint64
	}{
		{2000, 500000, 1},
		{3, 1e9, 3},
		{7, 1e9, 7},
		{1e6, 1000, 1},
		{3e6, 1000, 3},
		{524287, 1e9, 524287}, // the largest prime below maxDen
		{1.25e6, 800, 1},      // 10 Mbit/s
		{1.25e9, 4, 5},        // 10 Gbit/s
		{1.25e10, 2, 25},      // 100 Gbit/s
		{1e11, 1, 100},
		{125, 8e6, 1},
		{1.1e6 / 8, 80000, 11},    // 1.1 Mbit/s
		{0.1 * 1e6 / 8, 80000, 1}, // not quite 12500 in binary
		{1.0 / 3600, 36e11, 1},    // 1 packet an hour
		{1.0 / 3, 3000000000, 1},  //
		{97e6 / 8, 8000, 97},      // 97 Mbit/s
		{math.Pi, 0, 0},           // only close
		{999983, 0, 0},            // a prime above maxDen: only close
	} {
		p := newPace(c.perSecond, 10)
		if got, want := float64(p.num)/float64(p.den), 1e9/c.perSecond; math.Abs(got-want) > 1.0/maxDen {
			t.Errorf("%v/s: a token takes %v ns, want %v", c.perSecond, got, want)
		}
		if p.den > maxDen || p.den == 0 || p.num == 0 {
			t.Errorf("%v/s: %d/%d", c.perSecond, p.num, p.den)
		}
		if c.num != 0 && (p.num != c.num || p.den != c.den) {
			t.Errorf("%v/s: %d/%d ns a token, want %d/%d", c.perSecond, p.num, p.den, c.num, c.den)
		}
	}
}

// reference is a token bucket in rational numbers.
type reference struct {
	perNs, burst, tokens *big.Rat
	latest               int64
}

func newReference(num, den uint64, burst int64) *reference {
	b := new(big.Rat).SetInt64(burst)
	return &reference{perNs: new(big.Rat).SetFrac64(int64(den), int64(num)), burst: b, tokens: new(big.Rat).Set(b)}
}

func (r *reference) take(now, n int64) bool {
	if r.latest != 0 && now > r.latest {
		r.tokens.Add(r.tokens, new(big.Rat).Mul(r.perNs, new(big.Rat).SetInt64(now-r.latest)))
		if r.tokens.Cmp(r.burst) > 0 {
			r.tokens.Set(r.burst)
		}
	}
	r.latest = max(r.latest, now)
	cost := new(big.Rat).SetInt64(n)
	enough := cost
	if enough.Cmp(r.burst) > 0 {
		enough = r.burst
	}
	if r.tokens.Cmp(enough) < 0 {
		return false
	}
	r.tokens.Sub(r.tokens, cost)
	return true
}

// TestPaceEqualsReference lets random packets come at random times, around the rate, and compares each decision.
func TestPaceEqualsReference(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for _, perSecond := range []float64{7, 2000, 3e6, 1.25e6, 97e6 / 8, 1.25e9} {
		for _, burst := range []int64{1, 10, 15000} {
			p := newPace(perSecond, burst)
			ref := newReference(p.num, p.den, burst)
			bucket, now, passed := freshBucket, int64(1_700_000_000_000_000_000), 0
			mean := 1e9 / perSecond
			for i := range 3000 {
				n := int64(1)
				if burst > 10 {
					n = 1 + r.Int64N(2*burst)/(1+r.Int64N(20))
				}
				now += int64(mean * float64(n) * r.ExpFloat64())
				if r.IntN(50) == 0 {
					now += int64(mean * float64(burst) * r.Float64() * 2)
				}
				want := ref.take(now, n)
				after, ok := p.take(bucket, now, n)
				if ok != want {
					t.Fatalf("%v/s, burst %d, packet %d (%d tokens): %v, want %v", perSecond, burst, i, n, ok, want)
				}
				bucket = after
				if ok {
					passed++
				}
			}
			if passed == 0 || passed == 3000 {
				t.Errorf("%v/s, burst %d: %d of 3000 passed, which tests nothing", perSecond, burst, passed)
			}
		}
	}
}

// TestPaceDoesNotDrift offers twice the rate for ten minutes.
func TestPaceDoesNotDrift(t *testing.T) {
	const perSecond, burst, start = 3000.0, 10, int64(1e18)
	p := newPace(perSecond, burst)
	bucket, passed := freshBucket, int64(0)
	const offered = int64(2 * perSecond * 600)
	for i := range offered {
		after, ok := p.take(bucket, start+i*1e6/6, 1)
		if bucket = after; ok {
			passed++
		}
	}
	// The last packet comes 1/6000 s before the time is over.
	if want := int64(perSecond*600) + burst - 1; passed != want {
		t.Errorf("%d packets passed, want %d", passed, want)
	}
}

func TestTimeGoingBackGivesNothing(t *testing.T) {
	p := newPace(1000, 5)
	bucket, passed := freshBucket, 0
	take := func(now int64) {
		after, ok := p.take(bucket, now, 1)
		if bucket = after; ok {
			passed++
		}
	}
	const now = int64(1e18)
	for range 10 {
		take(now)
	}
	for i := range int64(1000) {
		take(now - i*1e6) // a second back, step by step
		take(now - 1e9)
		take(now)
	}
	if passed != 5 {
		t.Errorf("%d packets passed, want the burst of 5", passed)
	}
	take(now + 1e6)
	take(now + 1e6)
	if passed != 6 {
		t.Errorf("%d packets passed after 1 ms more, want 6", passed)
	}
}

func TestPacketLargerThanTheBurst(t *testing.T) {
	p := newPace(1000, 1500)
	bucket := freshBucket
	var ok bool
	if bucket, ok = p.take(bucket, 1e18, 3000); !ok {
		t.Fatal("does not pass a full bucket")
	}
	// It owes 1,500 bytes: 1.5 s until the bucket is empty, 3 s until it is full.
	if _, ok = p.take(bucket, 1e18+1.499e9, 1); ok {
		t.Error("a byte passes while the bucket is in debt")
	}
	if _, ok = p.take(bucket, 1e18+1.501e9, 1); !ok {
		t.Error("a byte does not pass when the debt is paid")
	}
	if _, ok = p.take(bucket, 1e18+2.999e9, 3000); ok {
		t.Error("a large packet passes a bucket that is not full")
	}
}

// TestExtremesDoNotOverflow takes the largest packets at the slowest and fastest rates that Validate allows.
func TestExtremesDoNotOverflow(t *testing.T) {
	for _, c := range []struct {
		perSecond float64
		burst, n  int64
	}{
		{minBytesPerSec, 1, maxLen}, {minBytesPerSec, 3600 * minBytesPerSec, maxLen}, {1.0 / 3600, 1, 1},
		{125.00001, 450000, maxLen}, {maxPerSecond, 1e11 * 3600, maxLen}, {999983, 3599938800, 1}, {maxPerSecond, 1, 1},
	} {
		t.Run(fmt.Sprint(c.perSecond), func(t *testing.T) {
			p := newPace(c.perSecond, c.burst)
			if p.full <= 0 {
				t.Fatalf("full is %d", p.full)
			}
			bucket, now := freshBucket, int64(1_900_000_000_000_000_000)
			for range 3 {
				after, ok := p.take(bucket, now, c.n)
				if !ok {
					t.Fatal("a full bucket refuses")
				}
				if lacks := p.lacks(after, now); lacks <= 0 || float64(lacks)/float64(p.den) > 3601e9 {
					t.Fatalf("lacks %v s", float64(lacks)/float64(p.den)/1e9)
				}
				bucket = after
				now += int64(time.Hour) + 1e9
			}
		})
	}
}

func FuzzPace(f *testing.F) {
	f.Add(uint32(2000), uint16(10), int64(1e18), []byte{0, 0, 0, 200, 1})
	f.Fuzz(func(t *testing.T, rate uint32, burst uint16, now int64, steps []byte) {
		p := newPace(float64(max(rate, 1)), max(int64(burst), 1))
		if float64(max(burst, 1))/float64(max(rate, 1)) > 3600 || now < 0 || now > math.MaxInt64/2 {
			return
		}
		ref := newReference(p.num, p.den, max(int64(burst), 1))
		bucket, latest := freshBucket, int64(0)
		for _, s := range steps {
			now += int64(s) * int64(s) * 1000
			if s == 255 {
				now -= 3e9
			}
			latest = max(latest, now)
			after, ok := p.take(bucket, latest, 1)
			if want := ref.take(latest, 1); ok != want {
				t.Fatalf("%d/s, burst %d at %d: %v, want %v", rate, burst, now, ok, want)
			}
			bucket = after
		}
	})
}
