package gateway

import "math/bits"

// ledger notes which sequence numbers are settled, from base on: everything before
// it is. One bit a number.
type ledger struct {
	base  uint64
	words []uint64 // the first has the 64 numbers around base
}

// settle notes the numbers from first until before end.
func (l *ledger) settle(first, end uint64) {
	first = max(first, l.base)
	if first == l.base && len(l.words) == 0 {
		l.base = max(l.base, end)
		return
	}
	for n := first; n < end; {
		i := int(n/64 - l.base/64)
		for len(l.words) <= i {
			l.words = append(l.words, 0)
		}
		to := min(end, n-n%64+64)
		l.words[i] |= ^uint64(0) << (n % 64) & (^uint64(0) >> (63 - (to-1)%64))
		n = to
	}
}

func (l *ledger) settled(n uint64) bool {
	if n < l.base {
		return true
	}
	i := n/64 - l.base/64
	return i < uint64(len(l.words)) && l.words[i]>>(n%64)&1 == 1
}

// advance moves base over what is settled, and at least to first.
func (l *ledger) advance(first uint64) uint64 {
	l.drop(max(first, l.base))
	for len(l.words) > 0 {
		run := uint64(bits.TrailingZeros64(^(l.words[0] >> (l.base % 64))))
		if run == 0 {
			break
		}
		l.drop(min(l.base+run, l.base-l.base%64+64))
	}
	return l.base
}

// drop forgets the numbers before to.
func (l *ledger) drop(to uint64) {
	if gone := to/64 - l.base/64; gone >= uint64(len(l.words)) {
		l.words = l.words[:0]
	} else if gone > 0 {
		l.words = l.words[:copy(l.words, l.words[gone:])]
	}
	l.base = to
	for len(l.words) > 0 && l.words[len(l.words)-1] == 0 {
		l.words = l.words[:len(l.words)-1]
	}
}
