package buffer_test

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// A writer with a window of 0 is killed at random moments, while it opens, puts,
// commits, sends and acknowledges, with its broker there at times. The ledger is
// kept here, outside of it, from what it prints.
func TestKills(t *testing.T) {
	kills, seed := share(15, 500), seedOf(t)
	rng := rand.New(rand.NewPCG(seed, 2))
	dir, led, bad := t.TempDir(), &ledger{}, &faults{}
	options := logOptions{MaxSize: 64 << 20, SegmentSize: 256 << 10}
	var alive time.Duration
	var starts []int // the first record of each life
	for i := range kills {
		led.newLife()
		starts = append(starts, led.next)
		s := script{logOptions: options, Dir: dir, Seed: rng.Uint64(), Next: led.next, Largest: 20, Read: rng.IntN(3) > 0,
			Pause: time.Duration(rng.IntN(3)*rng.IntN(6)) * time.Millisecond}
		cmd, err := s.command()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		after := time.Duration(30+rng.IntN(170)) * time.Millisecond
		if rng.IntN(5) == 0 {
			after = time.Duration(rng.IntN(50)) * time.Millisecond // while it opens
		}
		killed := time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
		for lines := bufio.NewReader(out); ; {
			text, err := lines.ReadString('\n')
			if err != nil {
				break // what was not written to the end was not said
			}
			led.line(text[:len(text)-1], time.Now().UnixMicro())
		}
		_ = cmd.Wait() // killed
		if killed.Stop() {
			t.Fatalf("kill %d: the writer ended by itself", i)
		}
		alive += time.Since(start)
	}
	d := &doctor{}
	defer d.stop()
	f, ok := d.sure(bad, "after the last kill", job{logOptions: options, Dir: dir, New: nths(led.next, led.next+5)})
	if ok {
		led.drained(unpack(f.Records, f.Count))
	}
	lost, total := led.lost(time.Now().UnixMicro())
	t.Logf("%d kills, %d of %d acknowledged readings lost, %d out of order, %d invented, %d duplicates on the wire, %d in effect (%d Puts, %.0f readings/s, %d of the kills before the log was open)",
		kills, lost, total, led.disordered, led.invented+led.wrong, led.duplicates, led.wrong, led.puts, float64(total)/alive.Seconds(), kills-led.opens)
	led.bad(bad, "kills")
	if lost > 0 {
		names, _ := filepath.Glob(filepath.Join(dir, "*.damaged-*"))
		bad.add("lost", "%d of %d: %s; files set aside: %d; lost are %s", lost, total, led.note, len(names), led.gaps(starts))
	}
	if led.failed+led.failedOpens > 0 {
		bad.add("error", "%d Puts, %d openings failed", led.failed, led.failedOpens)
	}
	if f.Dropped > 0 || f.SetAside > 0 {
		bad.add("loss stated", "%d records, %d files set aside", f.Dropped, f.SetAside)
	}
	if rate := float64(total) / alive.Seconds(); rate < 200 || led.duplicates == 0 && kills >= 100 {
		t.Errorf("%.0f readings/s, %d duplicates on the wire: that proves little", rate, led.duplicates)
	}
	bad.report(t)
}

// gaps are the lost records in runs, with the life in which they were put.
func (l *ledger) gaps(starts []int) (all string) {
	for g := 0; g < len(l.acked); g++ {
		from := g
		for g < len(l.acked) && l.acked[g] != 0 && !l.seen[g] {
			g++
		}
		if g > from {
			life, ok := slices.BinarySearch(starts, from)
			if !ok {
				life--
			}
			all += fmt.Sprintf("%d to %d of life %d (%d on); ", from, g-1, life, starts[life])
		}
	}
	return all
}
