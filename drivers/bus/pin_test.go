package bus

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"periph.io/x/conn/v3/gpio"
)

// gpioLine behaves like a gpioioctl.GPIOLine (v3.8.5), faults included, as they
// were seen on a real kernel. Its fields are not guarded: the race detector
// sees what its users do at once.
type gpioLine struct {
	gpio.PinIn // the methods of no interest
	pull       gpio.Pull
	in         int // calls of In
	level      gpio.Level
	err        error // of In
	slow       bool  // to begin a wait
	gone       bool
	edge       gpio.Edge
	input      bool
	file       *lineFile     // gpioioctl's fEdge
	events     chan struct{} // the kernel's queue
	t          *testing.T
}

// lineFile is an os.File with a read deadline: safe for concurrent use.
type lineFile struct {
	mu       sync.Mutex
	deadline time.Time
	changed  chan struct{}
}

func (f *lineFile) set(deadline time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.deadline = deadline
	close(f.changed)
	f.changed = make(chan struct{})
}

func newLine(t *testing.T) (*gpioLine, *pin) {
	l := &gpioLine{PinIn: gpio.INVALID, events: make(chan struct{}, eventQueue), t: t}
	return l, newPin(l, line{})
}

func (l *gpioLine) Name() string { return "GPIO17" }
func (l *gpioLine) Number() int  { return 17 }

func (l *gpioLine) Pull() gpio.Pull { return l.pull }

func (l *gpioLine) In(pull gpio.Pull, edge gpio.Edge) error {
	l.in++
	l.pull = pull
	l.input, l.edge = true, edge
	return l.err
}

func (l *gpioLine) Read() gpio.Level {
	if !l.input {
		l.t.Error("Read makes an input with a pull-up of the line")
	}
	return l.level
}

func (l *gpioLine) Halt() error {
	if l.file != nil {
		l.file.set(time.UnixMilli(0))
	}
	return nil
}

func (l *gpioLine) Close() { l.input, l.edge, l.file = false, gpio.NoEdge, nil }

func (l *gpioLine) WaitForEdge(timeout time.Duration) bool {
	if l.edge == gpio.NoEdge {
		l.t.Error("logs that the line is not set up for edges")
		return false
	}
	if l.file == nil {
		l.file = &lineFile{changed: make(chan struct{})}
	}
	f := l.file
	if l.gone {
		return false
	}
	if l.slow {
		time.Sleep(2 * time.Nanosecond)
	}
	if timeout == 0 {
		timeout = 1000 * time.Hour // for ever
	}
	f.set(time.Now().Add(timeout))
	for {
		f.mu.Lock()
		left, changed := time.Until(f.deadline), f.changed
		f.mu.Unlock()
		if left <= 0 {
			return false // even if there is an edge, as with a file
		}
		select {
		case <-l.events:
			return true
		case <-time.After(left):
		case <-changed:
		}
	}
}

// after is how long f takes.
func after(f func()) time.Duration {
	begun := time.Now()
	f()
	return time.Since(begun)
}

func TestPinWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, p := newLine(t)
		if p.WaitForEdge(-1) || p.Read() == gpio.High || p.WaitForEdge(time.Hour) {
			t.Error("a line that was not set up")
		}
		l.events <- struct{}{} // from before
		l.level = gpio.High
		if err := p.In(gpio.PullUp, gpio.BothEdges); err != nil || p.Read() != gpio.High {
			t.Fatal(err)
		}
		for _, timeout := range []time.Duration{0, 10 * time.Millisecond, 3 * time.Second} {
			var edge bool
			if took := after(func() { edge = p.WaitForEdge(timeout) }); edge || took < timeout || took > timeout+waitLeast {
				t.Errorf("a quiet line, %v: %v after %v", timeout, edge, took)
			}
			l.events <- struct{}{}
			if took := after(func() { edge = p.WaitForEdge(timeout) }); !edge || took > 0 {
				t.Errorf("an edge that is there, %v: %v after %v", timeout, edge, took)
			}
			time.AfterFunc(timeout/2, func() { l.events <- struct{}{} })
			if took := after(func() { edge = p.WaitForEdge(timeout) }); !edge || took > timeout/2 {
				t.Errorf("an edge that comes, %v: %v after %v", timeout, edge, took)
			}
		}
		time.AfterFunc(time.Hour, func() { l.events <- struct{}{} })
		if took := after(func() {
			if !p.WaitForEdge(-1) {
				t.Error("no edge")
			}
		}); took != time.Hour {
			t.Errorf("without a timeout: after %v", took)
		}
		l.gone = true
		if took := after(func() { p.WaitForEdge(time.Hour); p.WaitForEdge(-1) }); took > 0 {
			t.Errorf("waited %v on a line that is gone", took)
		}
		l.gone = false
		if err := p.Halt(); err != nil || l.input || p.WaitForEdge(-1) || p.Read() == gpio.High {
			t.Errorf("after Halt: %v, %v", err, l.input)
		}
	})
}

// Halt and In end the waits there are, whenever they come, and the line can be
// read meanwhile.
func TestPinInterrupt(t *testing.T) {
	interrupts := map[string]func(*pin) error{
		"Halt": (*pin).Halt,
		"In":   func(p *pin) error { return p.In(gpio.PullUp, gpio.BothEdges) },
	}
	for name, interrupt := range interrupts {
		for _, at := range []time.Duration{0, 1, time.Millisecond, time.Hour} {
			synctest.Test(t, func(t *testing.T) {
				l, p := newLine(t)
				if err := p.In(gpio.PullUp, gpio.BothEdges); err != nil {
					t.Fatal(err)
				}
				l.slow = at == 1 // still about to begin when it is halted
				done := make(chan struct{})
				go func() {
					defer close(done)
					if took := after(func() {
						if p.WaitForEdge(-1) {
							t.Errorf("%s: an edge", name)
						}
					}); took < at || took > at+haltAgain {
						t.Errorf("%s after %v: the wait ended after %v", name, at, took)
					}
				}()
				synctest.Wait()
				if took := after(func() {
					p.Read()
					if p.WaitForEdge(-1) {
						t.Error("an edge to somebody else")
					}
				}); took > 0 {
					t.Errorf("a second use waited %v", took)
				}
				time.Sleep(at)
				if err := interrupt(p); err != nil {
					t.Error(err)
				}
				<-done
			})
		}
	}
}

// Nothing that its users do at once reaches the line at once that may not: for
// the race detector.
func TestPinConcurrently(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, p := newLine(t)
		var wg sync.WaitGroup
		for _, f := range []func(){
			func() { p.In(gpio.PullUp, gpio.BothEdges) },
			func() { p.In(gpio.PullDown, gpio.NoEdge) },
			func() { p.Halt() },
			func() { p.WaitForEdge(700 * time.Microsecond) },
			func() { p.WaitForEdge(10 * time.Millisecond) },
			func() { p.Read(); p.Pull() },
			func() {
				select {
				case l.events <- struct{}{}:
				default:
				}
			},
		} {
			wg.Go(func() {
				for range 200 {
					f()
					time.Sleep(time.Millisecond)
				}
			})
		}
		wg.Wait()
	})
}

func TestPinReadsWhileSetUp(t *testing.T) {
	_, p := newLine(t)
	var wg sync.WaitGroup
	for _, f := range []func(){
		func() { p.In(gpio.PullUp, gpio.NoEdge) },
		func() { p.Halt() },
		func() { p.Read() },
		func() { p.Pull() },
	} {
		wg.Go(func() {
			for range 200 {
				f()
			}
		})
	}
	wg.Wait()
}

func TestPinFails(t *testing.T) {
	l, p := newLine(t)
	l.err = errors.New("line_request ioctl: device or resource busy")
	err := p.In(gpio.PullUp, gpio.BothEdges)
	if !errors.Is(err, l.err) || !strings.HasPrefix(err.Error(), "another program uses the line: ") {
		t.Errorf("%v", err)
	}
	if l.input || p.WaitForEdge(time.Hour) || p.Read() == gpio.High {
		t.Error("a line that could not be set up is used")
	}
	if p.String() != "GPIO17" || p.Name() != "GPIO17" || p.Number() != 17 || l.in != 1 {
		t.Errorf("%v %v %v", p, p.Name(), p.Number())
	}
}
