package gateway

import (
	"math/rand/v2"
	"testing"
)

// The ledger, against a map.
func TestLedger(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		base := uint64(rnd.IntN(200))
		l, set := ledger{base: base}, map[uint64]bool{}
		for range 200 {
			first := base + uint64(rnd.IntN(300))
			end := first + uint64(rnd.IntN(80))
			l.settle(first, end)
			for n := first; n < end; n++ {
				set[n] = true
			}
			if rnd.IntN(3) == 0 {
				base = max(base, l.base) + uint64(rnd.IntN(2)*rnd.IntN(100))
				for set[base] {
					base++
				}
				if got := l.advance(base); got != base {
					t.Fatalf("base %d, want %d", got, base)
				}
			}
			for range 20 {
				n := base + uint64(rnd.IntN(500))
				if l.settled(n) != (set[n] || n < l.base) {
					t.Fatalf("%d: %v", n, l.settled(n))
				}
			}
		}
	}
}
