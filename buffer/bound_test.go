package buffer_test

import (
	"os"
	"testing"
)

// A log that is full drops the oldest and keeps the newest, counts each, and its
// files never exceed its size.
func TestBound(t *testing.T) {
	dir := t.TempDir()
	const size = 8 << 20
	l, c, err := openLog(dir, logOptions{MaxSize: size})
	if err != nil {
		t.Fatal(err)
	}
	var largest int64
	put, taken := 0, 0
	for put < share(1_000_000, 2_000_000) {
		if err := l.Put(nths(put, put+2000)...); err != nil {
			t.Fatal(err)
		}
		put += 2000
		if put == 20_000 { // what has been acknowledged is not dropped
			rs, end, err := c.Peek(5000)
			if err != nil {
				t.Fatal(err)
			}
			taken = len(rs)
			c.Ack(end)
		}
		largest = max(largest, sizeOf(t, dir))
	}
	dropped := int(dropped(l))
	depth := c.Depth()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if l, c, err = openLog(dir, logOptions{MaxSize: size}); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	rs, err := takeAll(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d readings into %d MiB: at most %.2f MiB on disk, %d dropped, the newest %d kept", put, size>>20, float64(largest)/(1<<20), dropped, len(rs))
	if dropped < put/10 || len(rs) < 100_000 {
		t.Errorf("%d dropped and %d kept prove little", dropped, len(rs))
	}
	if largest > size {
		t.Errorf("%d bytes on disk, %d are allowed", largest, size)
	}
	if put != taken+dropped+len(rs) || depth != len(rs) {
		t.Errorf("%d put, but %d taken, %d dropped, %d kept, a depth of %d", put, taken, dropped, len(rs), depth)
	}
	for i, r := range rs {
		if want := put - len(rs) + i; r != nth(want) {
			t.Fatalf("kept as number %d: %+v, want record %d, as the newest stay", i, r, want)
		}
	}
}

func sizeOf(t *testing.T, dir string) (n int64) {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if i, err := f.Info(); err == nil {
			n += i.Size()
		}
	}
	return n
}
