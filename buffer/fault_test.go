//go:build linux

package buffer_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// injection is a fault at the n-th call of a kind; the runs it is repeated.
type injection struct {
	call, errno string
	more        int  // calls after the n-th that fail too
	most        int  // n goes from 1 to this, in the full run
	harmless    bool // nothing acknowledged hangs on it: Put need not tell
}

var injections = []injection{
	{"fdatasync", "EIO", 0, 200, false},
	{"fdatasync", "EIO", 3, 200, false},
	{"pwrite64", "ENOSPC", 0, 200, false},
	{"pwrite64", "ENOSPC", 3, 200, false},
	{"pwrite64", "EIO", 0, 200, false},
	{"fsync", "EIO", 0, 20, false},
	{"?ftruncate,?ftruncate64", "ENOSPC", 0, 12, false},
	{"?ftruncate,?ftruncate64", "EIO", 0, 12, false},
	{"?rename,?renameat,?renameat2", "EIO", 0, 12, false},
	{"?unlink,?unlinkat", "EIO", 0, 6, true},
}

// The writer, as it is, gets an error from the n-th call of its disk. What it
// acknowledges all the same is there afterwards; Put tells of the fault; and when
// it has passed, the log works as before, in the same process.
func TestInjectedErrors(t *testing.T) {
	needStrace(t)
	seed := seedOf(t)
	type one struct {
		injection
		n int
	}
	var all []one
	for _, in := range injections {
		most := in.most
		if !full() {
			most = min(most, share(5, 0))
		}
		for i := range most {
			n := 1 + i
			if !full() {
				n = 1 + (i*in.most/most+int(seed))%in.most
			}
			all = append(all, one{in, n})
		}
	}
	bad := &faults{}
	var mu sync.Mutex
	var struck, acked, lost, surfaced, swallowed int
	scratch := t.TempDir()
	onTwo(t, len(all), func(d *doctor, i int) {
		in := all[i]
		what := fmt.Sprintf("%s of %s %d..%d", in.errno, in.call, in.n, in.n+in.more)
		dir := filepath.Join(scratch, fmt.Sprint(i))
		s := script{logOptions: logOptions{MaxSize: 64 << 20, SegmentSize: 48 << 10}, Dir: dir, Seed: seed + uint64(i), Puts: 130, Largest: 400, Faults: true, Read: i%2 == 1}
		l, injected, err := struckBy(s, fmt.Sprintf("inject=%s:error=%s:when=%d..%d", in.call, in.errno, in.n, in.n+in.more), in.call)
		if err != nil {
			bad.add("the writer failed", "%s: %v", what, err)
			return
		}
		f, ok := d.sure(bad, what, job{logOptions: s.logOptions, Dir: dir, New: nths(l.next, l.next+2)})
		if ok {
			l.drained(unpack(f.Records, f.Count))
		}
		l.bad(bad, what)
		missing, total := l.lost(time.Now().UnixMicro())
		mu.Lock()
		defer mu.Unlock()
		acked, lost = acked+total, lost+missing
		if missing > 0 {
			bad.add("acknowledged and lost", "%s: %d, %s", what, missing, l.note)
		}
		if l.opens == 0 {
			bad.add("never opened", "%s", what)
		} else if l.last != "P" {
			bad.add("does not heal", "%s: %d Puts failed, the last too", what, l.failed)
		}
		switch {
		case len(injected) == 0:
			return // there were not so many calls
		case l.failed+l.failedOpens > 0:
			surfaced++
		case in.harmless:
			swallowed++
		default:
			swallowed++
			bad.add("error without a word to Put", "%s: %s", what, injected[0])
		}
		struck++
		_ = os.RemoveAll(dir)
	})
	t.Logf("%d of %d injected faults struck: %d of %d readings acknowledged and lost, %d of the faults told to Put or Open, %d not",
		struck, len(all), lost, acked, surfaced, swallowed)
	if struck < len(all)/2 {
		t.Errorf("only %d of %d faults struck", struck, len(all))
	}
	bad.report(t)
}

// struckBy runs a writer under a fault, and returns what it said and the calls
// that were struck.
func struckBy(s script, inject, calls string) (*ledger, []string, error) {
	w, err := s.command()
	if err != nil {
		return nil, nil, err
	}
	trace := s.Dir + ".trace"
	defer os.Remove(trace)
	cmd := exec.Command("strace", append([]string{"-f", "-y", "-s", "0", "--seccomp-bpf", "-o", trace, "-e", "trace=" + calls, "-e", inject}, w.Args...)...)
	cmd.Env = append(w.Env, "GOMAXPROCS=1")
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	timer := time.AfterFunc(6*deadline, func() { _ = cmd.Process.Kill() })
	said, err := cmd.Output()
	if !timer.Stop() {
		err = errors.New("it hung")
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %.500s", err, complaint.String())
	}
	l := &ledger{}
	l.newLife()
	for line := range strings.Lines(string(said)) {
		l.line(strings.TrimSuffix(line, "\n"), 1)
	}
	b, err := os.ReadFile(trace)
	if err != nil {
		return nil, nil, err
	}
	var injected []string
	for line := range strings.Lines(string(b)) {
		// The mark may be late, what it said before stays true; the lock's text is
		// for people.
		if strings.Contains(line, "(INJECTED)") && !strings.Contains(line, "/mark>") && !strings.Contains(line, "/lock>") {
			injected = append(injected, strings.TrimSpace(line))
		}
	}
	return l, injected, nil
}
