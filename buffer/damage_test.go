package buffer_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

const page = 4096

// folder is the files of a log by name.
type folder map[string][]byte

func readFolder(dir string) (folder, error) {
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	f := folder{}
	for _, n := range names {
		if f[n.Name()], err = os.ReadFile(filepath.Join(dir, n.Name())); err != nil {
			return nil, err
		}
	}
	return f, nil
}

func (f folder) write(dir string) error {
	for name, b := range f {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// logs are the names of its bbolt files, in order.
func (f folder) logs() (names []string) {
	for name := range f {
		if strings.HasPrefix(name, "log-") && strings.HasSuffix(name, ".db") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// span is where records stand in a file.
type span struct {
	file     string
	at, size int
	from, to int // records
}

// whole is a log before the damage.
type whole struct {
	name      string
	options   logOptions
	now, old  folder
	done, end int // records [done, end) wait
	spans     []span
}

// stock makes the logs to be damaged: one file with all waiting; one that was
// drained in part and so holds free pages; several files; a nearly empty one.
func stock(t *testing.T, rng *rand.Rand) (all []*whole) {
	one := logOptions{MaxSize: 64 << 20, SegmentSize: 8 << 20}
	for _, w := range []struct {
		whole
		puts, largest, reads int
	}{
		{whole{name: "backlog", options: one}, 40, 300, 0},
		{whole{name: "small blocks", options: one}, 150, 3, 0},
		{whole{name: "drained in part", options: one}, 120, 60, 60},
		{whole{name: "several files", options: logOptions{MaxSize: 64 << 20, SegmentSize: 48 << 10}}, 60, 200, 10},
		{whole{name: "nearly empty", options: one}, 3, 2, 0},
	} {
		dir := t.TempDir()
		l, c, err := openLog(dir, w.options)
		if err != nil {
			t.Fatal(err)
		}
		for i := range w.puts {
			n := 1 + rng.IntN(w.largest)
			if err := l.Put(nths(w.end, w.end+n)...); err != nil {
				t.Fatal(err)
			}
			w.end += n
			if i >= w.puts-w.reads-5 && i < w.puts-5 {
				rs, end, err := c.Peek(1 + rng.IntN(w.largest))
				if err != nil {
					t.Fatal(err)
				}
				w.done += len(rs)
				c.Ack(end)
			}
			if i == w.puts*2/3 {
				if w.old, err = readFolder(dir); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if w.now, err = readFolder(dir); err != nil {
			t.Fatal(err)
		}
		if err := w.find(dir); err != nil {
			t.Fatal(err)
		}
		all = append(all, &w.whole)
	}
	return all
}

// find finds the places of all blocks: of those in bbolt's buckets every copy, of
// others (which no bucket holds) from their magic to the next.
func (w *whole) find(dir string) error {
	covered := map[int]bool{}
	for _, name := range w.now.logs() {
		file := w.now[name]
		db, err := bolt.Open(filepath.Join(dir, name), 0o600, &bolt.Options{ReadOnly: true, Timeout: time.Second})
		if err != nil {
			return err
		}
		err = db.View(func(tx *bolt.Tx) error {
			return tx.ForEach(func(_ []byte, b *bolt.Bucket) error {
				return b.ForEach(func(_, v []byte) error {
					from, to, ok := blockRecords(v)
					if !ok {
						return nil
					}
					for at := 0; ; at++ {
						i := bytes.Index(file[at:], v)
						if i < 0 {
							return nil
						}
						at += i
						w.spans = append(w.spans, span{name, at, len(v), from, to})
						for g := from; g < to; g++ {
							covered[g] = true
						}
					}
				})
			})
		})
		if err := db.Close(); err != nil {
			return err
		}
		if err != nil {
			return err
		}
	}
	for _, name := range w.now.logs() {
		file := w.now[name]
		for at := 0; ; at += 3 {
			i := bytes.Index(file[at:], []byte("gwb"))
			if i < 0 {
				break
			}
			at += i
			from, to, ok := blockRecords(file[at:])
			if !ok || to > w.end || covered[from] && covered[to-1] {
				continue
			}
			size := len(file) - at
			if next := bytes.Index(file[at+3:], []byte("gwb")); next >= 0 {
				size = next + 3
			}
			w.spans = append(w.spans, span{name, at, size, from, to})
		}
	}
	for _, s := range w.spans {
		for g := s.from; g < s.to; g++ {
			covered[g] = true
		}
	}
	for g := w.done; g < w.end; g++ {
		if !covered[g] {
			return fmt.Errorf("%s: record %d of %d..%d is in no block found: has the format of blocks changed?", w.name, g, w.done, w.end)
		}
	}
	return nil
}

// blockRecords is which records a block says it holds. The log's first record has
// sequence number 1.
func blockRecords(b []byte) (from, to int, ok bool) {
	if len(b) < 28 || string(b[:3]) != "gwb" {
		return 0, 0, false
	}
	first, n := binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint32(b[16:])
	if first == 0 || first > 1<<40 || n == 0 || n > 1<<20 {
		return 0, 0, false
	}
	return int(first) - 1, int(first) - 1 + int(n), true
}

// untouched are the waiting records of which every copy stands in the damaged
// folder where it stood: those in files that have changed, and those in others.
func (w *whole) untouched(f folder) (fine, others map[int]bool) {
	fine, others = map[int]bool{}, map[int]bool{}
	hurt := map[int]bool{}
	same := map[string]bool{}
	for name := range w.now {
		same[name] = bytes.Equal(w.now[name], f[name])
	}
	for _, s := range w.spans {
		was, is := w.now[s.file], f[s.file]
		ok := len(is) >= s.at+s.size && bytes.Equal(is[s.at:s.at+s.size], was[s.at:s.at+s.size])
		for g := max(s.from, w.done); g < s.to; g++ {
			switch {
			case same[s.file]:
				others[g] = true
			case ok:
				fine[g] = true
			default:
				hurt[g] = true
			}
		}
	}
	maps.DeleteFunc(fine, func(g int, _ bool) bool { return hurt[g] || others[g] })
	return fine, others
}

// A damage changes a folder; name is the file to begin with.
type damage struct {
	name string
	do   func(rng *rand.Rand, w *whole, f folder, name string)
}

func scribble(rng *rand.Rand, b []byte) {
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
}

// spoil is one of the ways to spoil a page.
func spoil(rng *rand.Rand, b []byte) {
	part := b
	if rng.IntN(2) == 0 {
		from := rng.IntN(len(b))
		part = b[from : from+1+rng.IntN(len(b)-from)]
	}
	switch rng.IntN(4) {
	case 0:
		clear(part)
	case 1:
		b[rng.IntN(len(b))] ^= 1 << rng.IntN(8)
	case 2:
		scribble(rng, part)
	case 3:
		for i := range part {
			part[i] = 0xff // erased flash
		}
	}
}

func nthPage(b []byte, n int) []byte { return b[min(n*page, len(b)):min((n+1)*page, len(b))] }

// somePage is any but the two meta pages.
func somePage(rng *rand.Rand, b []byte) []byte { return nthPage(b, 2+rng.IntN(len(b)/page-2)) }

func damages() []damage {
	spoilPage := func(rng *rand.Rand, _ *whole, f folder, name string) { spoil(rng, somePage(rng, f[name])) }
	return []damage{
		{"a page", spoilPage},
		{"a page", spoilPage},
		{"a flipped bit", func(rng *rand.Rand, _ *whole, f folder, name string) {
			somePage(rng, f[name])[rng.IntN(page)] ^= 1 << rng.IntN(8)
		}},
		{"a flipped bit of a block", func(rng *rand.Rand, w *whole, f folder, name string) {
			s := w.spans[rng.IntN(len(w.spans))]
			f[s.file][s.at+rng.IntN(s.size)] ^= 1 << rng.IntN(8)
		}},
		{"a page zeroed", func(rng *rand.Rand, _ *whole, f folder, name string) { clear(somePage(rng, f[name])) }},
		{"meta 0", func(rng *rand.Rand, _ *whole, f folder, name string) { spoil(rng, nthPage(f[name], 0)) }},
		{"meta 1", func(rng *rand.Rand, _ *whole, f folder, name string) { spoil(rng, nthPage(f[name], 1)) }},
		{"both metas", func(rng *rand.Rand, _ *whole, f folder, name string) {
			spoil(rng, nthPage(f[name], 0))
			spoil(rng, nthPage(f[name], 1))
		}},
		{"empty", func(_ *rand.Rand, _ *whole, f folder, name string) { f[name] = nil }},
		{"all zeros", func(_ *rand.Rand, _ *whole, f folder, name string) { clear(f[name]) }},
		{"an older copy of the file", func(_ *rand.Rand, w *whole, f folder, name string) {
			if old, ok := w.old[name]; ok {
				f[name] = slices.Clone(old)
			}
		}},
		{olderFolder, func(_ *rand.Rand, w *whole, f folder, _ string) {
			clear(f)
			for name, b := range w.old {
				f[name] = slices.Clone(b)
			}
		}},
		{"a foreign file", func(rng *rand.Rand, w *whole, f folder, name string) {
			switch rng.IntN(4) {
			case 0:
				f[name] = []byte(strings.Repeat("sensor,time,value\n", rng.IntN(3000)))
			case 1:
				f[name] = make([]byte, rng.IntN(1<<16))
				scribble(rng, f[name])
			case 2:
				f[name] = append([]byte("SQLite format 3\x00"), make([]byte, 20000)...)
			case 3:
				f[name] = foreignBolt()
			}
		}},
		{"a foreign file beside", func(rng *rand.Rand, _ *whole, f folder, _ string) {
			f[fmt.Sprintf("log-%020d.db", rng.IntN(100_000))] = [][]byte{nil, []byte("not a log\n"), foreignBolt()}[rng.IntN(3)]
		}},
		{"garbage appended", func(rng *rand.Rand, _ *whole, f folder, name string) {
			b := make([]byte, 1+rng.IntN(20000))
			scribble(rng, b)
			f[name] = append(f[name], b...)
		}},
		{"two pages swapped", func(rng *rand.Rand, _ *whole, f folder, name string) {
			a, b := somePage(rng, f[name]), somePage(rng, f[name])
			c := slices.Clone(a)
			copy(a, b)
			copy(b, c)
		}},
		{"one page in twenty", func(rng *rand.Rand, _ *whole, f folder, name string) {
			for range 1 + len(f[name])/page/20 {
				spoil(rng, nthPage(f[name], rng.IntN(len(f[name])/page)))
			}
		}},
		{"a side file", func(rng *rand.Rand, _ *whole, f folder, _ string) {
			for name, b := range f {
				if strings.HasPrefix(name, "log-") {
					continue
				}
				switch rng.IntN(4) {
				case 0:
					delete(f, name)
				case 1:
					f[name] = b[:rng.IntN(len(b)+1)]
				default:
					if len(b) > 0 {
						spoil(rng, b)
					}
				}
			}
		}},
	}
}

// truncated is done at each page of each file, a quarter of the cases.
const truncated = "truncated"

// cut is one of them.
type cut struct {
	w    *whole
	name string
	size int
}

func cuts(all []*whole) (cs []cut) {
	for _, w := range all {
		for _, name := range w.now.logs() {
			for size := 0; size < len(w.now[name]); size += page {
				cs = append(cs, cut{w, name, size})
			}
		}
	}
	return cs
}

// olderFolder is a damage that nothing inside can tell.
const olderFolder = "an older copy of the folder"

// foreignBolt is a database of another program.
var foreignBolt = sync.OnceValue(func() []byte {
	dir, err := os.MkdirTemp("", "foreign")
	if err != nil {
		return nil
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "db")
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		return nil
	}
	err = db.Update(func(tx *bolt.Tx) error {
		b, err := tx.CreateBucket([]byte("users"))
		if err != nil {
			return err
		}
		return b.Put([]byte("alice"), []byte("gwb, by chance"))
	})
	if err != nil || db.Close() != nil {
		return nil
	}
	b, _ := os.ReadFile(path)
	return b
})

// tally is what became of one kind of damage.
type tally struct{ cases, waiting, owed, salvaged, lossy, stated, preserved int }

// Whatever has become of the files of a log, it opens within seconds, and again,
// and takes new records. What it then delivers is right and in order, and is all
// that stands in blocks which nothing has touched; what is missing it says, and
// keeps the damaged file.
func TestDamagedFiles(t *testing.T) {
	seed, files := seedOf(t), share(80, 2000)
	all := stock(t, rand.New(rand.NewPCG(seed, 6)))
	kinds, bad := damages(), &faults{}
	var mu sync.Mutex
	tallies := map[string]*tally{}
	var slowest time.Duration
	exact := 0
	allCuts := cuts(all)
	truncations := min(len(allCuts), files/4)
	const stride = 1009 // prime: all over, in the small share too
	scratch := t.TempDir()
	onTwo(t, files, func(d *doctor, i int) {
		rng := rand.New(rand.NewPCG(seed, uint64(1000+i)))
		w, kind := all[rng.IntN(len(all))], kinds[i%len(kinds)]
		logs := w.now.logs()
		name := logs[rng.IntN(len(logs))]
		if i < truncations {
			c := allCuts[i*stride%len(allCuts)]
			w, name = c.w, c.name
			kind = damage{truncated, func(_ *rand.Rand, _ *whole, f folder, name string) { f[name] = f[name][:c.size] }}
		}
		f := folder{}
		for name, b := range w.now {
			f[name] = slices.Clone(b)
		}
		kind.do(rng, w, f, name)
		what := fmt.Sprintf("file %d, %s of %q (%s)", i, kind.name, w.name, name)
		dir := filepath.Join(scratch, fmt.Sprint(i))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Error(err)
			return
		}
		if err := f.write(dir); err != nil {
			t.Error(err)
			return
		}
		defer os.RemoveAll(dir)
		every := bad
		bad := &faults{}
		defer func() { every.merge(t, bad, fmt.Sprint(i), f.write) }()
		got, ok := d.sure(bad, what, job{logOptions: w.options, Dir: dir, Close: rng.IntN(3) == 0, New: nths(w.end, w.end+2)})
		l := &ledger{}
		l.line(fmt.Sprintf("p 0 %d", w.end), 0)
		l.line(fmt.Sprintf("P 0 %d", w.end), 0)
		l.drained(unpack(got.Records, got.Count))
		l.bad(bad, what)
		untouched, others := w.untouched(f)

		mu.Lock()
		defer mu.Unlock()
		n := tallies[kind.name]
		if n == nil {
			n = &tally{}
			tallies[kind.name] = n
		}
		n.cases++
		missing, elsewhere := 0, 0
		for g := w.done; g < w.end; g++ {
			n.waiting++
			if !l.seen[g] {
				missing++
				if others[g] {
					elsewhere++
				}
			}
			if untouched[g] {
				n.owed++
				if l.seen[g] {
					n.salvaged++
				}
			}
		}
		for _, took := range got.Opened {
			slowest = max(slowest, took)
		}
		if elsewhere > 0 && ok {
			bad.add("lost from an undamaged file", "%s: %d records", what, elsewhere)
		}
		if missing > 0 && kind.name != olderFolder {
			n.lossy++
			if got.Dropped > 0 {
				n.stated++
			} else if ok {
				bad.add("loss not stated", "%s: %d records are missing", what, missing)
			}
			if got.Dropped == uint64(missing) {
				exact++
			}
			if slices.Max(got.Aside[:]) > 0 {
				n.preserved++
			} else if ok {
				bad.add("damaged file not kept", "%s: %d records are missing", what, missing)
			}
		}
	})
	var sum tally
	for _, name := range slices.Sorted(maps.Keys(tallies)) {
		n := tallies[name]
		t.Logf("%-28s %4d files: %5.1f %% of the readings in undamaged blocks salvaged, %3d lossy, %3d of these say so, %3d kept aside",
			name, n.cases, percent(n.salvaged, n.owed), n.lossy, n.stated, n.preserved)
		sum = tally{sum.cases + n.cases, sum.waiting + n.waiting, sum.owed + n.owed, sum.salvaged + n.salvaged, sum.lossy + n.lossy, sum.stated + n.stated, sum.preserved + n.preserved}
	}
	t.Logf("%d damaged files, %d crashes, %d hangs over %v, %d wrong values, %.2f %% of %d readings in undamaged blocks salvaged, the loss stated in %d of %d (exactly in %d), the file kept in %d; truncated at %d of %d pages; slowest opening %v",
		files, bad.count["crash"], bad.count["hang"], deadline, bad.count["wrong value"]+bad.count["invented record"], percent(sum.salvaged, sum.owed), sum.owed, sum.stated, sum.lossy, exact, sum.preserved, truncations, len(allCuts), slowest.Round(time.Millisecond))
	if p := percent(sum.salvaged, sum.owed); p < 95 {
		t.Errorf("%.2f %% salvaged, want 95 %%", p)
	}
	bad.report(t)
}

func percent(a, b int) float64 {
	if b == 0 {
		return 100
	}
	return 100 * float64(a) / float64(b)
}
