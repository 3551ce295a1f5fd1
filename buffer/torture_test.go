package buffer_test

import (
	"bytes"
	"encoding/binary"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"campus-gateway/buffer"
)

// The torture tests see the log as its users do. Each family prints one sentence
// with its figures. `go test` runs a small share of each, `make torture` all.
//
//	TORTURE=full       the full figures, with a new seed
//	TORTURE_SEED=n     repeats a run
//	TORTURE_COUNT=n    so many images, kills, files or faults instead
//	TORTURE_KEEP=dir   keeps there the folders that were not opened as they must be

// record is the log's g-th record: everything in it follows from g, so that a
// wrong or an invented one shows.
type record struct {
	Sensor uint8
	Seq    uint64
	Value  uint64
}

const sensors = 5

func nth(g int) record {
	r := record{Sensor: uint8(g % sensors), Seq: uint64(g / sensors)}
	r.Value = value(r.Sensor, r.Seq)
	return r
}

func nths(from, to int) (rs []record) {
	for g := from; g < to; g++ {
		rs = append(rs, nth(g))
	}
	return rs
}

// value is a hash (splitmix64): it does not compress, so a block's body is kept
// as it is, and a flipped bit of it is a wrong value.
func value(sensor uint8, seq uint64) uint64 {
	x := (uint64(sensor)<<56 | seq) + 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// g is the record's number, if it is one of ours.
func (r record) g() (int, bool) {
	if r.Sensor >= sensors || r.Seq > 1<<40 || r.Value != value(r.Sensor, r.Seq) {
		return 0, false
	}
	return int(r.Seq)*sensors + int(r.Sensor), true
}

// records is their codec. It checks lengths alone: that a value is right is for
// the log to see.
type records struct{}

func (records) Append(dst []byte, rs []record) ([]byte, error) {
	for _, r := range rs {
		dst = append(dst, r.Sensor)
		dst = binary.AppendUvarint(dst, r.Seq)
		dst = binary.LittleEndian.AppendUint64(dst, r.Value)
	}
	return dst, nil
}

func (records) Decode(src []byte, n int) ([]record, error) {
	rs := make([]record, 0, min(n, len(src)/10))
	for range n {
		if len(src) < 10 {
			return nil, errors.New("short")
		}
		seq, k := binary.Uvarint(src[1:])
		if k <= 0 || len(src) < 9+k {
			return nil, errors.New("short")
		}
		rs = append(rs, record{src[0], seq, binary.LittleEndian.Uint64(src[1+k:])})
		src = src[9+k:]
	}
	if len(src) > 0 {
		return nil, errors.New("long")
	}
	return rs, nil
}

// Check accepts every record.
func (records) Check(record) error { return nil }

// The test binary is also each child process of these tests: the variable names
// what it is to be.
const childEnv = "BUFFER_TORTURE_CHILD"

var children = map[string]func(){
	"writer": writer,
	"opener": opener,
}

func init() {
	if f := children[os.Getenv(childEnv)]; f != nil {
		_ = os.Unsetenv(childEnv) // a child of the child is not meant
		f()
		os.Exit(0)
	}
}

func childCommand(name string, env ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), childEnv+"="+name, "GORACE=atexit_sleep_ms=0"), env...) // the race detector rests a second before each exit
	return cmd
}

// full tells whether this is the whole run.
func full() bool { return os.Getenv("TORTURE") == "full" }

// share is the number of cases to run.
func share(small, all int) int {
	if n, err := strconv.Atoi(os.Getenv("TORTURE_COUNT")); err == nil {
		return n
	}
	if full() {
		return all
	}
	return small
}

// seedOf prints the seed, so that a run can be repeated.
func seedOf(t *testing.T) uint64 {
	seed := uint64(1) // go test is the same each time
	if full() {
		seed = uint64(time.Now().UnixNano())
	}
	if n, err := strconv.ParseUint(os.Getenv("TORTURE_SEED"), 10, 64); err == nil {
		seed = n
	}
	t.Logf("TORTURE_SEED=%d", seed)
	return seed
}

func skipVisibly(t *testing.T, why string) {
	t.Helper()
	fmt.Printf("SKIPPED: %s: %s\n", t.Name(), why)
	t.Skip("SKIPPED: " + why)
}

// faults counts what went wrong by kind, and keeps the first of each kind.
type faults struct {
	mu    sync.Mutex
	count map[string]int
	first map[string]string
}

func (f *faults) add(kind, format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.count == nil {
		f.count, f.first = map[string]int{}, map[string]string{}
	}
	if f.count[kind]++; f.count[kind] <= 3 {
		f.first[kind] += "\n\t" + fmt.Sprintf(format, args...)
	}
}

// merge takes the faults of one case over. If there are any, and they are wanted,
// write puts the case as it was into a folder to keep.
func (f *faults) merge(t *testing.T, one *faults, name string, write func(dir string) error) {
	if len(one.count) == 0 {
		return
	}
	if keep := os.Getenv("TORTURE_KEEP"); keep != "" {
		dir := filepath.Join(keep, t.Name()+"-"+name)
		if err := errors.Join(os.MkdirAll(dir, 0o700), write(dir)); err != nil {
			t.Error(err)
		}
	}
	for kind, n := range one.count {
		f.add(kind, "%s", strings.TrimPrefix(one.first[kind], "\n\t"))
		f.mu.Lock()
		f.count[kind] += n - 1
		f.mu.Unlock()
	}
}

func (f *faults) report(t *testing.T) {
	t.Helper()
	for kind, n := range f.count {
		t.Errorf("%d × %s, the first:%s", n, kind, f.first[kind])
	}
}

// ledger is what is known outside the log, from the lines a writer prints:
//
//	p g n   about to put n records from g on
//	P g n   Put has returned nil
//	F g n … Put has returned an error: they may be kept or not
//	D …     sent, as sensor:seq:value
//	a       the broker has answered yes to what was sent last: now Ack is called
//	A       Ack has returned
//	O …     Open has failed
//	R       Open has succeeded
type ledger struct {
	window    time.Duration
	next      int     // records below have been given to Put
	acked     []int64 // when Put returned nil, µs since 1970; 0: it has not
	sent      []int   // the life in which it was sent last; 0: never
	life      int
	seen      []bool // accepted by the broker
	newest    int    // below it are the records that the broker has accepted
	inLife    int    // the same, of this life of the process
	flight    []int
	returned  int // Ack has returned for records below
	candidate int // returned, when the Put under way began
	durable   int // Ack is on disk for records below: they must not come again

	puts, failed, opens, failedOpens int
	duplicates                       int // on the wire, sent before by an earlier life
	wrong, invented, disordered      int
	undue                            int    // duplicates although Ack was on disk
	last                             string // kind of the last Put's line
	note                             string
}

func (l *ledger) complain(count *int, format string, args ...any) {
	if *count++; l.note == "" {
		l.note = fmt.Sprintf(format, args...)
	}
}

// newLife begins with every start of the process.
func (l *ledger) newLife() {
	l.life++
	l.inLife, l.flight, l.candidate, l.returned = 0, nil, 0, l.durable
}

// line takes one line, printed at a time in µs.
func (l *ledger) line(text string, at int64) {
	kind, rest, _ := strings.Cut(text, " ")
	var g, n int
	switch kind {
	case "p", "P", "F":
		if _, err := fmt.Sscan(rest, &g, &n); err != nil {
			l.complain(&l.invented, "the writer says %q", text)
			return
		}
	}
	switch kind {
	case "p":
		l.candidate = l.returned
		l.next = max(l.next, g+n)
		for len(l.acked) < l.next {
			l.acked, l.sent, l.seen = append(l.acked, 0), append(l.sent, 0), append(l.seen, false)
		}
	case "P":
		l.puts++
		for i := g; i < g+n; i++ {
			l.acked[i] = max(at, 1)
		}
		if l.window == 0 {
			l.durable = max(l.durable, l.candidate)
		}
		l.last = "P"
	case "F":
		l.failed++
		l.last = "F"
	case "D":
		var rs []record
		for _, f := range strings.Fields(rest) {
			var r record
			if _, err := fmt.Sscanf(f, "%d:%d:%x", &r.Sensor, &r.Seq, &r.Value); err != nil {
				l.complain(&l.invented, "the writer sent %q", f)
			}
			rs = append(rs, r)
		}
		l.send(rs)
	case "a":
		l.accept()
	case "A":
		l.returned = max(l.returned, l.inLife)
	case "O":
		l.failedOpens++
	case "R":
		l.opens++
	default:
		l.complain(&l.invented, "the writer says %q", text)
	}
}

// send is a batch on the wire.
func (l *ledger) send(rs []record) {
	l.flight = l.flight[:0]
	last := l.inLife - 1
	for _, r := range rs {
		g, ok := r.g()
		if !ok {
			l.complain(&l.wrong, "a wrong value: %+v", r)
			continue
		}
		if g >= l.next {
			l.complain(&l.invented, "record %d, of %d", g, l.next)
			continue
		}
		if was := l.sent[g]; was > 0 && was < l.life {
			l.duplicates++
		}
		if g < l.durable {
			l.complain(&l.undue, "record %d again, though its Ack is on disk up to %d", g, l.durable)
		}
		if g <= last {
			l.complain(&l.disordered, "record %d after %d", g, last)
		}
		if !l.seen[g] && g < l.newest {
			l.complain(&l.disordered, "record %d for the first time, after %d", g, l.newest-1)
		}
		l.sent[g], last = l.life, g
		l.flight = append(l.flight, g)
	}
}

func (l *ledger) accept() {
	for _, g := range l.flight {
		l.seen[g] = true
		l.newest, l.inLife = max(l.newest, g+1), max(l.inLife, g+1)
	}
	l.flight = l.flight[:0]
}

// drained takes all that a log still had, after a restart.
func (l *ledger) drained(rs []record) {
	l.newLife()
	l.send(rs)
	l.accept()
}

// lost counts the records acknowledged by Put before a time that the broker has
// not, and after which no more is expected. Those before the newest accepted are
// lost whenever they were acknowledged: the log never keeps a record and loses
// one that came before.
func (l *ledger) lost(before int64) (n, total int) {
	for g, at := range l.acked {
		if at == 0 {
			continue
		}
		total++
		if !l.seen[g] && (at <= before || g < l.newest) {
			if n++; l.note == "" {
				l.note = fmt.Sprintf("record %d is lost; acknowledged %d, accepted up to %d", g, l.next, l.newest)
			}
		}
	}
	return n, total
}

func (l *ledger) clone() *ledger {
	c := *l
	c.acked = append([]int64(nil), l.acked...)
	c.sent = append([]int(nil), l.sent...)
	c.seen = append([]bool(nil), l.seen...)
	c.flight = append([]int(nil), l.flight...)
	return &c
}

// bad tells the faults of a ledger apart.
func (l *ledger) bad(f *faults, what string) (fine bool) {
	fine = true
	for _, k := range []struct {
		n    int
		kind string
	}{{l.wrong, "wrong value"}, {l.invented, "invented record"}, {l.disordered, "out of order"}, {l.undue, "duplicate although its Ack was on disk"}} {
		if k.n > 0 {
			f.add(k.kind, "%s: %d, %s", what, k.n, l.note)
			fine = false
		}
	}
	return fine
}

// script is what a writer does.
type script struct {
	logOptions
	Dir     string
	Seed    uint64
	Next    int  // number of its first record
	Puts    int  // then it ends; 0: never
	Largest int  // records in a Put
	Read    bool // it also sends and acknowledges, online at times
	Faults  bool // the disk fails: it ends some Puts after that has passed
	Pause   time.Duration
}

// writer is a child process. It ends without Close, as a power cut would have it.
func writer() {
	runtime.LockOSThread() // strace counts the calls of each thread
	var s script
	if err := json.Unmarshal([]byte(os.Getenv("BUFFER_TORTURE_SCRIPT")), &s); err != nil {
		say("O %v", err)
		return
	}
	var l *buffer.Log[record]
	var c *buffer.Cursor[record]
	for try := 0; ; try++ {
		var err error
		if l, c, err = openLog(s.Dir, s.logOptions); err == nil {
			break
		}
		say("O %v", err)
		if try == 20 || !s.Faults {
			return
		}
	}
	say("R")
	rng := rand.New(rand.NewPCG(s.Seed, 1))
	if s.Window > 0 {
		go func() { _ = l.Run(neverEnding{}) }()
	}
	if s.Read && s.Puts == 0 {
		go func() { // beside the writer, as the forwarder is
			rng := rand.New(rand.NewPCG(s.Seed, 2))
			for {
				for n := rng.IntN(40); n > 0; n-- {
					forward(rng, c)
				}
				time.Sleep(time.Duration(rng.IntN(30)) * time.Millisecond)
			}
		}()
	}
	since := 0 // Puts that succeeded since the last fault
	failed := false
	for g, i := s.Next, 0; s.Puts == 0 || i < s.Puts || s.Faults && failed && since < 12 && i < 2*s.Puts; i++ {
		n := 1 + rng.IntN(max(1, s.Largest))
		if rng.IntN(4) > 0 {
			n = 1 + rng.IntN(3)
		}
		say("p %d %d", g, n)
		if err := l.Put(nths(g, g+n)...); err != nil {
			say("F %d %d %v", g, n, err)
			failed, since = true, 0
			time.Sleep(20 * time.Millisecond) // a log may wait before it tries its disk again
		} else {
			say("P %d %d", g, n)
			since++
		}
		g += n
		if s.Faults && failed && since == 12 {
			return
		}
		if s.Read && s.Puts > 0 && rng.IntN(3) == 0 {
			forward(rng, c)
			if rng.IntN(2) == 0 {
				forward(rng, c)
				forward(rng, c)
			}
		}
		if s.Pause > 0 {
			time.Sleep(s.Pause)
		}
	}
}

// forward is one batch: sent, mostly accepted, acknowledged.
func forward(rng *rand.Rand, c *buffer.Cursor[record]) {
	rs, end, err := c.Peek(1 + rng.IntN(100))
	if err != nil || len(rs) == 0 {
		return
	}
	b := []byte("D")
	for _, r := range rs {
		b = fmt.Appendf(b, " %d:%d:%x", r.Sensor, r.Seq, r.Value)
	}
	say("%s", b)
	if rng.IntN(8) == 0 {
		return // no answer
	}
	say("a")
	c.Ack(end)
	say("A")
}

// say prints a line in one write.
func say(format string, args ...any) {
	_, _ = os.Stdout.Write(fmt.Appendf(nil, strings.ReplaceAll(format, "\n", " ")+"\n", args...))
}

// neverEnding is context.Background, said for what it means here.
type neverEnding struct{}

func (neverEnding) Deadline() (t time.Time, ok bool) { return t, false }
func (neverEnding) Done() <-chan struct{}            { return nil }
func (neverEnding) Err() error                       { return nil }
func (neverEnding) Value(any) any                    { return nil }

func (s script) command() (*exec.Cmd, error) {
	b, err := json.Marshal(s)
	return childCommand("writer", "BUFFER_TORTURE_SCRIPT="+string(b)), err
}

// job is a folder to open; found is what became of it.
type job struct {
	logOptions
	Dir   string
	Close bool     // at once, and open it again before all is read
	New   []record // to put then
}

type found struct {
	Err      string // of what was done, the empty string if all went well
	Opened   [3]time.Duration
	Records  []byte // all that was waiting, packed
	Count    int
	Dropped  uint64
	SetAside int
	Again    []byte // what was waiting after a second opening: New, and what is not owed
	AgainN   int
	Aside    [3]int // files set aside, by the number of times the log was opened
}

// opener is a child process that opens one folder after another.
func opener() {
	in, out := gob.NewDecoder(os.Stdin), gob.NewEncoder(os.Stdout)
	for {
		var j job
		if err := in.Decode(&j); err != nil {
			return
		}
		var f found
		if err := j.do(&f); err != nil {
			f.Err = err.Error()
		}
		if err := out.Encode(f); err != nil {
			return
		}
	}
}

func (j job) do(f *found) error {
	opens := 0
	open := func() (*buffer.Log[record], *buffer.Cursor[record], error) {
		start := time.Now()
		l, c, err := openLog(j.Dir, j.logOptions)
		f.Opened[opens] = time.Since(start)
		names, _ := filepath.Glob(filepath.Join(j.Dir, "*.damaged-*"))
		f.Aside[opens] = len(names)
		if err != nil {
			return nil, nil, fmt.Errorf("opening %d: %w", opens, err)
		}
		opens++
		return l, c, nil
	}
	l, c, err := open()
	if err != nil {
		return err
	}
	count := func() {
		f.SetAside += setAside(l)
		f.Dropped += dropped(l)
	}
	if j.Close {
		count()
		if err := l.Close(); err != nil {
			return fmt.Errorf("close: %w", err)
		}
		if l, c, err = open(); err != nil {
			return err
		}
	}
	rs, err := takeAll(c)
	f.Records, _ = records{}.Append(nil, rs)
	f.Count = len(rs)
	count()
	if err != nil {
		return errors.Join(err, l.Close())
	}
	if err := l.Put(j.New...); err != nil {
		return errors.Join(fmt.Errorf("put: %w", err), l.Close())
	}
	if err := l.Close(); err != nil {
		return fmt.Errorf("close: %w", err)
	}
	if l, c, err = open(); err != nil {
		return err
	}
	rs, err = takeAll(c)
	f.Again, _ = records{}.Append(nil, rs)
	f.AgainN = len(rs)
	return errors.Join(err, l.Close())
}

func takeAll(c *buffer.Cursor[record]) (all []record, err error) {
	for range 1 << 20 {
		rs, end, err := c.Peek(700)
		if err != nil {
			return all, fmt.Errorf("peek: %w", err)
		}
		all = append(all, rs...)
		c.Ack(end)
		if len(rs) == 0 {
			if n := c.Depth(); n > 0 {
				return all, fmt.Errorf("nothing to peek at, but a depth of %d", n)
			}
			return all, nil
		}
	}
	return all, errors.New("peek never ends")
}

// deadline is after which a log that does not open hangs.
const deadline = 5 * time.Second

// doctor has an opener look at folders. When that dies or hangs it is told, and
// there is a new one for the next.
type doctor struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *gob.Decoder
	enc  *gob.Encoder
	last *bytes.Buffer
}

func (d *doctor) start() error {
	cmd := childCommand("opener")
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	d.last = &bytes.Buffer{}
	cmd.Stderr = d.last
	d.cmd, d.in, d.enc, d.out = cmd, in, gob.NewEncoder(in), gob.NewDecoder(out)
	return cmd.Start()
}

func (d *doctor) stop() {
	if d.cmd != nil {
		_ = d.in.Close()
		_ = d.cmd.Wait()
		d.cmd = nil
	}
}

// open returns what was found; hung and crashed say that the process had to be
// killed, or died.
func (d *doctor) open(j job) (f found, hung, crashed string) {
	if d.cmd == nil {
		if err := d.start(); err != nil {
			return f, "", err.Error()
		}
	}
	killed := make(chan struct{})
	timer := time.AfterFunc(4*deadline, func() { _ = d.cmd.Process.Kill(); close(killed) })
	err := errors.Join(d.enc.Encode(j), d.out.Decode(&f))
	if timer.Stop() && err == nil {
		for _, took := range f.Opened {
			if took > deadline {
				hung = fmt.Sprintf("opening took %v", took)
			}
		}
		return f, hung, ""
	}
	d.stop()
	select {
	case <-killed:
		return f, fmt.Sprintf("no answer within %v", 4*deadline), ""
	default:
		return f, "", fmt.Sprintf("%v: %.300s", err, d.last)
	}
}

// unpack is the other way of found's records.
func unpack(b []byte, n int) []record {
	rs, err := records{}.Decode(b, n)
	if err != nil {
		panic(err) // a pipe of our own
	}
	return rs
}

// sure checks what must hold of every log after its opening, whatever was before:
// it opens in time, and works on.
func (d *doctor) sure(bad *faults, what string, j job) (f found, ok bool) {
	f, hung, crashed := d.open(j)
	switch {
	case crashed != "":
		bad.add("crash", "%s: %s", what, crashed)
		return f, false
	case hung != "":
		bad.add("hang", "%s: %s", what, hung)
	case f.Err != "":
		bad.add("error", "%s: %s", what, f.Err)
	}
	if f.Err != "" {
		return f, false
	}
	again := unpack(f.Again, f.AgainN)
	if len(again) != len(j.New) {
		bad.add("wrong after the second opening", "%s: %d records, put were %d", what, len(again), len(j.New))
	} else {
		for i := range again {
			if again[i] != j.New[i] {
				bad.add("wrong after the second opening", "%s: %+v, put was %+v", what, again[i], j.New[i])
				break
			}
		}
	}
	if f.Aside[2] > f.Aside[0] && f.Aside[2] > f.Aside[1] {
		bad.add("set aside again and again", "%s: %v files", what, f.Aside)
	}
	return f, hung == ""
}

// onTwo runs n cases on two workers.
func onTwo(t *testing.T, n int, f func(d *doctor, i int)) {
	t.Helper()
	var wg sync.WaitGroup
	next := make(chan int)
	for range 2 {
		wg.Go(func() {
			d := &doctor{}
			defer d.stop()
			for i := range next {
				f(d, i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
}
