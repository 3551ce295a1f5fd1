package buffer

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"
)

// child puts numbered records with a window of 0 until it is killed, and prints
// each number once Put has returned.
func child() {
	l, err := Open(os.Getenv("BUFFER_TEST_CHILD"), words{}, Options{SegmentSize: 1 << 20, MaxSize: 64 << 20})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	from, err := strconv.Atoi(os.Getenv("BUFFER_TEST_FROM"))
	if err != nil {
		os.Exit(1)
	}
	for i := from; ; i++ {
		if err := l.Put(fmt.Sprintf("record %d", i)); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(i)
	}
}

// The ledger of what was acknowledged is kept here, outside the process that is
// killed: all of it is in the log afterwards, in order, once.
func TestKill9(t *testing.T) {
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(9, uint64(time.Now().UnixNano())))
	acked, next, delivered := -1, 0, 0
	for cycle := range 25 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "BUFFER_TEST_CHILD="+dir, fmt.Sprint("BUFFER_TEST_FROM=", next))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		killed := time.AfterFunc(time.Duration(20+rng.IntN(60))*time.Millisecond, func() { _ = cmd.Process.Kill() })
		for lines := bufio.NewScanner(out); lines.Scan(); {
			n, err := strconv.Atoi(lines.Text())
			if err != nil {
				t.Fatalf("cycle %d: the child says: %s", cycle, lines.Text())
			}
			acked = n
		}
		_ = cmd.Wait()
		killed.Stop()

		l, c := open(t, dir, Options{SegmentSize: 1 << 20, MaxSize: 64 << 20})
		got := drain(t, c, 333)
		for i, r := range got {
			if r != fmt.Sprintf("record %d", delivered+i) {
				t.Fatalf("cycle %d: record %d is %q", cycle, delivered+i, r)
			}
		}
		delivered += len(got)
		if delivered <= acked {
			t.Fatalf("cycle %d: acknowledged up to %d, delivered only %d", cycle, acked, delivered)
		}
		next = delivered // the last may have been durable but not yet acknowledged
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("25 kills, %d records acknowledged, none lost, none twice", acked+1)
	if acked < 100 {
		t.Errorf("only %d records: the kills came too early to prove anything", acked+1)
	}
}
