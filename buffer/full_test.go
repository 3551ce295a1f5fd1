package buffer

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// tagged is words whose records begin with whose they are, "whose:rest", and of
// which every other may go.
type tagged struct{ words }

func (tagged) Name(r string) string { name, _, _ := strings.Cut(r, ":"); return name }

func (tagged) Thin(rs []string, events bool) (kept []string) {
	for i, r := range rs {
		if i%2 == 0 || i == len(rs)-1 || !events && strings.HasPrefix(r, "door:") {
			kept = append(kept, r)
		}
	}
	return kept
}

// noise is a record that does not compress, with its number in front.
func noise(rng *rand.Rand, whose string, n int) string {
	b := binary.BigEndian.AppendUint32([]byte(whose+":"), uint32(n))
	for range 500 {
		b = append(b, byte(rng.Uint32()))
	}
	return string(b)
}

func numberOf(r string) int {
	_, rest, _ := strings.Cut(r, ":")
	return int(binary.BigEndian.Uint32([]byte(rest)))
}

// A full log that thins keeps both ends of the time, loses detail, counts each
// record it gives up by sensor, and never exceeds its size.
func TestThin(t *testing.T) {
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(6, 6))
	l, err := Open(dir, tagged{}, Options{MaxSize: 8 << 20, Full: ThinOldest})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := l.Cursor("broker")
	if err != nil {
		t.Fatal(err)
	}
	put := map[string]int{}
	if err := l.Put(noise(rng, "room", 0), noise(rng, "room", 1)); err != nil {
		t.Fatal(err)
	}
	put["room"] = 2
	if rs, end, err := c.Peek(1); err != nil || numberOf(rs[0]) != 0 { // under way all the time
		t.Fatal(err)
	} else {
		defer c.Ack(end)
	}
	const all = 60_000 // some 30 MB
	for n := 2; n < all; {
		var rs []string
		for range 100 {
			whose := "room"
			if n%50 == 0 {
				whose = "door"
			}
			rs = append(rs, noise(rng, whose, n))
			put[whose]++
			n++
		}
		if err := l.Put(rs...); err != nil {
			t.Fatal(err)
		}
		if size := folderSize(t, dir); size > 8<<20 {
			t.Fatalf("%d bytes at record %d", size, n)
		}
		l.tend()
	}
	s := l.Stats()
	got := map[string]int{}
	last := -1
	oldHalf := 0
	if err := l.Each(func(r string) error {
		n := numberOf(r)
		if n <= last {
			return fmt.Errorf("%d after %d", n, last)
		}
		last = n
		if n < all/2 {
			oldHalf++
		}
		got[tagged{}.Name(r)]++
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, whose := range []string{"room", "door"} {
		dropped := 0
		for reason := range s.Dropped {
			dropped += int(s.Dropped[reason][whose])
		}
		if got[whose]+dropped != put[whose] {
			t.Errorf("%s: put %d, got %d, dropped %d", whose, put[whose], got[whose], dropped)
		}
	}
	if s.DroppedFor("thinned") == 0 || s.DroppedFor("full") > 0 {
		t.Errorf("dropped %v: want all by thinning", s.Dropped)
	}
	if oldHalf < 500 || s.Dropped["thinned"]["door"] > 0 {
		t.Errorf("of the older half %d stay, %d events went", oldHalf, s.Dropped["thinned"]["door"])
	}
	if s.Depth != got["room"]+got["door"] || last != put["room"]+put["door"]-1 {
		t.Errorf("depth %d, last %d", s.Depth, last)
	}
	// What is under way was not touched, and the rest comes in order.
	if rs, _, err := c.Peek(2); err != nil || numberOf(rs[0]) != 0 {
		t.Errorf("%v", err)
	}
}

// A log that is full thins out, but not what an uplink goes by the numbers of.
func TestHold(t *testing.T) {
	for _, held := range []bool{true, false} {
		rng := rand.New(rand.NewPCG(6, 6))
		l, err := Open(t.TempDir(), tagged{}, Options{MaxSize: 8 << 20, Full: ThinOldest})
		if err != nil {
			t.Fatal(err)
		}
		c, err := l.Cursor("broker")
		if err != nil {
			t.Fatal(err)
		}
		var put []string
		for len(put) < 40_000 {
			var rs []string
			for range 100 {
				rs = append(rs, noise(rng, "room", len(put)+len(rs)))
			}
			put = append(put, rs...)
			if err := l.Put(rs...); err != nil {
				t.Fatal(err)
			}
			if held && len(put) == 5000 {
				c.Hold(501, 3001, 3501)
			}
			l.tend()
		}
		same := func(from, to uint64) bool { // the first number is 1
			for n := from; n < to; {
				rs, first, next, err := c.Read(n, int(to-n))
				if err != nil || first != n || next == n || !slices.Equal(rs, put[n-1:n-1+uint64(len(rs))]) {
					return false
				}
				n = next
			}
			return true
		}
		if got := same(1, 501) && same(3001, 3501); got != held {
			t.Errorf("held: %v, as they were: %v", held, got)
		}
		if same(1001, 1501) || same(6001, 6501) {
			t.Error("the rest is not thinned out")
		}
		last := -1 // what is read lies at its numbers, in order, whatever was thinned
		for n := uint64(1); ; {
			rs, first, next, err := c.Read(n, 777)
			if err != nil {
				t.Fatal(err)
			}
			if next == n {
				break
			}
			if first < n || next < first+uint64(len(rs)) {
				t.Fatalf("read from %d: %d…%d, %d records", n, first, next, len(rs))
			}
			for _, r := range rs {
				if numberOf(r) <= last {
					t.Fatalf("%d after %d", numberOf(r), last)
				}
				last = numberOf(r)
			}
			n = next
		}
		if last != len(put)-1 {
			t.Errorf("the last is %d", last)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// An uplink that is taken away holds nothing back, also over a restart.
func TestOnly(t *testing.T) {
	dir := t.TempDir()
	l, a := open(t, dir, Options{})
	b, err := l.Cursor("campus")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Put(numbers(0, 100)...); err != nil {
		t.Fatal(err)
	}
	drain(t, a, 10)
	if b.Depth() != 100 || l.Stats().Depth != 100 {
		t.Errorf("%d, %d wait", b.Depth(), l.Stats().Depth)
	}
	if got := l.Only("broker"); !slices.Equal(got, []string{"campus"}) {
		t.Errorf("%q", got)
	}
	if got := l.Only("broker"); len(got) != 0 || l.Stats().Depth != 0 {
		t.Errorf("%q, %d wait", got, l.Stats().Depth)
	}
	if err := l.Put(numbers(100, 101)...); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, a = open(t, dir, Options{})
	defer l.Close()
	check(t, drain(t, a, 10), numbers(100, 101))
	if _, err = l.Cursor("campus"); err != nil {
		t.Fatal(err)
	}
	if got := l.Only("broker", "campus"); len(got) != 0 {
		t.Errorf("%q", got)
	}
}

func folderSize(t *testing.T, dir string) (n int64) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "log-*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if i, err := os.Stat(name); err == nil {
			n += i.Size()
		}
	}
	return n
}

// A crash between the two steps that put a thinned segment in its place leaves
// one file too many: it goes.
func TestThinCrash(t *testing.T) {
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(7, 7))
	l, err := Open(dir, tagged{}, Options{MaxSize: 8 << 20, Full: ThinOldest})
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; len(l.segments) < 4; n += 100 {
		var rs []string
		for k := range 100 {
			rs = append(rs, noise(rng, "room", n+k))
		}
		if err := l.Put(rs...); err != nil {
			t.Fatal(err)
		}
	}
	second := l.segments[1].path
	b, err := os.ReadFile(second)
	if err != nil {
		t.Fatal(err)
	}
	depth := l.Stats().Depth
	if err := l.beginClearing(); err != nil {
		t.Fatal(err)
	}
	for l.clearing != nil {
		l.opt.MaxSize = 1 // near its limit
		if err := l.thin(time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	thinned := l.Stats().Depth
	if thinned > depth*9/10 {
		t.Fatalf("%d of %d", thinned, depth)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(second, b, 0o600); err != nil { // as if it had not been removed yet
		t.Fatal(err)
	}
	l, err = Open(dir, tagged{}, Options{MaxSize: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if s := l.Stats(); s.Depth != thinned || len(s.Damage) > 0 {
		t.Errorf("depth %d, was %d; damage %v", s.Depth, thinned, s.Damage)
	}
	if _, err := os.Stat(second); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
}

// A full log that refuses says so, keeps what it has, and takes again when what it
// had is delivered.
func TestDropNewest(t *testing.T) {
	rng := rand.New(rand.NewPCG(8, 8))
	l, c := open(t, t.TempDir(), Options{MaxSize: 8 << 20, Full: DropNewest})
	defer l.Close()
	put, refused := 0, 0
	for n := 0; refused < 3; n++ {
		err := l.Put(noise(rng, "", put))
		switch {
		case err == nil || errors.Is(err, ErrVolatile) && errors.Is(err, ErrFull):
			put++
		case errors.Is(err, ErrFull):
			refused++
		default:
			t.Fatal(err)
		}
		if n > 50_000 {
			t.Fatal("never full")
		}
	}
	if n := l.Stats().DroppedFor("full"); n != 3 {
		t.Errorf("%d counted", n)
	}
	if err := l.settle(false); !errors.Is(err, ErrFull) || l.Stats().Failing == nil {
		t.Errorf("nothing was tried, and all is well: %v", err)
	}
	got := 0
	for {
		rs, end, err := c.Peek(700)
		if err != nil {
			t.Fatal(err)
		}
		if len(rs) == 0 {
			break
		}
		for _, r := range rs {
			if n := numberOf(":" + strings.TrimPrefix(r, ":")); n != got {
				t.Fatalf("record %d is %d", got, n)
			}
			got++
		}
		c.Ack(end)
		_ = l.commit(0)
	}
	if got != put {
		t.Errorf("put %d, got %d", put, got)
	}
	if err := l.commit(0); err != nil {
		t.Fatal(err)
	}
	if err := l.Put("more"); err != nil {
		t.Errorf("empty, and yet: %v", err)
	}
}

// dated is words that begin with their age in hours.
type dated struct{ words }

func (dated) Age(r string) (time.Duration, bool) {
	var hours int
	n, _ := fmt.Sscanf(r, "%d h", &hours)
	return time.Duration(hours) * time.Hour, n == 1
}

// Records older than may be go, by whole blocks; what has no known age stays.
func TestMaxAge(t *testing.T) {
	l, err := Open(t.TempDir(), dated{}, Options{MaxAge: 24 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range 3 {
		l.mu.Lock()
		l.tail = blockInfo{} // a block of its own each
		l.mu.Unlock()
		var rs []string
		for k := range 1000 {
			rs = append(rs, fmt.Sprintf("%d h", 50-k/100))
		}
		if err := l.Put(rs...); err != nil {
			t.Fatal(err)
		}
	}
	var young []string
	for range 1000 {
		young = append(young, "3 h")
	}
	if err := l.Put(young...); err != nil {
		t.Fatal(err)
	}
	if err := l.Put("nobody knows when"); err != nil {
		t.Fatal(err)
	}
	l.tend()
	if s := l.Stats(); s.DroppedFor("age") != 3000 || s.Depth != 1001 {
		t.Errorf("dropped %v, depth %d", s.Dropped, s.Depth)
	}
}

// A log that finds less free than it must leave does not grow, and lives from what
// it has.
func TestMinFree(t *testing.T) {
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(10, 10))
	l, c := open(t, dir, Options{MaxSize: 64 << 20, SegmentSize: 1 << 20})
	put := 0
	more := func(n int) {
		t.Helper()
		for range n {
			var rs []string
			for range 100 {
				rs = append(rs, noise(rng, "room", put))
				put++
			}
			if err := l.Put(rs...); err != nil {
				t.Fatal(err)
			}
		}
	}
	more(100)
	size := folderSize(t, dir)
	l.opt.MinFree = 1 << 60 // the disk is full of other things
	more(200)
	if now := folderSize(t, dir); now > size {
		t.Errorf("grew from %d to %d bytes", size, now)
	}
	got := drain(t, c, 1000)
	if s := l.Stats(); len(got)+int(s.DroppedFor("full")) != put || numberOf(got[len(got)-1]) != put-1 || len(got) < put/10 {
		t.Errorf("put %d, got %d, dropped %v", put, len(got), s.Dropped)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}

	// From the beginning there is nothing to live from: then it is in memory.
	l, c = open(t, t.TempDir(), Options{MinFree: 1 << 60})
	defer l.Close()
	if err := l.Put("a"); !errors.Is(err, ErrVolatile) {
		t.Errorf("%v", err)
	}
	check(t, drain(t, c, 10), []string{"a"})
}

// Without a disk records wait in memory, come out, and move to the disk when it is
// there, after those that were on it before.
func TestMemory(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "log")
	l, before := open(t, dir, Options{SegmentSize: 1 << 20})
	// Much was there and is delivered, so the numbers on the disk are far from
	// those that memory begins with.
	rng := rand.New(rand.NewPCG(13, 13))
	for len(l.segments) < 3 {
		var rs []string
		for range 100 {
			rs = append(rs, noise(rng, "x", 0))
		}
		if err := l.Put(rs...); err != nil {
			t.Fatal(err)
		}
	}
	before.Ack(l.next)
	if err := l.commit(0); err != nil {
		t.Fatal(err)
	}
	if l.floor < 1000 {
		t.Fatalf("the floor is %d", l.floor)
	}
	if err := l.Put("from before"); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	away := filepath.Join(parent, "away")
	if err := os.Rename(dir, away); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir, nil, 0o600); err != nil { // a file where the folder should be
		t.Fatal(err)
	}
	var told []error
	l, c := open(t, dir, Options{Window: time.Second, MaxPending: 100, Failing: func(err error) { told = append(told, err) }})
	if len(told) != 1 || told[0] == nil || l.Stats().Volatile != "memory" {
		t.Fatalf("told %v, on %q", told, l.Stats().Volatile)
	}
	for i := range 150 { // more than it may keep
		if err := l.Put(fmt.Sprintf("record %d", i)); !errors.Is(err, ErrVolatile) {
			t.Fatalf("%d: %v", i, err)
		}
	}
	if n := l.Stats().DroppedFor("memory"); n != 50 {
		t.Errorf("%d dropped", n)
	}
	rs, end, err := c.Peek(10)
	if err != nil {
		t.Fatal(err)
	}
	check(t, rs, numbers(50, 60))
	c.Ack(end)
	_, inFlight, _ := c.Peek(5)

	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(away, dir); err != nil {
		t.Fatal(err)
	}
	l.retry.next = time.Time{}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.Run(ctx) }()
		time.Sleep(15 * time.Second)
		cancel()
		<-done
	})
	if s := l.Stats(); s.Failing != nil || s.Volatile == "memory" || len(told) != 2 || told[1] != nil {
		t.Fatalf("not moved: %+v, told %v", s, told)
	}
	if rs, _, next, err := c.Read(inFlight, 5); len(rs) != 0 || next != inFlight || err != nil {
		t.Errorf("read by a number of then: %q, %d, %v", rs, next, err)
	}
	c.Ack(inFlight) // of then: it must not be taken for what has the number now
	if first, end, anew := c.Bounds(); !anew || end-first != uint64(l.Stats().Depth) {
		t.Errorf("bounds %d, %d, %v; %d wait", first, end, anew, l.Stats().Depth)
	}
	if _, _, anew := c.Bounds(); anew {
		t.Error("it is told twice")
	}
	check(t, drain(t, c, 7), append([]string{"from before"}, numbers(60, 150)...))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, c = open(t, dir, Options{})
	defer l.Close()
	check(t, drain(t, c, 7), nil)
}

// An old copy put back, or a newest page that did not survive: the log says what it
// misses, salvages what the file still has, and never uses a number twice.
func TestRolledBack(t *testing.T) {
	dir := t.TempDir()
	l, _ := open(t, dir, Options{})
	if err := l.Put(numbers(0, 100)...); err != nil {
		t.Fatal(err)
	}
	path := l.segments[0].path
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := 100; i < 3000; i += 100 {
		if err := l.Put(numbers(i, i+100)...); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	meta := append([]byte(nil), whole...)
	// Both meta pages of the old copy in the new file: all new pages are there, and
	// nothing points at them.
	copy(meta, old[:2*pageSize])

	for name, test := range map[string]struct {
		file []byte
		lost int
	}{"old copy": {old, 2900}, "meta pages lost": {meta, 0}} {
		t.Run(name, func(t *testing.T) {
			dir := copyFolder(t, dir)
			if err := os.WriteFile(filepath.Join(dir, filepath.Base(path)), test.file, 0o600); err != nil {
				t.Fatal(err)
			}
			l, c := open(t, dir, Options{})
			defer l.Close()
			// The old meta pages may by chance lead to the newest pages.
			if s := l.Stats(); test.lost > 0 && len(s.Damage) != 1 || len(s.Damage) > 0 && int(s.Damage[0].Lost) != test.lost {
				t.Fatalf("%+v", s.Damage)
			}
			if err := l.Put("after"); err != nil {
				t.Fatal(err)
			}
			check(t, drain(t, c, 1000), append(numbers(0, 3000-test.lost), "after"))
			if l.next != 3002 {
				t.Errorf("next is %d: a number was used twice", l.next)
			}
		})
	}
}

func copyFolder(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

// Cursors survive the loss of the segment that had them.
func TestCursorsSurviveDamage(t *testing.T) {
	dir := t.TempDir()
	l, c := open(t, dir, Options{})
	if err := l.Put(numbers(0, 5000)...); err != nil {
		t.Fatal(err)
	}
	c.Ack(4001)
	if err := l.Put("last"); err != nil {
		t.Fatal(err)
	}
	path := l.segments[0].path
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	clear(b[:2*pageSize])
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	l, c = open(t, dir, Options{})
	defer l.Close()
	check(t, drain(t, c, 1000), append(numbers(4000, 5000), "last"))
	if s := l.Stats(); len(s.Damage) != 1 || s.Damage[0].Lost != 0 || s.Damage[0].Salvaged != 1001 {
		t.Errorf("%+v", s.Damage)
	}
}

// What was set aside, and what an export and a repair find.
func TestExport(t *testing.T) {
	dir := t.TempDir()
	l, c := open(t, dir, Options{SegmentSize: 1 << 20})
	rng := rand.New(rand.NewPCG(11, 11))
	var want []string
	for n := 0; len(l.segments) < 4; n += 50 {
		var rs []string
		for k := range 50 {
			rs = append(rs, noise(rng, "x", n+k))
		}
		if err := l.Put(rs...); err != nil {
			t.Fatal(err)
		}
		want = append(want, rs...)
	}
	c.Ack(11)
	want = want[10:]
	if err := c.Reject([]string{"poison"}, "no"); err != nil {
		t.Fatal(err)
	}
	if err := l.Put("end"); err != nil {
		t.Fatal(err)
	}
	want = append(want, "end")
	verify := Apart(os.Args[0], "inspect")
	if _, err := Export(dir, words{}, verify, func(string) error { return nil }); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("read under a running log: %v", err)
	}
	var got []string
	if err := l.Each(func(r string) error { got = append(got, r); return nil }); err != nil {
		t.Fatal(err)
	}
	check(t, got, want)
	if r := l.Rejects(); len(r) != 1 || r[0].Record != "poison" || r[0].Why != "no" {
		t.Errorf("%+v", r)
	}
	if r, ok := l.Last(); !ok || r != "end" {
		t.Errorf("%q", r)
	}
	middle := l.segments[1].path
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	got = nil
	files, err := Export(dir, words{}, verify, func(r string) error { got = append(got, r); return nil })
	if err != nil || len(files) != 4 {
		t.Fatal(files, err)
	}
	check(t, got, want)
	if r, err := ExportRejects(dir, words{}, verify); err != nil || len(r) != 1 || r[0].Record != "poison" {
		t.Errorf("%+v %v", r, err)
	}

	b, err := os.ReadFile(middle)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 0x10 // within a block, most likely
	if err := os.WriteFile(middle, b, 0o600); err != nil {
		t.Fatal(err)
	}
	got = nil
	files, err = Export(dir, words{}, verify, func(r string) error { got = append(got, r); return nil })
	if err != nil || files[1].Damage == nil || files[1].Records == 0 || len(got) != len(want)-50 {
		t.Errorf("%+v, %v: %d of %d", files, err, len(got), len(want))
	}
	l, _ = open(t, dir, Options{})
	s := l.Stats()
	if len(s.Damage) != 1 || s.Damage[0].Lost != 50 || int(s.Damage[0].Salvaged) != files[1].Records {
		t.Errorf("%+v, export read %d", s.Damage, files[1].Records)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	aside, n := s.Damage[0].File, 0
	if files, err = Export(aside, words{}, verify, func(string) error { n++; return nil }); err != nil || n != int(s.Damage[0].Salvaged) {
		t.Errorf("%+v, %v: %d", files, err, n)
	}
}

// A repair finds what has gone bad since Open, under a running log.
func TestRepair(t *testing.T) {
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(12, 12))
	l, c := open(t, dir, Options{SegmentSize: 1 << 20})
	defer l.Close()
	put := 0
	for len(l.segments) < 4 {
		var rs []string
		for range 50 {
			rs = append(rs, noise(rng, "x", put))
			put++
		}
		if err := l.Put(rs...); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.OpenFile(l.segments[2].path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	i, _ := f.Stat()
	if _, err := f.WriteAt([]byte("rot"), i.Size()/2); err != nil {
		t.Fatal(err)
	}
	f.Close()
	found, err := l.Check()
	if err != nil || found.Damaged != 1 || found.LostHere != 50 {
		t.Fatalf("%+v, %v", found, err)
	}
	if err := l.Put("meanwhile"); err != nil {
		t.Fatal(err)
	}
	if err := l.Repair(); err != nil {
		t.Fatal(err)
	}
	if s := l.Stats(); len(s.Damage) != 1 || s.Damage[0].Lost != 50 || s.Depth != put-50+1 {
		t.Errorf("%+v", s)
	}
	if err := l.Put("after"); err != nil {
		t.Fatal(err)
	}
	got := drain(t, c, 999)
	if len(got) != put-50+2 || got[len(got)-1] != "after" || got[len(got)-2] != "meanwhile" {
		t.Errorf("%d of %d, last %.20q", len(got), put, got[len(got)-1])
	}
}

// After an outage the card is left alone again, although there is always something
// that waits to be acknowledged; and the cursor is on it, so that a power cut does
// not bring the backlog back.
func TestOnlineAgain(t *testing.T) {
	dir := t.TempDir()
	l, c := open(t, dir, Options{Window: time.Second})
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.Run(ctx) }()
		for i := range 100 { // away
			if err := l.Put(fmt.Sprintf("record %d", i)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		commits := uint64(0)
		for i := range 3000 { // back: five minutes, a record each 100 ms, acknowledged 300 ms later
			if err := l.Put(fmt.Sprintf("record %d", 100+i)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
			c.Ack(uint64(100 + i - 3 + 1))
			if i == 100 {
				commits = l.Stats().Commits
			}
		}
		if n := l.Stats().Commits; n != commits {
			t.Errorf("%d commits in five minutes online", n-commits)
		}
		again, c := openCopy(t, dir) // as after a power cut
		check(t, drain(t, c, 1000), nil)
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
		cancel()
		<-done
	})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func openCopy(t *testing.T, dir string) (*Log[string], *Cursor[string]) {
	t.Helper()
	l, err := Open(copyFolder(t, dir), words{}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.Cursor("broker")
	if err != nil {
		t.Fatal(err)
	}
	return l, c
}

func TestVolatile(t *testing.T) {
	if on := volatileFS(t.TempDir()); on != "" && on != "tmpfs" && on != "overlay" {
		t.Errorf("%q", on)
	}
	if _, err := os.Stat("/dev/shm"); err != nil {
		t.Skip("no /dev/shm here")
	}
	dir, err := os.MkdirTemp("/dev/shm", "gateway-test-")
	if err != nil {
		t.Skip(err)
	}
	defer os.RemoveAll(dir)
	l, _ := open(t, dir, Options{})
	defer l.Close()
	if s := l.Stats(); s.Volatile != "tmpfs" || s.Failing != nil {
		t.Errorf("%q, %v", s.Volatile, s.Failing)
	}
}

// Two uplinks that read the same files at their own pace do not get in each
// other's way.
func TestTwoDrains(t *testing.T) {
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(14, 14))
	l, _ := open(t, dir, Options{SegmentSize: 4 << 20})
	put := 0
	for len(l.segments) < 4 {
		var rs []string
		for range 500 {
			rs = append(rs, noise(rng, "x", put))
			put++
		}
		if err := l.Put(rs...); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, a := open(t, dir, Options{SegmentSize: 4 << 20})
	defer l.Close()
	b, err := l.Cursor("campus")
	if err != nil {
		t.Fatal(err)
	}
	var both sync.WaitGroup
	for _, c := range []*Cursor[string]{a, b} {
		both.Go(func() {
			for n := 0; n < put; {
				rs, end, err := c.Peek(50)
				if err != nil || len(rs) == 0 {
					t.Errorf("at %d of %d: %d, %v", n, put, len(rs), err)
					return
				}
				n += len(rs)
				c.Ack(end)
			}
		})
	}
	both.Wait()
}

// badDisk cannot read one page.
type badDisk struct {
	*bytes.Reader
	page int64
}

func (d badDisk) ReadAt(b []byte, at int64) (int, error) {
	if at < (d.page+1)*pageSize && at+int64(len(b)) > d.page*pageSize {
		return 0, syscall.EIO
	}
	return d.Reader.ReadAt(b, at)
}

// A page that cannot be read costs the blocks on it, no others.
func TestScanBadDisk(t *testing.T) {
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(15, 15))
	l, _ := open(t, dir, Options{})
	for range 50 {
		var rs []string
		for range 100 {
			rs = append(rs, noise(rng, "x", 0))
		}
		if err := l.Put(rs...); err != nil {
			t.Fatal(err)
		}
	}
	path := l.segments[0].path
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	whole, _ := scan(bytes.NewReader(b), int64(len(b)))
	if len(whole) != 50 {
		t.Fatalf("%d blocks", len(whole))
	}
	for _, k := range []int{0, 20, 49} {
		page := (whole[k].at + int64(whole[k].size)/2) / pageSize
		left, _ := scan(badDisk{bytes.NewReader(b), page}, int64(len(b)))
		if len(left) != 49 || slices.ContainsFunc(left, func(f found) bool { return f.first == whole[k].first }) {
			t.Errorf("block %d on page %d: %d are found", k, page, len(left))
		}
	}
}

// A file that is made to look full of long blocks is done with soon.
func TestScanHostile(t *testing.T) {
	var head [blockHeader]byte
	copy(head[:], blockMagic)
	head[3] = blockFormat
	binary.LittleEndian.PutUint64(head[8:], 1)
	binary.LittleEndian.PutUint32(head[16:], 1)
	binary.LittleEndian.PutUint32(head[20:], 1)
	binary.LittleEndian.PutUint32(head[24:], 8<<20)
	b := bytes.Repeat(head[:], 16<<20/blockHeader)
	begun := time.Now()
	if found, _ := scan(bytes.NewReader(b), int64(len(b))); len(found) != 0 {
		t.Errorf("%d blocks", len(found))
	}
	if d := time.Since(begun); d > 5*time.Second {
		t.Errorf("it took %v", d)
	}
}

func FuzzScan(f *testing.F) {
	one, _, err := pack(nil, words{}, blockInfo{first: 7, gen: 3}, numbers(0, 20))
	if err != nil {
		f.Fatal(err)
	}
	two, _, err := pack(one, words{}, blockInfo{first: 20, gen: 4}, numbers(0, 5))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(two)
	f.Add(append(two, one...))
	f.Fuzz(func(t *testing.T, b []byte) {
		blocks, _ := scan(bytes.NewReader(b), int64(len(b)))
		for k, i := range blocks {
			if k > 0 && i.first < blocks[k-1].cover() {
				t.Fatalf("%+v after %+v", i, blocks[k-1])
			}
			if got, err := parseBlock(b[i.at : i.at+int64(i.size)]); err != nil || got != i.blockInfo {
				t.Fatalf("%+v is %+v, %v", i, got, err)
			}
		}
	})
}

func FuzzMark(f *testing.F) {
	dir := f.TempDir()
	m := mark{End: 9, Cursors: map[string]uint64{"broker": 4}}
	if err := m.begin(dir, 3); err != nil {
		f.Fatal(err)
	}
	for range 3 { // the newest write counts, also when only a cursor has moved
		m.Cursors["broker"]++
		if err := m.write(); err != nil {
			f.Fatal(err)
		}
		if got := readMark(dir); got.Cursors["broker"] != m.Cursors["broker"] || got.Generation != 3 {
			f.Fatalf("%+v, want %+v", got, m)
		}
	}
	if err := m.close(); err != nil {
		f.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, markName))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) { parseMark(b) })
}
