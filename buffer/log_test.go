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

	bolt "go.etcd.io/bbolt"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	_ = os.Setenv("GORACE", "atexit_sleep_ms=0") // for children: the race detector rests a second before each exit
	if os.Getenv("BUFFER_TEST_CHILD") != "" {
		child()
		return
	}
	if len(os.Args) == 3 && os.Args[1] == "inspect" {
		if err := InspectFor(os.Stdout, os.Args[2]); err != nil {
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// words is a codec of texts.
type words struct{}

func (words) Append(dst []byte, rs []string) ([]byte, error) {
	for _, r := range rs {
		if r == "unpackable" {
			return dst, errors.New("unpackable record")
		}
		dst = binary.AppendUvarint(dst, uint64(len(r)))
		dst = append(dst, r...)
	}
	return dst, nil
}

func (words) Check(r string) error {
	if r == "unpackable" {
		return errors.New("unpackable record")
	}
	return nil
}

func (words) Decode(src []byte, n int) ([]string, error) {
	rs := make([]string, 0, n)
	for range n {
		size, k := binary.Uvarint(src)
		if k <= 0 || size > uint64(len(src)-k) {
			return nil, errors.New("short")
		}
		rs = append(rs, string(src[k:k+int(size)]))
		src = src[k+int(size):]
	}
	if len(src) > 0 {
		return nil, errors.New("long")
	}
	return rs, nil
}

func open(t testing.TB, dir string, opt Options) (*Log[string], *Cursor[string]) {
	t.Helper()
	opt.Verify = Apart(os.Args[0], "inspect")
	l, err := Open(dir, words{}, opt)
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.Cursor("broker")
	if err != nil {
		t.Fatal(err)
	}
	return l, c
}

func numbers(from, to int) (rs []string) {
	for i := from; i < to; i++ {
		rs = append(rs, fmt.Sprintf("record %d", i))
	}
	return rs
}

// drain peeks and acknowledges until nothing is left.
func drain(t testing.TB, c *Cursor[string], limit int) (all []string) {
	t.Helper()
	for {
		rs, end, err := c.Peek(limit)
		if err != nil {
			t.Fatal(err)
		}
		if len(rs) == 0 {
			if n := c.Depth(); n != 0 {
				c.Ack(end)
				if again, _, _ := c.Peek(1); len(again) == 0 && c.Depth() != 0 {
					t.Fatalf("nothing to peek at, but a depth of %d", n)
				}
				continue
			}
			return all
		}
		all = append(all, rs...)
		c.Ack(end)
	}
}

func check(t testing.TB, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("got %d records %.200v, want %d %.200v", len(got), got, len(want), want)
	}
}

func TestOrderOverRestarts(t *testing.T) {
	for _, window := range []time.Duration{0, time.Hour} {
		t.Run(window.String(), func(t *testing.T) {
			dir, next, got := t.TempDir(), 0, []string(nil)
			rng := rand.New(rand.NewPCG(1, uint64(window)))
			for range 20 {
				l, c := open(t, dir, Options{Window: window})
				for range rng.IntN(5) {
					n := rng.IntN(1500)
					if err := l.Put(numbers(next, next+n)...); err != nil {
						t.Fatal(err)
					}
					next += n
					rs, end, err := c.Peek(rng.IntN(2500))
					if err != nil {
						t.Fatal(err)
					}
					got = append(got, rs...)
					c.Ack(end)
				}
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
			}
			l, c := open(t, dir, Options{Window: window})
			defer l.Close()
			got = append(got, drain(t, c, 777)...)
			check(t, got, numbers(0, next))
		})
	}
}

// files is the state of a folder as a disk sees it.
func files(t *testing.T, dir string) string {
	var b strings.Builder
	names, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		data, err := os.ReadFile(filepath.Join(dir, n.Name()))
		if err != nil {
			t.Fatal(err)
		}
		i, err := n.Info()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s %v %x\n", n.Name(), i.ModTime(), binary.BigEndian.Uint32(append(data, 0, 0, 0, 0)))
		b.WriteString(fmt.Sprint(len(data)))
	}
	return b.String()
}

// The promise to the SD card: what is acknowledged within the window is never
// written.
func TestOnlineWritesNothing(t *testing.T) {
	dir := t.TempDir()
	l, c := open(t, dir, Options{Window: time.Second})
	before := files(t, dir)
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.Run(ctx) }()
		time.Sleep(500 * time.Millisecond)
		for i := range 600 { // ten minutes of 20 sensors at 1 Hz
			if err := l.Put(numbers(20*i, 20*i+20)...); err != nil {
				t.Fatal(err)
			}
			rs, end, err := c.Peek(100)
			if err != nil || len(rs) != 20 {
				t.Fatal(len(rs), err)
			}
			c.Ack(end)
			time.Sleep(time.Second)
		}
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
	if after := files(t, dir); after != before {
		t.Errorf("the files changed:\n%s\n%s", before, after)
	}
	if s := l.Stats(); s.Commits != 0 || s.Written != 0 || s.Depth != 0 {
		t.Errorf("%+v", s)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// What is not acknowledged is on disk a window later.
func TestWindow(t *testing.T) {
	dir := t.TempDir()
	l, c := open(t, dir, Options{Window: time.Second})
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.Run(ctx) }()
		if err := l.Put(numbers(0, 10)...); err != nil {
			t.Fatal(err)
		}
		c.Ack(4) // the first three: sequence numbers begin with 1
		time.Sleep(1100 * time.Millisecond)
		synctest.Wait()
		l.mu.Lock()
		n := l.onDisk
		l.mu.Unlock()
		if n != 11 {
			t.Errorf("on disk before %d, want 11", n)
		}
		commits := l.Stats().Commits
		time.Sleep(time.Minute)
		if s := l.Stats(); s.Commits != commits || commits != 1 {
			t.Errorf("%d commits, then %d: nothing was new", commits, s.Commits)
		}
		cancel()
		<-done
	})
	if l.tail.first != 4 || l.tail.count != 7 {
		t.Errorf("tail %+v: the acknowledged part was written too", l.tail)
	}
	check(t, drain(t, c, 3), numbers(3, 10))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestRollAndForget(t *testing.T) {
	dir := t.TempDir()
	opt := Options{MaxSize: 64 << 20, SegmentSize: 1 << 20}
	l, _ := open(t, dir, opt)
	rng := rand.New(rand.NewPCG(7, 7))
	var want []string
	for range 60 {
		var rs []string
		for range 100 {
			b := make([]byte, 1000)
			for i := range b {
				b[i] = byte(rng.Uint32())
			}
			rs = append(rs, string(b))
		}
		if err := l.Put(rs...); err != nil {
			t.Fatal(err)
		}
		want = append(want, rs...)
	}
	if n := len(l.segments); n < 4 {
		t.Fatalf("%d segments", n)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, c := open(t, dir, opt)
	check(t, drain(t, c, 250), want)
	if err := l.commit(0); err != nil {
		t.Fatal(err)
	}
	if n := len(l.segments); n != 1 || l.Stats().Depth != 0 {
		t.Errorf("drained, but %d segments, depth %d", n, l.Stats().Depth)
	}
	if names, _ := filepath.Glob(filepath.Join(dir, "log-*")); len(names) != 1 {
		t.Errorf("drained, but the folder has %v", names)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// The size is never exceeded; the oldest go, are counted exactly, and the rest
// comes in order.
func TestFull(t *testing.T) {
	dir := t.TempDir()
	l, c := open(t, dir, Options{MaxSize: 8 << 20})
	defer l.Close()
	rng := rand.New(rand.NewPCG(3, 3))
	put := 0
	for range 400 {
		var rs []string
		for range 50 {
			b := make([]byte, 1000)
			for i := range b {
				b[i] = byte(rng.Uint32())
			}
			binary.BigEndian.PutUint32(b, uint32(put))
			put++
			rs = append(rs, string(b))
		}
		if err := l.Put(rs...); err != nil {
			t.Fatalf("refused because full: %v", err)
		}
		if n := l.Stats().Size; n > 8<<20 {
			t.Fatalf("%d bytes", n)
		}
	}
	s := l.Stats()
	got := drain(t, c, 1000)
	if full := int(s.DroppedFor("full")); full == 0 || full+len(got) != put || s.Depth != len(got) {
		t.Errorf("put %d, got %d, dropped %d, depth %d", put, len(got), full, s.Depth)
	}
	for i, r := range got {
		if n := binary.BigEndian.Uint32([]byte(r)); int(n) != put-len(got)+i {
			t.Fatalf("record %d is number %d", i, n)
		}
	}
}

// Each uplink has its own place; a dead one does not hold up another.
func TestTwoUplinks(t *testing.T) {
	dir := t.TempDir()
	l, a := open(t, dir, Options{})
	b, err := l.Cursor("campus")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Put(numbers(0, 2500)...); err != nil {
		t.Fatal(err)
	}
	check(t, drain(t, a, 400), numbers(0, 2500))
	rs, end, err := b.Peek(1200)
	if err != nil {
		t.Fatal(err)
	}
	check(t, rs, numbers(0, 1200))
	b.Ack(end)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, a = open(t, dir, Options{})
	defer l.Close()
	if b, err = l.Cursor("campus"); err != nil {
		t.Fatal(err)
	}
	if a.Depth() != 0 || b.Depth() != 1300 {
		t.Errorf("depths %d and %d", a.Depth(), b.Depth())
	}
	check(t, drain(t, b, 100), numbers(1200, 2500))
}

func TestAckNeverGoesBackOrBeyond(t *testing.T) {
	l, c := open(t, t.TempDir(), Options{})
	defer l.Close()
	if err := l.Put(numbers(0, 10)...); err != nil {
		t.Fatal(err)
	}
	c.Ack(6)
	c.Ack(2)
	rs, _, _ := c.Peek(100)
	check(t, rs, numbers(5, 10))
	c.Ack(1 << 60)
	if err := l.Put("more"); err != nil {
		t.Fatal(err)
	}
	rs, _, _ = c.Peek(100)
	check(t, rs, []string{"more"})
}

func TestUnpackableIsRefused(t *testing.T) {
	l, c := open(t, t.TempDir(), Options{})
	defer l.Close()
	if err := l.Put("unpackable"); err == nil {
		t.Error("taken")
	}
	if err := l.Put("good"); err != nil {
		t.Fatal(err)
	}
	check(t, drain(t, c, 10), []string{"good"})
}

func TestSecondInstance(t *testing.T) {
	dir := t.TempDir()
	l, _ := open(t, dir, Options{})
	defer l.Close()
	begin := time.Now()
	_, err := Open(dir, words{}, Options{})
	if err == nil || !strings.Contains(err.Error(), "runs on this folder") {
		t.Errorf("%v", err)
	}
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("told after %v", d)
	}
}

func TestRejects(t *testing.T) {
	dir := t.TempDir()
	l, c := open(t, dir, Options{MaxRejects: 5})
	if err := l.Put(numbers(0, 20)...); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		if err := c.Reject(numbers(i, i+1), "Invalid characters"); err != nil {
			t.Fatal(err)
		}
		c.Ack(uint64(i + 2))
		if err := l.commit(0); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, c = open(t, dir, Options{MaxRejects: 5})
	defer l.Close()
	if c.Depth() != 0 || l.reject != 20 {
		t.Errorf("depth %d, next reject %d", c.Depth(), l.reject)
	}
}

// Whatever happens to a file, what is delivered was put, in order, and the
// daemon starts.
func TestDamage(t *testing.T) {
	made := t.TempDir()
	l, _ := open(t, made, Options{})
	for i := range 40 {
		if err := l.Put(numbers(i*50, i*50+50)...); err != nil {
			t.Fatal(err)
		}
	}
	name := filepath.Base(l.segments[0].path)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(filepath.Join(made, name))
	if err != nil {
		t.Fatal(err)
	}
	good := numbers(0, 2000)
	rng := rand.New(rand.NewPCG(5, 5))
	type damage struct {
		name string
		do   func([]byte) []byte
	}
	cases := []damage{
		{"empty", func([]byte) []byte { return nil }},
		{"half", func(b []byte) []byte { return b[:len(b)/2] }},
		{"text", func(b []byte) []byte { return []byte(strings.Repeat("not a log\n", 5000)) }},
		{"zeros", func(b []byte) []byte { return make([]byte, len(b)) }},
	}
	for page := 0; page < len(whole)/4096; page += 1 + page/12 {
		at := page * 4096
		cases = append(cases,
			damage{fmt.Sprint("truncated at page ", page), func(b []byte) []byte { return b[:at] }},
			damage{fmt.Sprint("page zeroed ", page), func(b []byte) []byte { clear(b[at : at+4096]); return b }},
			damage{fmt.Sprint("bit flipped in page ", page), func(b []byte) []byte { b[at+rng.IntN(4096)] ^= 1 << rng.IntN(8); return b }},
			damage{fmt.Sprint("page of noise ", page), func(b []byte) []byte {
				for i := range 4096 {
					b[at+i] = byte(rng.Uint32())
				}
				return b
			}},
		)
	}
	for i := range 200 {
		at := rng.IntN(len(whole))
		cases = append(cases, damage{fmt.Sprint("bit flipped ", i), func(b []byte) []byte { b[at] ^= 1 << rng.IntN(8); return b }})
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, name), c.do(bytes.Clone(whole)), 0o600); err != nil {
				t.Fatal(err)
			}
			l, cur := open(t, dir, Options{})
			got := drain(t, cur, 300)
			s := l.Stats()
			at := 0
			for _, r := range got { // a subsequence of what was put
				i := slices.Index(good[at:], r)
				if i < 0 {
					t.Fatalf("delivered %q, which was not put, or not after %d others", r, at)
				}
				at += i + 1
			}
			if len(got) < len(good) && len(s.Damage) == 0 && s.DroppedFor("damaged") == 0 {
				t.Errorf("%d of %d records, and nothing is said", len(got), len(good))
			}
			if err := l.Put("after"); err != nil {
				t.Errorf("cannot go on: %v", err)
			}
			_ = l.Close() // of a damaged file bbolt may complain
			for _, d := range s.Damage {
				if _, err := os.Stat(d.File); err != nil {
					t.Errorf("the damaged file is gone: %v", err)
				}
			}
		})
	}
}

// Put, Peek, Ack and Stats at once, with commits under way.
func TestConcurrent(t *testing.T) {
	l, c := open(t, t.TempDir(), Options{Window: time.Millisecond, MaxSize: 64 << 20, SegmentSize: 1 << 20})
	ctx, cancel := context.WithCancel(t.Context())
	var run, putters sync.WaitGroup
	run.Go(func() {
		if err := l.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	const each = 3000
	for w := range 4 {
		putters.Go(func() {
			for i := range each {
				if err := l.Put(fmt.Sprintf("%d %d", w, i)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	run.Go(func() {
		for ctx.Err() == nil {
			l.Stats()
			time.Sleep(time.Millisecond)
		}
	})
	last := map[int]int{0: -1, 1: -1, 2: -1, 3: -1}
	for n := 0; n < 4*each; {
		rs, end, err := c.Peek(100)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rs {
			var w, i int
			fmt.Sscanf(r, "%d %d", &w, &i)
			if i != last[w]+1 {
				t.Fatalf("writer %d: %d after %d", w, i, last[w])
			}
			last[w] = i
		}
		n += len(rs)
		c.Ack(end)
	}
	putters.Wait()
	cancel()
	run.Wait()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// With the disk failing Put says so, memory is bounded, and both heal with it.
func TestDiskFails(t *testing.T) {
	dir := t.TempDir()
	var told []error
	l, c := open(t, dir, Options{Window: time.Hour, MaxPending: 100, Failing: func(err error) { told = append(told, err) }})
	defer l.Close()
	if err := l.Put("on disk"); err != nil {
		t.Fatal(err)
	}
	if err := l.commit(0); err != nil {
		t.Fatal(err)
	}
	// A closed database is a disk that fails: every commit errs.
	if err := l.segments[0].db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Put(numbers(0, 100)...); err != nil {
		t.Fatal(err)
	}
	if err := l.commit(0); err == nil {
		t.Fatal("committed to a closed file")
	}
	err := l.Put("one more")
	if !errors.Is(err, ErrVolatile) || !strings.Contains(err.Error(), "database not open") || l.Stats().Failing == nil {
		t.Errorf("%v; %v", err, l.Stats().Failing)
	}
	if n := l.Stats().DroppedFor("memory"); n != 1 {
		t.Errorf("%d dropped: the oldest in memory must make room", n)
	}
	l.retry.next = time.Time{}
	if err := l.commit(0); err != nil { // it is opened again, and is well
		t.Fatal(err)
	}
	if err := l.Put("and one"); err != nil || l.Stats().Failing != nil {
		t.Errorf("did not heal: %v", err)
	}
	if len(told) != 2 || told[0] == nil || told[1] != nil {
		t.Errorf("told %v: want once that it fails, once that it does not", told)
	}
	got := drain(t, c, 1000)
	check(t, got, append([]string{"on disk"}, append(numbers(1, 100), "one more", "and one")...))
}

// newWords is a later version of words, which words cannot read.
type newWords struct{ words }

func (newWords) Append(dst []byte, rs []string) ([]byte, error) {
	dst, err := words{}.Append(dst, rs)
	return append(dst, "more"...), err
}

// What another version of the program has written is kept, not taken for damage:
// of its codec the uplink waits, of its blocks the file is set aside whole.
func TestAnotherVersion(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(dir, newWords{}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Put(numbers(0, 10)...); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	old, c := open(t, dir, Options{})
	for range 3 {
		rs, end, err := c.Peek(100)
		if len(rs) != 0 || !errors.Is(err, errNewer) {
			t.Errorf("%v, %v", rs, err)
		}
		c.Ack(end)
	}
	if s := old.Stats(); s.Depth != 10 || s.Lost() != 0 {
		t.Errorf("%+v", s)
	}
	// A block of a later format, whole.
	if err := old.segments[0].use(func(db *bolt.DB) error {
		return db.Update(func(tx *bolt.Tx) error {
			b, _, err := pack(nil, words{}, blockInfo{first: 11}, numbers(10, 20))
			if err != nil {
				return err
			}
			b[3] = blockFormat + 1
			binary.LittleEndian.PutUint32(b[crcAt:], blockCRC(b))
			return putBlock(tx, 11, b)
		})
	}); err != nil {
		t.Fatal(err)
	}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	old, _ = open(t, dir, Options{})
	defer old.Close()
	if s := old.Stats(); len(s.Damage) != 1 {
		t.Errorf("%+v", s)
	}
}

// Trouble of the system is not the file's: it stays where it is.
func TestOpenWithoutRights(t *testing.T) {
	for _, err := range []error{os.ErrPermission, syscall.EMFILE, syscall.EROFS, syscall.ENOSPC} {
		if !ofTheSystem(&os.PathError{Op: "open", Path: "x", Err: err}) {
			t.Errorf("%v is taken for damage", err)
		}
	}
	for _, err := range []error{syscall.EIO, errDamaged, errors.New("invalid database")} {
		if ofTheSystem(err) {
			t.Errorf("%v is not taken for damage", err)
		}
	}
}

func FuzzUnpack(f *testing.F) {
	b, _, err := pack(nil, words{}, blockInfo{first: 7, gen: 3}, numbers(0, 20))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:blockHeader])
	f.Fuzz(func(t *testing.T, b []byte) {
		info, rs, err := unpack(words{}, b)
		if err == nil && (len(rs) != int(info.count) || info.count < 1 || int(info.size) > len(b)) {
			t.Fatalf("%+v: %d records", info, len(rs))
		}
	})
}

// From outside it can be seen that Run turns.
func TestLooked(t *testing.T) {
	l, _ := open(t, t.TempDir(), Options{Window: 20 * time.Millisecond})
	if !l.Looked().IsZero() {
		t.Error("it is looked at before Run")
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	for begun, first := time.Now(), (time.Time{}); ; time.Sleep(time.Millisecond) {
		looked := l.Looked()
		if first.IsZero() {
			first = looked
		} else if looked.After(first) {
			break
		}
		if time.Since(begun) > 10*time.Second {
			t.Fatal("Run is not seen to turn")
		}
	}
	stop()
	if err := <-done; err != nil || !l.Looked().IsZero() {
		t.Errorf("%v, and it is looked at after Run: %v", err, l.Looked())
	}
}
