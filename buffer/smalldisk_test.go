//go:build linux

package buffer_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// A disk of a few megabytes becomes full, by the log or by somebody else, and has
// room again. Put tells of it or the oldest make room, what is committed can be
// read all the while, and afterwards all is as before.
func TestSmallDisk(t *testing.T) {
	if os.Getuid() != 0 {
		skipVisibly(t, "only root may mount a small disk")
	}
	for _, disk := range []struct {
		name  string
		mount func(dir, image string) error
	}{
		{"tmpfs", func(dir, _ string) error { return command("mount", "-t", "tmpfs", "-o", "size=8m", "none", dir) }},
		{"ext4", func(dir, image string) error {
			for _, c := range [][]string{{"truncate", "-s", "12M", image}, {"mkfs.ext4", "-q", "-O", "^has_journal", "-m", "0", image}, {"mount", "-o", "loop", image, dir}} {
				if err := command(c...); err != nil {
					return err
				}
			}
			return nil
		}},
	} {
		t.Run(disk.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := disk.mount(dir, filepath.Join(t.TempDir(), "image")); err != nil {
				skipVisibly(t, err.Error())
			}
			t.Cleanup(func() {
				if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
					t.Error(err)
				}
			})
			fill(t, dir)
		})
	}
}

func command(args ...string) error {
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w: %.200s", args, err, out)
	}
	return nil
}

func fill(t *testing.T, disk string) {
	ballast := filepath.Join(disk, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	options := logOptions{MaxSize: 64 << 20, SegmentSize: 512 << 10}
	dir := filepath.Join(disk, "log")
	l, c, err := openLog(dir, options)
	if err != nil {
		t.Fatal(err)
	}
	led := &ledger{}
	led.newLife()
	put := func(n int) error {
		g := led.next
		led.line(fmt.Sprintf("p %d %d", g, n), 0)
		err := l.Put(nths(g, g+n)...)
		if err != nil {
			led.line(fmt.Sprintf("F %d %d", g, n), 0)
		} else {
			led.line(fmt.Sprintf("P %d %d", g, n), 1)
		}
		return err
	}
	full := func() bool { return dropped(l) > 0 }
	var first error
	for led.next < 2_000_000 && first == nil && !full() {
		first = put(1000)
	}
	if first == nil && !full() {
		t.Fatal("the disk never became full: that proves nothing")
	}
	filled := led.next
	refused := 0
	for i := range 60 { // go on: small ones and large ones
		if put(1+i*30) != nil {
			refused++
		}
	}
	// The broker is back while the disk is full.
	rs, end, err := c.Peek(5000)
	if err != nil || len(rs) != 5000 {
		t.Fatalf("peek on a full disk: %d records, %v", len(rs), err)
	}
	led.send(rs)
	led.line("a", 0)
	c.Ack(end)
	led.line("A", 0)
	for range 5 {
		_ = put(1)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	var after error
	start, tries := time.Now(), 0
	for ; tries < 50; tries++ {
		if after = put(10); after == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if after != nil {
		t.Fatalf("there is room again for %v, but: %v", time.Since(start), after)
	}
	for range 20 {
		if err := put(5); err != nil {
			t.Errorf("after the disk had room again: %v", err)
		}
	}
	gone := dropped(l)
	if err := l.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	bad, d := &faults{}, &doctor{}
	defer d.stop()
	f, ok := d.sure(bad, "after it was full", job{logOptions: options, Dir: dir, New: nths(led.next, led.next+3)})
	if ok {
		led.drained(unpack(f.Records, f.Count))
	}
	led.bad(bad, "after it was full")
	lost, total := 0, 0
	oldest := -1 // of what is kept beyond the acknowledged
	for g := range led.acked {
		switch {
		case led.acked[g] == 0:
			continue
		case led.seen[g]:
			if oldest < 0 && g >= 5000 {
				oldest = g
			}
		default:
			lost++
			if oldest >= 0 {
				bad.add("lost, and not the oldest", "record %d, after %d", g, oldest)
			}
		}
		total++
	}
	t.Logf("full after %d readings (%v), then %d of 60 Puts refused; with room again it took new ones at try %d; %d of %d acknowledged missing, %d stated as dropped",
		filled, first, refused, tries+1, lost, total, gone)
	if uint64(lost) > gone {
		bad.add("lost", "%d, but only %d stated", lost, gone)
	}
	bad.report(t)
}
