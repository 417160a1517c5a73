package ratelimit

import (
	"math"
	"math/big"
)

// pace is a rate and a burst in whole numbers. Time runs in units of 1/den ns, of which a token (a packet or a byte)
// takes num. The fraction is exact for every rate whose period is one with a denominator up to maxDen, such as all round
// numbers of packets or bits, and else within 1/maxDen ns a token.
//
// A bucket is one number, the time at which it will be full again. It holds burst tokens less what fills it between now
// and then; taking n tokens moves it n*num units on. There is no remainder that could be lost between two packets, and
// a time that goes back finds the bucket emptier, not fuller. (This is the virtual scheduling form of the generic cell
// rate algorithm, ITU-T I.371 annex A.)
//
// Times are taken modulo 2^64, which is safe while two that are compared are less than 2^63 units, 4.8 hours at the
// least, apart: a bucket is full again within the hour that Validate allows, and the table frees it soon after.
type pace struct {
	num, den uint64
	full     int64 // burst in units of time
}

const maxDen = 1 << 19

// maxLen is the most bytes that a packet counts for, so that no length that a capture claims can overflow.
const maxLen = 256 << 10

func newPace(perSecond float64, burst int64) pace {
	num, den := approximate(1e9 / perSecond)
	return pace{num: num, den: den, full: burst * int64(num)}
}

// approximate returns the first convergent of the continued fraction of f that is f up to rounding, or the last one
// whose denominator is at most maxDen.
func approximate(f float64) (num, den uint64) {
	r := new(big.Rat).SetFloat64(f)
	n, d := new(big.Int).Set(r.Num()), new(big.Int).Set(r.Denom())
	num, den = 1, 0
	prevNum, prevDen := uint64(0), uint64(1)
	for d.Sign() != 0 {
		q, m := new(big.Int).QuoRem(n, d, new(big.Int))
		n, d = d, m
		if den > 0 && (!q.IsUint64() || q.Uint64() > maxDen || q.Uint64()*den+prevDen > maxDen) {
			break
		}
		a := q.Uint64()
		num, prevNum = a*num+prevNum, num
		den, prevDen = a*den+prevDen, den
		if math.Abs(float64(num)/float64(den)-f) <= f*1e-15 {
			break
		}
	}
	return num, den
}

// take returns the bucket after n tokens were taken at now (ns), and whether it held them. The bucket freshBucket is
// full.
func (p *pace) take(bucket uint64, now int64, n int64) (after uint64, ok bool) {
	t := uint64(now) * p.den
	lacks := p.lacks(bucket, now)
	cost := n * int64(p.num)
	if lacks+min(cost, p.full) > p.full {
		return bucket, false
	}
	// The two lowest numbers mean something else; a unit or two later is the same.
	return max(t+uint64(lacks+cost), deadBucket+1), true
}

// lacks returns how long, in units, the bucket takes to be full.
func (p *pace) lacks(bucket uint64, now int64) int64 {
	if bucket == freshBucket {
		return 0
	}
	return max(int64(bucket-uint64(now)*p.den), 0)
}
