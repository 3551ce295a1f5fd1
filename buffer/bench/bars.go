//go:build linux

// Bench measures the log's performance bars on this machine, each next to an
// alternative in the same run, and prints one table. It is a module of its own:
// the gateway does not depend on what it is compared with.
//
//	go run . [part ...]     parts: online through backlog outage full; default all
//
// The exit status is 1 when a bar is missed, unless BENCH_REPORT=1. Bytes are
// counted at a loop device with an ext4 file system of our own, journal
// included, which takes root; flushes with strace. A bar that cannot be measured
// here says SKIPPED. All data is drawn from fixed seeds.
//
// What the figures mean: "written through, online" removes with each commit what
// the one before has brought, "offline" only appends. The pre-zeroed file gets
// the same readings as JSON lines packed with zstd, in place, one fdatasync a
// commit. The plain file gets JSON lines that lie ready in memory, while the log
// encodes readings. To drain is, for the log, to decode every reading and commit
// that it is gone; for the plain file, to cut it into lines of their own, not
// parsed, and sync the place. Idle memory is that of the process that has just
// opened the full log.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	gateway "campus-gateway"
	"campus-gateway/buffer"
)

const rounds = 3 // of which the median counts

func main() {
	if len(os.Args) == 3 && os.Args[1] == "inspect" { // what a log starts to look at its files
		if err := buffer.InspectFor(os.Stdout, os.Args[2]); err != nil {
			os.Exit(1)
		}
		return
	}
	if len(os.Args) > 1 && os.Args[1] == "child" {
		if err := child(os.Args[2], os.Args[3:]); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(2)
		}
		return
	}
	for _, arg := range os.Args[1:] {
		if !slices.ContainsFunc(parts, func(p part) bool { return p.name == arg }) {
			fmt.Fprintf(os.Stderr, "bench: no part %q\n", arg)
			os.Exit(2)
		}
	}
	missed, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	if missed && os.Getenv("BENCH_REPORT") != "1" {
		os.Exit(1)
	}
}

type bench struct {
	dir  string  // on the disk
	fast string  // in memory where there is room: for logs of which only the size matters
	dev  *device // nil: none
	why  string  // there is none
	rows []string
	miss bool
	runs int // paths given out by newDir
}

type part struct {
	name    string
	measure func(*bench) error
}

var parts = []part{
	{"online", (*bench).online},
	{"through", (*bench).through},
	{"backlog", (*bench).backlog},
	{"outage", (*bench).outage},
	{"full", (*bench).full},
}

func run(only []string) (missed bool, err error) {
	b := &bench{}
	if b.dir, err = os.MkdirTemp("", "log-bench-"); err != nil {
		return false, err
	}
	if b.fast, err = os.MkdirTemp("/dev/shm", "log-bench-"); err != nil || free(b.fast) < 2<<30 {
		_ = os.RemoveAll(b.fast)
		b.fast = b.dir
	}
	if b.dev, err = newDevice(b.dir); err != nil {
		b.why = fmt.Sprintf("no loop device: %v", err)
	}
	defer b.clean()
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-interrupted
		b.clean()
		os.Exit(2)
	}()
	for _, p := range parts {
		if len(only) > 0 && !slices.Contains(only, p.name) {
			continue
		}
		start := time.Now()
		if err := p.measure(b); err != nil {
			return false, fmt.Errorf("%s: %w", p.name, err)
		}
		for ; b.runs > 0; b.runs-- {
			if err := os.RemoveAll(b.runDir()); err != nil {
				return false, err
			}
		}
		fmt.Fprintf(os.Stderr, "%-8s %5.1f s\n", p.name, time.Since(start).Seconds())
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "bar\tallowed\tmeasured\tok\n%s\n", strings.Join(b.rows, "\n"))
	return b.miss, w.Flush()
}

// clean leaves nothing behind, also of a bench that was interrupted.
func (b *bench) clean() {
	b.dev.close()
	_ = os.RemoveAll(b.fast)
	_ = os.RemoveAll(b.dir)
}

// atMost and atLeast add a row to the table; note says what it comes from.
func (b *bench) atMost(bar string, limit, got float64, unit, note string) {
	b.row(bar, fmt.Sprintf("≤ %.4g %s", limit, unit), fmt.Sprintf("%.4g %s", got, note), got <= limit)
}

func (b *bench) atLeast(bar string, limit, got float64, unit, note string) {
	b.row(bar, fmt.Sprintf("≥ %.4g %s", limit, unit), fmt.Sprintf("%.4g %s", got, note), got >= limit)
}

func (b *bench) row(bar, allowed, measured string, ok bool) {
	verdict := "yes"
	if !ok {
		verdict, b.miss = "MISSED", true
	}
	b.rows = append(b.rows, strings.Join([]string{bar, strings.TrimSpace(allowed), strings.TrimSpace(measured), verdict}, "\t"))
}

func (b *bench) skip(bar, why string) {
	b.rows = append(b.rows, strings.Join([]string{bar, "", why, "SKIPPED"}, "\t"))
}

func median(xs []float64) float64 {
	xs = slices.Sorted(slices.Values(xs))
	return xs[len(xs)/2]
}

// openLog opens a log and runs it; stop ends both.
func openLog(dir string, opt buffer.Options) (l *buffer.Log[gateway.Reading], c *buffer.Cursor[gateway.Reading], stop func() error, err error) {
	opt.Verify = buffer.Apart("/proc/self/exe", "inspect")
	if l, err = buffer.Open(dir, gateway.Codec{}, opt); err != nil {
		return nil, nil, nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- l.Run(ctx) }()
	stop = func() error {
		cancel()
		return errors.Join(<-done, l.Close())
	}
	if c, err = l.Cursor("broker"); err != nil {
		return nil, nil, nil, errors.Join(err, stop())
	}
	return l, c, stop, nil
}

// drain takes all there is, as the forwarder does, and returns how many.
func drain(c *buffer.Cursor[gateway.Reading]) (n int, err error) {
	for {
		rs, end, err := c.Peek(1000)
		if err != nil || len(rs) == 0 {
			return n, err
		}
		n += len(rs)
		c.Ack(end)
	}
}

// newDir is a path not used before, on the device where there is one.
func (b *bench) newDir() string {
	b.runs++
	return b.runDir()
}

func (b *bench) runDir() string {
	disk := b.dir
	if b.dev != nil {
		disk = b.dev.mount
	}
	return filepath.Join(disk, "run-"+strconv.Itoa(b.runs))
}

// rerun runs this program again for what must be measured from outside, or in a
// process that has done nothing else, and reads its answer.
func rerun(answer any, wrap []string, args ...string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	args = slices.Concat(wrap, []string{self, "child"}, args)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("%s: %w", strings.Join(args, " "), err)
	}
	return json.NewDecoder(bytes.NewReader(out)).Decode(answer)
}

func child(what string, args []string) error {
	var answer any
	var err error
	switch what {
	case "online":
		inMadeUpTime(func() (any, error) { return tenMinutes(args[0]) })
	case "outage":
		inMadeUpTime(func() (any, error) { return longOutage(args[0]) })
	case "commits":
		answer, err = commitsChild(args)
	case "drain":
		answer, err = drainChild(args[0])
	default:
		err = fmt.Errorf("no child %q", what)
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(answer)
}

// online: what every uplink acknowledges within the window never reaches the disk.
func (b *bench) online() error {
	const bar = "online, 20 sensors at 1 Hz, 10 min: written"
	var a onlineAnswer
	if err := rerun(&a, nil, "online", b.newDir()); err != nil {
		return err
	}
	if a.Control == 0 {
		b.skip(bar, "this file system does not count writes")
		return nil
	}
	b.atMost(bar, 0, float64(a.Bytes), "B", fmt.Sprintf("B in %d commits (%d readings delivered; one kept back wrote %d B)", a.Commits, a.Delivered, a.Control))
	return nil
}

type onlineAnswer struct {
	Bytes     int64 // written in ten minutes
	Commits   uint64
	Delivered int
	Control   int64 // written when one reading is not acknowledged
}

// tenMinutes of made-up time: 20 sensors put a reading a second, one after the
// other, and a forwarder's broker answers after 300 ms.
func tenMinutes(dir string) (a onlineAnswer, err error) {
	l, c, stop, err := openLog(dir, buffer.Options{Window: time.Second})
	if err != nil {
		return a, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() {
		for ctx.Err() == nil {
			rs, end, err := c.Peek(100)
			if err != nil {
				done <- err
				return
			}
			if len(rs) == 0 {
				select {
				case <-c.Ready():
				case <-ctx.Done():
				}
				continue
			}
			time.Sleep(300 * time.Millisecond)
			c.Ack(end)
			a.Delivered += len(rs)
		}
		done <- nil
	}()
	room := newClimate(20)
	time.Sleep(2*time.Second + 7*time.Millisecond)
	start, err := counter("/proc/self/io", "write_bytes")
	for range 600 * 20 {
		err = errors.Join(err, l.Put(room.next()))
		time.Sleep(50 * time.Millisecond)
	}
	time.Sleep(2 * time.Second)
	a.Commits = l.Stats().Commits
	end, err2 := counter("/proc/self/io", "write_bytes")
	a.Bytes = end - start
	cancel()
	err = errors.Join(err, err2, <-done, l.Put(room.next()))
	time.Sleep(2 * time.Second)
	last, err2 := counter("/proc/self/io", "write_bytes")
	a.Control = last - end
	return a, errors.Join(err, err2, stop())
}

// through: each commit on disk before the next, online (the commit also removes
// what the one before has brought) and offline (it only appends).
func (b *bench) through() error {
	for _, n := range []int{100, 1000} {
		if err := b.writtenThrough(n); err != nil {
			return err
		}
	}
	return b.afterBacklog()
}

func (b *bench) writtenThrough(n int) error {
	modes := []string{"online", "offline"}
	for _, mode := range modes {
		bar := fmt.Sprintf("written through, %s, %d a commit: flushes", mode, n)
		if f, err := flushes(mode, n, b.newDir); err != nil {
			b.skip(bar, err.Error())
		} else { // to a tenth: the file grows now and then
			b.atMost(bar, 2, math.Round(10*f)/10, "", fmt.Sprintf("(%.2f)", f))
		}
	}
	if b.dev == nil {
		b.skip(fmt.Sprintf("written through, %d a commit: bytes", n), b.why)
		return nil
	}
	const commits = 400
	batches := newCampus().batches(commits, n)
	got := map[string][]float64{}
	for range rounds {
		for _, mode := range modes {
			l, c, stop, err := openLog(b.newDir(), buffer.Options{})
			if err != nil {
				return err
			}
			per, err := b.perCommit(batches, func(batch []gateway.Reading) error { return put(l, c, mode == "online", batch) })
			if err = errors.Join(err, stop()); err != nil {
				return err
			}
			got[mode] = append(got[mode], per)
		}
		f, err := newZeroed(b.newDir(), batches)
		if err != nil {
			return err
		}
		per, err := b.perCommit(batches, func([]gateway.Reading) error { return f.next() })
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
		got["plain"] = append(got["plain"], per)
	}
	limit := map[int]float64{100: 13, 1000: 25}[n]
	for _, mode := range modes {
		bytes, plain := median(got[mode]), median(got["plain"])
		bar := fmt.Sprintf("written through, %s, %d a commit: ", mode, n)
		b.atMost(bar+"to the device", limit, bytes/1000, "kB", "kB")
		b.atMost(bar+"of a pre-zeroed file", 2.5, bytes/plain, "×", fmt.Sprintf("× (%.1f kB)", plain/1000))
	}
	return nil
}

// put brings a batch to disk; online the acknowledgement of the one before goes with it.
func put(l *buffer.Log[gateway.Reading], c *buffer.Cursor[gateway.Reading], online bool, batch []gateway.Reading) error {
	if online {
		_, end, err := c.Peek(len(batch))
		if err != nil {
			return err
		}
		c.Ack(end)
	}
	return l.Put(batch...)
}

// perCommit is the bytes that reach the device for each batch, once a third of
// them has brought the file to its size.
func (b *bench) perCommit(batches [][]gateway.Reading, commit func([]gateway.Reading) error) (float64, error) {
	warm := len(batches) / 3
	var before int64
	for i, batch := range batches {
		if i == warm {
			var err error
			if before, err = b.dev.written(); err != nil {
				return 0, err
			}
		}
		if err := commit(batch); err != nil {
			return 0, err
		}
	}
	after, err := b.dev.written()
	return float64(after-before) / float64(len(batches)-warm), err
}

// flushes counts what the kernel is asked for, as the difference of two runs of
// which one makes 50 commits more.
func flushes(mode string, n int, newDir func() string) (float64, error) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		return 0, errors.New("strace is not installed")
	}
	const more = 50
	var calls [2]int
	for i := range calls {
		dir := newDir()
		trace := dir + ".strace"
		var commits int
		err := rerun(&commits, []string{strace, "-f", "-qq", "-o", trace, "-e", "trace=fsync,fdatasync,msync,sync_file_range,sync,syncfs"},
			"commits", dir, mode, strconv.Itoa(n), strconv.Itoa(20+i*more))
		if err != nil {
			return 0, err
		}
		lines, err := os.ReadFile(trace)
		if err != nil {
			return 0, err
		}
		calls[i] = strings.Count(string(lines), "sync(") + strings.Count(string(lines), "sync_file_range(") + strings.Count(string(lines), "syncfs(")
	}
	return float64(calls[1]-calls[0]) / more, nil
}

func commitsChild(args []string) (int, error) {
	n, err := strconv.Atoi(args[2])
	if err != nil {
		return 0, err
	}
	commits, err := strconv.Atoi(args[3])
	if err != nil {
		return 0, err
	}
	l, c, stop, err := openLog(args[0], buffer.Options{})
	if err != nil {
		return 0, err
	}
	for _, batch := range newCampus().batches(commits, n) {
		if err := put(l, c, args[1] == "online", batch); err != nil {
			return 0, errors.Join(err, stop())
		}
	}
	return commits, stop()
}

// afterBacklog: a drained backlog leaves nothing behind, in files or in the cost
// of later commits.
func (b *bench) afterBacklog() (err error) {
	const bar = "after a drained backlog of 100 MB: "
	if b.dev == nil {
		b.skip(bar+"bytes a commit", b.why)
		return nil
	}
	dir := b.newDir()
	l, c, stop, err := openLog(dir, buffer.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	small := newCampus().batches(100, 100)
	measure := func() (float64, error) {
		var all []float64
		for range rounds {
			per, err := b.perCommit(small, func(batch []gateway.Reading) error { return put(l, c, true, batch) })
			if err != nil {
				return 0, err
			}
			all = append(all, per)
		}
		return median(all), nil
	}
	fresh, err := measure()
	if err != nil {
		return err
	}
	files := func() (int, error) {
		names, err := os.ReadDir(dir)
		return len(names), err
	}
	before, err := files()
	if err != nil {
		return err
	}
	big := newCampus().batches(200, 1000)
	for l.Stats().Size < 100e6 {
		for _, batch := range big {
			if err := l.Put(batch...); err != nil {
				return err
			}
		}
	}
	if _, err := drain(c); err != nil {
		return err
	}
	if err := l.Put(small[0]...); err != nil { // the commit that removes them
		return err
	}
	time.Sleep(1500 * time.Millisecond) // and a tick
	after, err := files()
	if err != nil {
		return err
	}
	b.atMost(bar+"files", float64(before), float64(after), "as when fresh", fmt.Sprintf("(%.1f MB)", float64(l.Stats().Size)/1e6))
	drained, err := measure()
	if err != nil {
		return err
	}
	b.atMost(bar+"bytes a commit, of fresh", 1.1, drained/fresh, "×", fmt.Sprintf("× (%.1f kB, fresh %.1f kB)", drained/1000, fresh/1000))
	return nil
}

// backlog: 1,000 readings a commit, offline, then read back.
func (b *bench) backlog() error {
	const commits, n = 200, 1000
	batches := newCampus().batches(commits, n)
	lines := make([][]byte, commits) // JSON, in memory before the clock starts
	payload := 0
	for i, batch := range batches {
		for _, r := range batch {
			lines[i] = appendJSON(lines[i], r)
		}
		payload += len(lines[i])
	}
	rate := map[string][]float64{}
	var wa, drained []float64
	timed := func(what string, f func() error) error {
		start := time.Now()
		err := f()
		rate[what] = append(rate[what], commits*n/time.Since(start).Seconds())
		return err
	}
	for range 2*rounds - 1 { // short ones
		l, c, stop, err := openLog(b.newDir(), buffer.Options{})
		if err != nil {
			return err
		}
		before, err := b.dev.written()
		if err != nil {
			return errors.Join(err, stop())
		}
		if err := timed("log", func() error {
			for _, batch := range batches {
				if err := l.Put(batch...); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return errors.Join(err, stop())
		}
		after, err := b.dev.written()
		if err != nil {
			return errors.Join(err, stop())
		}
		wa = append(wa, float64(after-before)/float64(payload))
		plain := b.newDir()
		if err := timed("plain", func() error { return appendPlain(plain, lines) }); err != nil {
			return err
		}
		if err := timed("sqlite", func() error { return appendSQLite(b.newDir(), lines) }); err != nil {
			return err
		}
		if err := timed("log drain", func() error {
			got, err := drain(c)
			if err == nil && got != commits*n {
				err = fmt.Errorf("%d readings of %d came back", got, commits*n)
			}
			return errors.Join(err, stop()) // with the commit that removes them
		}); err != nil {
			return err
		}
		for _, decode := range []bool{false, true} {
			what := map[bool]string{false: "plain drain", true: "plain decoded"}[decode]
			if err := timed(what, func() error { return drainPlain(plain, commits*n, decode) }); err != nil {
				return err
			}
		}
		d, err := b.drainBytes(batches)
		if err != nil {
			return err
		}
		drained = append(drained, d)
	}
	r := func(what string) float64 { return median(rate[what]) }
	ratio := func(what, to string) (float64, string) {
		var each []float64 // a round's two see the same weather
		for i := range rate[what] {
			each = append(each, rate[what][i]/rate[to][i])
		}
		return median(each), fmt.Sprintf("× (%.0f k/s, %.0f k/s)", r(what)/1000, r(to)/1000)
	}
	got, note := ratio("log", "plain")
	b.atLeast("backlog, 1,000 a commit: append, of a plain file", 0.5, got, "×", note)
	got, note = ratio("log", "sqlite")
	b.atLeast("backlog: append, of SQLite WAL FULL", 2.5, got, "×", note)
	if b.dev == nil {
		b.skip("backlog: bytes to the device", b.why)
	} else {
		b.atMost("backlog: to the device, of the JSON payload", 0.7, median(wa), "×", fmt.Sprintf("× (payload %.0f B a reading)", float64(payload)/commits/n))
		b.atMost("backlog: written while draining", 15, median(drained), "B a reading", "B (a commit every 10,000)")
	}
	got, note = ratio("log drain", "plain drain")
	b.atLeast("backlog: drain to readings, of the file's lines undecoded", 0.35, got, "×", fmt.Sprintf("%s; lines parsed as JSON: %.0f k/s)", strings.TrimSuffix(note, ")"), r("plain decoded")/1000))
	return nil
}

// drainBytes is what is written for each reading taken from a backlog by a
// broker that takes 10,000 in a window.
func (b *bench) drainBytes(batches [][]gateway.Reading) (float64, error) {
	l, c, stop, err := openLog(b.newDir(), buffer.Options{Window: 20 * time.Millisecond})
	if err != nil {
		return 0, err
	}
	n := 0
	for _, batch := range batches {
		if err := l.Put(batch...); err != nil {
			return 0, errors.Join(err, stop())
		}
		n += len(batch)
		if n%10_000 == 0 {
			if err := nextCommit(l); err != nil {
				return 0, errors.Join(err, stop())
			}
		}
	}
	before, err := b.dev.written()
	if err != nil {
		return 0, errors.Join(err, stop())
	}
	for taken := 0; taken < n; {
		rs, end, err := c.Peek(1000)
		if err != nil || len(rs) == 0 {
			return 0, errors.Join(err, fmt.Errorf("%d readings of %d came back", taken, n), stop())
		}
		c.Ack(end)
		taken += len(rs)
		if taken%10_000 == 0 {
			if err := nextCommit(l); err != nil {
				return 0, errors.Join(err, stop())
			}
		}
	}
	after, err := b.dev.written()
	return float64(after-before) / float64(n), errors.Join(err, stop())
}

// nextCommit waits for one.
func nextCommit(l *buffer.Log[gateway.Reading]) error {
	was := l.Stats().Commits
	for deadline := time.Now().Add(5 * time.Second); l.Stats().Commits == was; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return errors.New("no commit in 5 s")
		}
	}
	return nil
}

// outage: the broker is away for long, and each window brings two readings of
// three values. The files' size does not depend on the disk.
func (b *bench) outage() error {
	var a outageAnswer
	if err := rerun(&a, nil, "outage", filepath.Join(b.fast, "outage")); err != nil {
		return err
	}
	per := float64(a.Size) / float64(a.Readings)
	b.atMost("outage, 20 sensors of 3 values every 10 s: disk", 16, per, "B a reading",
		fmt.Sprintf("B (%d readings in %d commits; the second half: %.1f B)", a.Readings, a.Commits, 2*float64(a.Size-a.Half)/float64(a.Readings)))
	b.atLeast("outage: 256 MiB hold 20 such sensors", 90, (256<<20)/per/2/86400, "days", "days")
	return nil
}

type outageAnswer struct {
	Half, Size int64 // of the files after half of the time, and after all
	Readings   int
	Commits    uint64
}

// longOutage is 28 hours of made-up time.
func longOutage(dir string) (a outageAnswer, err error) {
	// A smaller log grows by smaller steps, so its size tells what a reading takes.
	l, _, stop, err := openLog(dir, buffer.Options{Window: time.Second, MaxSize: 64 << 20})
	if err != nil {
		return a, err
	}
	room := newClimate(20)
	const seconds = 100_000
	for i := range seconds {
		if i == seconds/2 {
			a.Half = l.Stats().Size
		}
		if err := l.Put(room.next(), room.next()); err != nil {
			return a, errors.Join(err, stop())
		}
		time.Sleep(time.Second)
	}
	time.Sleep(2 * time.Second)
	s := l.Stats()
	a.Size, a.Readings, a.Commits = s.Size, s.Depth, s.Commits
	if s.Depth != 2*seconds {
		err = fmt.Errorf("%d readings of %d are kept", s.Depth, 2*seconds)
	}
	return a, errors.Join(err, stop())
}

// full: a log of 256 MiB is opened from a cold disk and drained.
func (b *bench) full() error {
	made := filepath.Join(b.fast, "full")
	defer os.RemoveAll(made)
	l, _, stop, err := openLog(made, buffer.Options{})
	if err != nil {
		return err
	}
	room := newClimate(20)
	for i := range room.sensors { // not rounded: a reading takes about what the outage's bar allows
		room.sensors[i][2].decimals = 1e12
	}
	batches := make([][]gateway.Reading, 100)
	for i := range batches {
		for range 1000 {
			batches[i] = append(batches[i], room.next())
		}
	}
	const limit = 256 << 20
	for s := l.Stats(); s.Size < limit-6<<20 && len(s.Dropped) == 0; s = l.Stats() {
		for _, batch := range batches {
			if err := l.Put(batch...); err != nil {
				return errors.Join(err, stop())
			}
		}
	}
	kept := l.Stats().Depth
	if err := stop(); err != nil {
		return err
	}
	var opened, rss []float64
	var a, empty drainAnswer
	for range rounds {
		dir := filepath.Join(b.dir, "full")
		if err := os.CopyFS(dir, os.DirFS(made)); err != nil {
			return err
		}
		if err := dropCache(dir); err != nil {
			return err
		}
		if err := rerun(&a, nil, "drain", dir); err != nil {
			return err
		}
		if a.Readings != kept {
			return fmt.Errorf("%d readings of %d came back", a.Readings, kept)
		}
		opened, rss = append(opened, a.Open), append(rss, float64(a.Peak-a.Idle)/1e6)
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	if err := rerun(&empty, nil, "drain", filepath.Join(b.dir, "empty")); err != nil {
		return err
	}
	b.atMost("full log: open, cold and verified", 5, median(opened), "s", fmt.Sprintf("s (%.0f MiB, %.1f M readings)", float64(a.Size)/(1<<20), float64(kept)/1e6))
	b.atMost("full log: RSS while draining, above idle", 20, median(rss), "MB",
		fmt.Sprintf("MB (idle %.1f MB, with an empty log %.1f MB; %.0f k readings/s)", float64(a.Idle)/1e6, float64(empty.Idle)/1e6, float64(kept)/a.Drain/1000))
	return nil
}

type drainAnswer struct {
	Open, Drain      float64 // seconds
	Idle, Peak, Size int64   // bytes
	Readings         int
}

func drainChild(dir string) (a drainAnswer, err error) {
	debug.SetGCPercent(50) // as the daemon does
	start := time.Now()
	l, c, stop, err := openLog(dir, buffer.Options{Window: time.Second})
	if err != nil {
		return a, err
	}
	a.Open = time.Since(start).Seconds()
	a.Size = l.Stats().Size
	time.Sleep(200 * time.Millisecond)
	if a.Idle, err = memory("VmRSS"); err != nil {
		return a, errors.Join(err, stop())
	}
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil { // the peak begins here
		return a, errors.Join(err, stop())
	}
	start = time.Now()
	if a.Readings, err = drain(c); err != nil {
		return a, errors.Join(err, stop())
	}
	a.Drain = time.Since(start).Seconds()
	if a.Peak, err = memory("VmHWM"); err != nil {
		return a, errors.Join(err, stop())
	}
	return a, stop()
}

func free(dir string) int64 {
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		return 0
	}
	return int64(s.Bavail) * int64(s.Bsize)
}
