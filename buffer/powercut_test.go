//go:build linux

package buffer_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// A power cut without hardware: strace records every call with which the writer,
// as it is, changes its folder, and what it prints. A model of a disk replays them
// up to a random point. What a completed flush covers is there; of all the rest
// any subset of the sectors is, and of the names any beginning.

const sector = 512

// call is one of a recording.
type call struct {
	name   string // write, truncate, extend, sync, create, rename, unlink, syncdir, line
	file   *inode
	data   []byte
	offset int64 // of a write; the length of a truncate
	from   string
	to     string

	begun, ended int // ticks; ended is 0 while it has not
	done         bool
	flushed      bool // written to a file opened with O_SYNC or O_DSYNC
	doomed       bool // written before a flush that failed: no later one covers it
}

// inode is a file, under whichever name.
type inode struct{ start []byte }

// recording is what a writer did to its folder.
type recording struct {
	kind   string
	dir    string
	window time.Duration
	before *ledger           // when it began
	names  map[string]*inode // when it began
	calls  []*call
	at     []int64 // µs since 1970 of each tick: every beginning and every end is one
	stall  int64   // the longest time between two, µs: how slow the machine was
	said   string  // the file it printed to
}

// traced are the calls that change a folder, and those that tell where. Not every
// processor has all.
const traced = "?open,?openat,?creat,?rename,?renameat,?renameat2,?link,?linkat,?unlink,?unlinkat,?pwrite64,?pwritev,?pwritev2,?write,?writev," +
	"?ftruncate,?ftruncate64,?truncate,?truncate64,?fallocate,?fdatasync,?fsync,?sync_file_range,?copy_file_range,?sendfile,?msync,?lseek,?_llseek"

func needStrace(t *testing.T) {
	if _, err := exec.LookPath("strace"); err != nil {
		skipVisibly(t, "strace is not installed (apt-get install strace)")
	}
	if out, err := exec.Command("strace", "-o", os.DevNull, "true").CombinedOutput(); err != nil {
		skipVisibly(t, fmt.Sprintf("strace may not trace here: %.200s", out))
	}
}

// tape runs a script under strace; inject is what else strace is to do.
func tape(t *testing.T, s script, before *ledger, inject ...string) *recording {
	t.Helper()
	r := &recording{dir: s.Dir, window: s.Window, before: before.clone(), names: map[string]*inode{}, at: []int64{0}}
	r.before.window = s.Window
	r.before.newLife()
	files, err := os.ReadDir(s.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(s.Dir, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		r.names[f.Name()] = &inode{b}
	}
	trace := filepath.Join(t.TempDir(), "trace")
	w, err := s.command()
	if err != nil {
		t.Fatal(err)
	}
	args := append([]string{"-f", "-ttt", "-y", "-xx", "-s", "40000000", "-o", trace, "--seccomp-bpf", "-e", "trace=" + traced}, inject...)
	cmd := exec.Command("strace", append(args, w.Args...)...)
	cmd.Env = w.Env
	r.said = trace + ".said" // what a child of the writer prints goes elsewhere
	out, err := os.Create(r.said)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	var complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = out, &complaint
	if err := cmd.Run(); err != nil {
		t.Fatalf("strace: %v: %.1000s", err, complaint.String())
	}
	f, err := os.Open(trace)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := r.read(f); err != nil {
		t.Fatal(err)
	}
	r.doom()
	for i := 2; i < len(r.at); i++ {
		r.stall = max(r.stall, r.at[i]-r.at[i-1])
	}
	return r
}

// parser is the state of reading a trace: the folder as the running system had it.
type parser struct {
	*recording
	now       map[string]*inode
	offset    map[string]int64 // of a file written to without one
	appending map[string]bool
	flushing  map[string]bool  // each write is also a flush
	size      map[*inode]int64 // where appending goes
}

func (r *recording) read(trace io.Reader) error {
	p := parser{r, maps.Clone(r.names), map[string]int64{}, map[string]bool{}, map[string]bool{}, map[*inode]int64{}}
	for _, i := range r.names {
		p.size[i] = int64(len(i.start))
	}
	under := map[string]*call{} // under way, by thread
	for lines := bufio.NewReaderSize(trace, 1<<20); ; {
		text, err := lines.ReadString('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		tid, rest, _ := strings.Cut(strings.TrimSpace(text), " ")
		stamp, rest, _ := strings.Cut(strings.TrimSpace(rest), " ")
		seconds, err := strconv.ParseFloat(stamp, 64)
		if err != nil {
			return fmt.Errorf("trace: %.80q: %w", text, err)
		}
		tick := func() int { p.at = append(p.at, int64(seconds*1e6)); return len(p.at) - 1 }
		end := func(c *call, result string) {
			c.ended, c.done = tick(), !strings.HasPrefix(result, "-1") && !strings.HasPrefix(result, "?")
			if c.done {
				p.follow(c)
			}
		}
		if strings.HasPrefix(rest, "+++") || strings.HasPrefix(rest, "---") {
			continue
		}
		body, result, finished := cutLast(rest, " = ")
		if strings.HasPrefix(rest, "<... ") {
			if c := under[tid]; c != nil {
				delete(under, tid)
				end(c, result)
			}
			continue
		}
		name, args, _ := strings.Cut(body, "(")
		if strings.HasSuffix(rest, "<unfinished ...>") {
			finished = false
			name, args, _ = strings.Cut(rest, "(")
		}
		c, err := p.parse(name, args)
		if err != nil {
			return fmt.Errorf("trace: %.200q: %w", text, err)
		}
		if c == nil {
			continue
		}
		c.begun = tick()
		p.calls = append(p.calls, c)
		if finished {
			end(c, result)
		} else {
			under[tid] = c
		}
	}
}

func cutLast(s, sep string) (before, after string, ok bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// unhex decodes strace's \x41\x42.
func unhex(s string) ([]byte, error) {
	b := make([]byte, 0, len(s)/4)
	for ; len(s) > 0; s = s[4:] {
		if len(s) < 4 || s[:2] != `\x` {
			return nil, fmt.Errorf("not \\x…: %.20q", s)
		}
		n, err := strconv.ParseUint(s[2:4], 16, 8)
		if err != nil {
			return nil, err
		}
		b = append(b, byte(n))
	}
	return b, nil
}

// argument is a call's argument: a number or flags, the file of a descriptor, or
// a text.
type argument struct {
	word string
	path string
	text []byte
	gone bool // the file has been deleted
}

func arguments(s string) (all []argument, err error) {
	for s = strings.TrimSpace(s); s != "" && s[0] != ')' && s[0] != '<'; s = strings.TrimLeft(s, ", ") {
		var a argument
		if s[0] == '"' {
			inside, after, ok := strings.Cut(s[1:], `"`)
			if !ok || strings.HasPrefix(after, "...") {
				return nil, errors.New("cut short")
			}
			if a.text, err = unhex(inside); err != nil {
				return nil, err
			}
			s = after
		} else {
			i := strings.IndexAny(s, ",<)")
			if i < 0 {
				i = len(s)
			}
			a.word, s = strings.TrimSpace(s[:i]), s[i:]
			if strings.HasPrefix(s, `<\x`) {
				inside, after, ok := strings.Cut(s[1:], ">")
				if !ok {
					return nil, errors.New("cut short")
				}
				b, err := unhex(inside)
				if err != nil {
					return nil, err
				}
				a.path = string(b)
				if strings.HasPrefix(after, "(deleted)") {
					a.gone, after = true, after[len("(deleted)"):]
				}
				s = after
			} else if strings.HasPrefix(s, "<") {
				i := strings.IndexAny(s, ",)")
				if i < 0 {
					i = len(s)
				}
				s = s[i:]
			}
		}
		all = append(all, a)
	}
	return all, nil
}

// parse is nil for what does not concern the folder.
func (p *parser) parse(name, args string) (*call, error) {
	a, err := arguments(args)
	if err != nil {
		return nil, err
	}
	ours := func(path string) (string, bool) {
		rel, err := filepath.Rel(p.dir, path)
		return rel, err == nil && rel != "." && !strings.HasPrefix(rel, "..")
	}
	number := func(i int) (n int64) {
		if i < len(a) && err == nil {
			n, err = strconv.ParseInt(a[i].word, 0, 64)
		}
		return n
	}
	var paths []string // of the texts
	for i, x := range a {
		if x.text == nil || name == "write" || name == "pwrite64" {
			continue
		}
		path := string(x.text)
		if !filepath.IsAbs(path) && i > 0 {
			path = filepath.Join(a[i-1].path, path)
		}
		paths = append(paths, path)
	}
	if len(paths) > 0 { // a call on names
		from, ok := ours(paths[0])
		to := from
		if len(paths) == 2 {
			var ok2 bool
			to, ok2 = ours(paths[1])
			ok = ok || ok2
		}
		if !ok {
			return nil, nil
		}
		switch name {
		case "open", "openat":
			flags := ""
			for _, x := range a {
				if strings.Contains(x.word, "O_") {
					flags = x.word
				}
			}
			p.offset[from], p.appending[from] = 0, strings.Contains(flags, "O_APPEND")
			p.flushing[from] = strings.Contains(flags, "SYNC")
			if i := p.now[from]; i != nil {
				if strings.Contains(flags, "O_TRUNC") {
					return &call{name: "truncate", file: i}, nil
				}
				return nil, nil
			}
			if strings.Contains(flags, "O_CREAT") {
				return &call{name: "create", to: from, file: &inode{}}, nil
			}
			return nil, nil
		case "rename", "renameat", "renameat2":
			return &call{name: "rename", from: from, to: to}, nil
		case "unlink", "unlinkat":
			return &call{name: "unlink", from: from}, nil
		}
		return nil, fmt.Errorf("%s is not in the model", name)
	}
	if len(a) == 0 || a[0].gone {
		return nil, nil
	}
	if name == "write" && a[0].path == p.said && len(a) > 1 {
		return &call{name: "line", data: a[1].text}, nil
	}
	if a[0].path == p.dir && (name == "fsync" || name == "fdatasync") {
		return &call{name: "syncdir"}, nil
	}
	path, ok := ours(a[0].path)
	if !ok {
		return nil, nil
	}
	c := &call{file: p.now[path], flushed: p.flushing[path]}
	if c.file == nil {
		return nil, fmt.Errorf("%s is not in the folder", path)
	}
	switch name {
	case "fsync", "fdatasync":
		c.name = "sync"
	case "pwrite64":
		c.name, c.data, c.offset = "write", a[1].text, number(3)
	case "write":
		c.name, c.data, c.offset = "write", a[1].text, p.offset[path]
		if p.appending[path] {
			c.offset = p.size[c.file]
		}
		p.offset[path] = c.offset + int64(len(c.data))
	case "ftruncate", "ftruncate64":
		c.name, c.offset = "truncate", number(1)
	case "fallocate":
		if c.name, c.offset = "extend", number(2)+number(3); a[1].word != "0" {
			return nil, fmt.Errorf("fallocate of kind %s is not in the model", a[1].word)
		}
	case "lseek":
		if n := number(1); len(a) == 3 && a[2].word == "SEEK_SET" {
			p.offset[path] = n
		}
		return nil, err
	default:
		return nil, fmt.Errorf("%s is not in the model", name)
	}
	return c, err
}

// follow keeps the folder as the running system has it.
func (p *parser) follow(c *call) {
	switch c.name {
	case "create":
		p.now[c.to] = c.file
	case "rename":
		c.file = p.now[c.from]
		p.now[c.to] = c.file
		delete(p.now, c.from)
	case "unlink":
		delete(p.now, c.from)
	case "write":
		p.size[c.file] = max(p.size[c.file], c.offset+int64(len(c.data)))
	case "extend":
		p.size[c.file] = max(p.size[c.file], c.offset)
	case "truncate":
		p.size[c.file] = c.offset
	}
}

// doom marks what a failed flush may have lost for good: the system takes the
// pages for clean, and the next flush, which succeeds, does not write them.
func (r *recording) doom() {
	for _, s := range r.calls {
		if s.name != "sync" || s.done || s.ended == 0 {
			continue
		}
		covered := 0
		for _, e := range r.calls {
			if e.name == "sync" && e.file == s.file && e.done && e.ended < s.begun {
				covered = max(covered, e.begun)
			}
		}
		for _, w := range r.calls {
			if w.file == s.file && w.done && w.ended > covered && w.ended < s.begun {
				w.doomed = true
			}
		}
	}
}

// known is the ledger at a tick.
func (r *recording) known(tick int) *ledger {
	l := r.before.clone()
	for _, c := range r.calls {
		if c.name == "line" && c.begun < tick {
			l.line(strings.TrimSuffix(string(c.data), "\n"), r.at[c.begun])
		}
	}
	return l
}

// image writes into a folder what a disk may hold when the power goes at a tick.
// A liar has not done the last flushes, though it said so.
func (r *recording) image(rng *rand.Rand, dir string, tick, lies int) error {
	var flushes []*call
	for _, c := range r.calls {
		if (c.name == "sync" || c.name == "syncdir") && c.done && c.ended < tick {
			flushes = append(flushes, c)
		}
	}
	slices.SortFunc(flushes, func(a, b *call) int { return a.ended - b.ended })
	covered := map[*inode]int{} // what had ended before that tick is on disk; nil: the folder's names
	for _, c := range flushes[:max(0, len(flushes)-lies)] {
		covered[c.file] = max(covered[c.file], c.begun)
	}

	names := maps.Clone(r.names)
	landing := true
	chance := []float64{0, 1, 0.5, 0.9, rng.Float64()}
	files := map[*inode][]byte{}
	luck := map[*inode]float64{}
	of := func(i *inode) float64 {
		if _, ok := luck[i]; !ok {
			luck[i] = chance[rng.IntN(len(chance))]
		}
		return luck[i]
	}
	for _, i := range names {
		files[i] = slices.Clone(i.start)
	}
	for _, c := range r.calls {
		if c.begun >= tick || c.ended > 0 && !c.done {
			continue
		}
		sure := c.done && !c.doomed && (c.ended < covered[c.file] || c.flushed && c.ended < tick)
		switch c.name {
		case "create", "rename", "unlink":
			if sure = c.done && c.ended < covered[nil]; !sure && landing {
				landing = rng.Float64() < of(nil) // the journal keeps their order
			}
			if !sure && !landing {
				continue
			}
			switch c.name {
			case "create":
				names[c.to] = c.file
			case "rename":
				if i := names[c.from]; i != nil {
					names[c.to] = i
					delete(names, c.from)
				}
			case "unlink":
				delete(names, c.from)
			}
		case "extend":
			if b := files[c.file]; int64(len(b)) < c.offset && (sure || rng.Float64() < of(c.file)) {
				files[c.file] = resized(b, c.offset)
			}
		case "truncate":
			if sure || rng.Float64() < of(c.file) {
				files[c.file] = resized(files[c.file], c.offset)
			}
		case "write":
			b, p := files[c.file], of(c.file)
			for from := c.offset; from < c.offset+int64(len(c.data)); {
				to := min((from/sector+1)*sector, c.offset+int64(len(c.data)))
				switch {
				case sure || rng.Float64() < p:
					if int64(len(b)) < to {
						b = resized(b, to)
					}
					copy(b[from:to], c.data[from-c.offset:to-c.offset])
				case int64(len(b)) < to && rng.IntN(2) == 0:
					b = resized(b, to) // the length has landed, what is in it has not
				}
				from = to
			}
			files[c.file] = b
		}
	}
	for name, i := range names {
		if err := os.WriteFile(filepath.Join(dir, name), files[i], 0o600); err != nil {
			return err
		}
	}
	return nil
}

func resized(b []byte, n int64) []byte {
	if int64(len(b)) >= n {
		return b[:n:n]
	}
	return append(b, make([]byte, n-int64(len(b)))...)
}

// owed is the time before which everything acknowledged at a tick must be there.
func (r *recording) owed(tick int) int64 {
	if r.window == 0 {
		return r.at[tick]
	}
	// Under strace a commit takes its time, and on a busy machine more.
	return r.at[tick] - (r.window + 200*time.Millisecond).Microseconds() - 4*r.stall
}

var cutOptions = logOptions{MaxSize: 64 << 20, SegmentSize: 96 << 10}

// recordings makes n of them: fresh ones, with and without a window, and continued
// ones, which begin with the image of a power cut in the one before. In a faulty
// one some flushes or writes fail meanwhile.
func recordings(t *testing.T, rng *rand.Rand, d *doctor, bad *faults, n int, faulty bool) (all []*recording) {
	for i := range n {
		dir := t.TempDir()
		s := script{logOptions: cutOptions, Dir: dir, Seed: rng.Uint64(), Largest: []int{3, 30, 600}[rng.IntN(3)], Read: rng.IntN(4) > 0, Puts: 60 + rng.IntN(120)}
		before := &ledger{}
		if i%4 > 0 { // goes on after a power cut
			was := all[i-1]
			tick := 1 + rng.IntN(len(was.at)-1)
			seed, copied := rng.Uint64(), t.TempDir()
			for _, dir := range []string{dir, copied} {
				if err := was.image(rand.New(rand.NewPCG(seed, 3)), dir, tick, 0); err != nil {
					t.Fatal(err)
				}
			}
			before = was.known(tick)
			after := before.clone()
			if f, ok := d.sure(bad, fmt.Sprintf("recording %d", i), job{logOptions: cutOptions, Dir: copied, New: nths(before.next, before.next+2)}); ok {
				after.drained(unpack(f.Records, f.Count))
			}
			if lost, _ := after.lost(was.owed(tick)); lost > 0 {
				bad.add("lost", "recording %d: %d, %s", i, lost, after.note)
			}
			for g := range before.acked { // lost with the window, or counted by now
				if !after.seen[g] {
					before.acked[g] = 0
				}
			}
		}
		s.Next = before.next
		var inject []string
		kind := "continued"
		if i%4 == 0 {
			kind = "fresh"
		}
		switch {
		case faulty:
			s.Faults = true // it ends soon after
			from := 4 + rng.IntN(80)
			what := []string{"fdatasync:error=EIO", "fdatasync:error=EIO", "fdatasync:error=EIO", "pwrite64:error=ENOSPC"}[rng.IntN(4)]
			kind += fmt.Sprintf(", %s at %d", what, from)
			inject = []string{"-e", fmt.Sprintf("inject=%s:when=%d..%d", what, from, from+rng.IntN(3)*rng.IntN(9))}
		case i%4 == 1:
			kind += ", with a window"
			s.Window, s.Pause, s.Puts = 20*time.Millisecond, 4*time.Millisecond, 300
			if full() {
				s.Puts += rng.IntN(400)
			}
		}
		r := tape(t, s, before, inject...)
		r.kind = kind
		all = append(all, r)
	}
	return all
}

// moment is the i-th power cut: which recording, when, and what chance has the rest.
func moment(seed uint64, i int, cuts []*recording) (n, tick, lies int, rng *rand.Rand) {
	rng = rand.New(rand.NewPCG(seed, uint64(1000+i)))
	n = rng.IntN(len(cuts))
	return n, 1 + rng.IntN(len(cuts[n].at)-1), 1 + rng.IntN(6), rng
}

func TestPowerCuts(t *testing.T) { powerCuts(t, share(40, 1000), 40, false) }

// The same when some flushes have failed before: what was written before such a
// one may never reach the disk, though the next one succeeds.
func TestPowerCutsAfterFailedFlushes(t *testing.T) { powerCuts(t, share(120, 600), 15, true) }

func powerCuts(t *testing.T, images, each int, faulty bool) {
	needStrace(t)
	seed := seedOf(t)
	rng := rand.New(rand.NewPCG(seed, 4))
	bad, d := &faults{}, &doctor{}
	defer d.stop()
	cuts := recordings(t, rng, d, bad, max(4, images/each), faulty)
	var lost, total, inWindow, opened, flushes, failed atomic.Int64
	scratch := t.TempDir()
	onTwo(t, images, func(d *doctor, i int) {
		n, tick, _, rng := moment(seed, i, cuts)
		r := cuts[n]
		what := fmt.Sprintf("image %d, recording %d (%s), tick %d of %d", i, n, r.kind, tick, len(r.at))
		dir := filepath.Join(scratch, fmt.Sprint(i))
		if err := errors.Join(os.Mkdir(dir, 0o700), r.image(rng, dir, tick, 0)); err != nil {
			t.Error(err)
			return
		}
		defer os.RemoveAll(dir)
		all := bad
		bad := &faults{}
		defer func() {
			all.merge(t, bad, fmt.Sprint(i), func(dir string) error {
				_, _, _, rng := moment(seed, i, cuts)
				return r.image(rng, dir, tick, 0)
			})
		}()
		l := r.known(tick)
		f, ok := d.sure(bad, what, job{logOptions: cutOptions, Dir: dir, Close: rng.IntN(3) == 0, New: nths(l.next, l.next+3)})
		if !ok {
			return
		}
		opened.Add(1)
		l.drained(unpack(f.Records, f.Count))
		l.bad(bad, what)
		missing, acked := l.lost(r.owed(tick))
		whole, _ := l.lost(r.at[tick])
		lost.Add(int64(missing))
		inWindow.Add(int64(whole - missing))
		total.Add(int64(acked))
		if missing > 0 {
			bad.add("lost", "%s: %d, %s", what, missing, l.note)
		}
		if !faulty && (f.Dropped > 0 || f.SetAside > 0) {
			bad.add("damage stated after a power cut", "%s: %d records, %d files", what, f.Dropped, f.SetAside)
		}
	})
	var stall int64
	for _, r := range cuts {
		stall = max(stall, r.stall)
		for _, c := range r.calls {
			if c.name == "sync" && c.done {
				flushes.Add(1)
			} else if c.name == "sync" {
				failed.Add(1)
			}
		}
	}
	t.Logf("%d power-cut images of %d recordings with %d flushes, %d of them failed: %d of %d acknowledged readings lost (and %d in the window), %d of the images opened and took new ones; longest stall %d ms",
		images, len(cuts), flushes.Load()+failed.Load(), failed.Load(), lost.Load(), total.Load(), inWindow.Load(), opened.Load(), stall/1000)
	bad.report(t)
}

// A disk that says it has flushed and has not may lose. Nothing else.
func TestLiar(t *testing.T) {
	needStrace(t)
	seed := seedOf(t)
	images := share(30, 400)
	rng := rand.New(rand.NewPCG(seed, 5))
	bad, d := &faults{}, &doctor{}
	defer d.stop()
	cuts := recordings(t, rng, d, bad, min(max(2, images/40), 8), false)
	var whole, lossy, silent, lost, stated atomic.Int64
	scratch := t.TempDir()
	onTwo(t, images, func(d *doctor, i int) {
		n, tick, lies, rng := moment(seed, i, cuts)
		r := cuts[n]
		what := fmt.Sprintf("image %d, recording %d (%s), tick %d of %d, %d lies", i, n, r.kind, tick, len(r.at), lies)
		dir := filepath.Join(scratch, fmt.Sprint(i))
		if err := errors.Join(os.Mkdir(dir, 0o700), r.image(rng, dir, tick, lies)); err != nil {
			t.Error(err)
			return
		}
		defer os.RemoveAll(dir)
		all := bad
		bad := &faults{}
		defer func() {
			all.merge(t, bad, fmt.Sprint(i), func(dir string) error {
				_, _, _, rng := moment(seed, i, cuts)
				return r.image(rng, dir, tick, lies)
			})
		}()
		l := r.known(tick)
		l.durable = 0 // what was acknowledged may come again
		f, ok := d.sure(bad, what, job{logOptions: cutOptions, Dir: dir, New: nths(l.next, l.next+3)})
		if !ok {
			return
		}
		l.drained(unpack(f.Records, f.Count))
		l.bad(bad, what)
		missing, _ := l.lost(r.owed(tick))
		lost.Add(int64(missing))
		switch {
		case missing == 0:
			whole.Add(1)
		case f.Dropped > 0:
			lossy.Add(1)
		default:
			silent.Add(1)
		}
		if f.Dropped > 0 || f.SetAside > 0 {
			stated.Add(1)
		}
	})
	t.Logf("%d images of a disk that lies about its last 1 to 6 flushes: %d whole, %d lossy and say so, %d lossy without a word; %d acknowledged readings lost, damage stated for %d; 0 may be wrong, crash or hang",
		images, whole.Load(), lossy.Load(), silent.Load(), lost.Load(), stated.Load())
	bad.report(t)
}
