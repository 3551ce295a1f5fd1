//go:build hil

// Package hil tests the gateway on virtual ARM boards: a real Linux kernel with
// real I2C and GPIO, and models of chips that were not made by this project.
package hil

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Bounds, generous for a busy machine: an idle one needs a tenth.
const (
	prepareAndBoot = 5 * time.Minute  // with the downloads of a first run
	patience       = 60 * time.Second // for what should happen at once
)

// board is a virtual board that runs: a shell on its serial line, and QEMU's
// control sockets. For one goroutine.
type board struct {
	t        *testing.T
	commands int
	in       io.Writer
	lines    chan string // what the serial line says; closed when the board is off
	up       time.Time   // when it said so
	kernel   float64     // seconds since the kernel's start, then
	qmp      net.Conn    // QEMU's machine protocol: the chips' values
	replies  *json.Decoder
	qtest    net.Conn // QEMU's test protocol: input lines
	answers  *bufio.Reader
}

var kernelClock = regexp.MustCompile(`kernel clock ([0-9.]+) s`)

// boot starts a board with files in its /hil. Where that cannot be had the test
// is skipped, or with HIL_REQUIRED set, failed.
func boot(t *testing.T, name string, files ...string) *board {
	t.Helper()
	begun := time.Now()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, "./board.sh", append([]string{name}, files...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // it becomes QEMU, which must not outlive the test
	cmd.WaitDelay = 5 * time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b := &board{t: t, in: in, lines: make(chan string, 100)}
	go func() {
		defer close(b.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			b.lines <- strings.TrimRight(s.Text(), "\r")
		}
	}()
	t.Cleanup(func() {
		cancel()
		for range b.lines {
		}
		_ = cmd.Wait() // killed
	})
	up, err := b.until("board is up", prepareAndBoot)
	b.up = time.Now()
	if err != nil {
		cancel()
		exit := cmd.Wait()
		if e := (*exec.ExitError)(nil); errors.As(exit, &e) && e.ExitCode() == 77 {
			why := stderr.String()
			why = why[strings.LastIndex(strings.TrimRight(why, "\n"), "\n")+1:]
			if os.Getenv("HIL_REQUIRED") == "" {
				fmt.Printf("SKIPPED: hil: %s: %s", name, strings.TrimPrefix(why, "hil: "))
				t.SkipNow()
			}
		}
		t.Fatalf("boot: %v (%v)\n%s", err, exit, stderr.String())
	}
	if clock := kernelClock.FindStringSubmatch(up); clock != nil {
		b.kernel, _ = strconv.ParseFloat(clock[1], 64)
	}
	work := filepath.Join("..", "build", "hil", name)
	b.qmp, b.qtest = dial(t, filepath.Join(work, "qmp.sock")), dial(t, filepath.Join(work, "qtest.sock"))
	b.replies, b.answers = json.NewDecoder(b.qmp), bufio.NewReader(b.qtest)
	var greeting any
	if err := b.replies.Decode(&greeting); err != nil {
		t.Fatalf("qmp: %v", err)
	}
	b.execute("qmp_capabilities", map[string]any{})
	t.Logf("%s is up after %.1f s", name, time.Since(begun).Seconds())
	return b
}

func dial(t *testing.T, socket string) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

var kernelLine = regexp.MustCompile(`^\[ *\d+\.\d+\] `)

// until reads the serial line up to a line that has mark in it, and returns
// what came before.
func (b *board) until(mark string, limit time.Duration) (string, error) {
	var before strings.Builder
	timeout := time.After(limit)
	for {
		select {
		case line, on := <-b.lines:
			if !on {
				return before.String(), fmt.Errorf("the board went off before it said %q", mark)
			}
			if strings.Contains(line, mark) {
				return before.String() + line, nil
			}
			if !kernelLine.MatchString(line) { // emergencies come whatever the level
				before.WriteString(line + "\n")
			}
		case <-timeout:
			return before.String(), fmt.Errorf("the board did not say %q within %v", mark, limit)
		}
	}
}

// try runs a shell command on the board: its output, and whether it succeeded.
func (b *board) try(command string) (output string, ok bool) {
	b.t.Helper()
	b.commands++
	mark := fmt.Sprintf("=== %d ", b.commands)
	fmt.Fprintf(b.in, "{ %s; } 2>&1; printf '\\n=== %%d %%d\\n' %d $?\n", command, b.commands)
	output, err := b.until(mark, patience)
	if err != nil {
		b.t.Fatalf("%s: %v; so far:\n%s", command, err, output)
	}
	output, status, _ := strings.Cut(output, mark)
	return strings.TrimSpace(output), status == "0"
}

// sh runs a shell command that must succeed.
func (b *board) sh(command string) string {
	b.t.Helper()
	output, ok := b.try(command)
	if !ok {
		b.t.Fatalf("%s: failed:\n%s", command, output)
	}
	return output
}

// execute runs a command of QEMU's machine protocol.
func (b *board) execute(command string, arguments map[string]any) {
	b.t.Helper()
	_ = b.qmp.SetDeadline(time.Now().Add(patience))
	if err := json.NewEncoder(b.qmp).Encode(map[string]any{"execute": command, "arguments": arguments}); err != nil {
		b.t.Fatalf("qmp %s: %v", command, err)
	}
	for {
		var reply struct {
			Return json.RawMessage
			Error  *struct{ Desc string }
		}
		err := b.replies.Decode(&reply)
		if err == nil && reply.Error != nil {
			err = errors.New(reply.Error.Desc)
		}
		if err != nil {
			b.t.Fatalf("qmp %s: %v", command, err)
		}
		if reply.Return != nil {
			return // what came before were events
		}
	}
}

// heat sets the temperature of a chip, by its id in board.sh.
func (b *board) heat(chip string, celsius float64) {
	b.t.Helper()
	b.execute("qom-set", map[string]any{
		"path": "/machine/peripheral/" + chip, "property": "temperature", "value": int(math.Round(celsius * 1000))})
}

// drive sets the level of a GPIO input of the sabrelite (GPIO4 is line 4 of its
// controller gpio5).
func (b *board) drive(line int, high bool) {
	b.t.Helper()
	level := 0
	if high {
		level = 1
	}
	_ = b.qtest.SetDeadline(time.Now().Add(patience))
	fmt.Fprintf(b.qtest, "set_irq_in /machine/soc/gpio5 unnamed-gpio-in %d %d\n", line, level)
	if answer, err := b.answers.ReadString('\n'); err != nil || !strings.HasPrefix(answer, "OK") {
		b.t.Fatalf("qtest: line %d: %q, %v", line, answer, err)
	}
}
