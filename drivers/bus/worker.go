package bus

import (
	"errors"
	"fmt"
	"sync"
	"time"
)

// ErrHung is a transaction that the kernel has not ended in time, or one that
// was not begun because an earlier one still hangs.
var ErrHung = errors.New("bus hung")

var errClosed = errors.New("bus closed")

// worker is the one goroutine that talks to a bus. The deadline is kept outside
// of the call, which nothing can interrupt: a caller leaves at its deadline, the
// worker stays until the kernel lets go. Meanwhile every other caller is refused
// at once; then the worker goes on by itself. Who waits for a turn behind slow
// transactions leaves at the deadline too.
//
// It and run's tasks are the only ones of the program that say go; Close ends it.
type worker struct {
	do       func(addr uint16, w, r []byte) error
	deadline time.Duration // of waiting for a turn, and again of the transaction
	jobs     chan *job
	closing  chan struct{}
	closed   sync.Once
	done     chan struct{} // the goroutine has ended

	mu    sync.Mutex
	hung  chan struct{} // closed while a transaction hangs
	since time.Time     // when that one began
}

// job is one transaction. Its buffers belong to the worker until result has been
// received from, and for good if it never is: a caller that leaves at its
// deadline shares no memory with the kernel.
type job struct {
	addr   uint16
	w, r   []byte
	result chan error // of capacity 1
	ended  bool       // guarded by worker.mu
}

// startWorker starts the goroutine. When it ends it calls release.
func startWorker(deadline time.Duration, do func(addr uint16, w, r []byte) error, release func()) *worker {
	w := &worker{
		do: do, deadline: deadline,
		jobs: make(chan *job), closing: make(chan struct{}), done: make(chan struct{}), hung: make(chan struct{}),
	}
	go func() {
		defer close(w.done)
		defer release()
		for {
			select {
			case j := <-w.jobs:
				err := w.do(j.addr, j.w, j.r)
				w.end(j)
				j.result <- err
			case <-w.closing:
				return
			}
		}
	}()
	return w
}

// tx does one transaction. in is written to by this goroutine only, and only
// after success.
func (w *worker) tx(addr uint16, out, in []byte) error {
	j := &job{addr: addr, w: append([]byte(nil), out...), r: make([]byte, len(in)), result: make(chan error, 1)}
	w.mu.Lock()
	hung := w.hung
	w.mu.Unlock()
	if w.isClosed() {
		return errClosed
	}
	t := time.NewTimer(w.deadline)
	defer t.Stop()
	select {
	case w.jobs <- j:
	case <-t.C:
		return fmt.Errorf("bus busy: no turn in %v", w.deadline)
	case <-hung:
		w.mu.Lock()
		since := w.since
		w.mu.Unlock()
		return fmt.Errorf("%w for %v: a transaction has not ended", ErrHung, time.Since(since).Round(time.Second))
	case <-w.closing:
		return errClosed
	}
	begun := time.Now()
	t.Reset(w.deadline)
	var err error
	select {
	case err = <-j.result:
	case <-t.C:
		if w.hang(j, begun) {
			return fmt.Errorf("%w: no answer in %v", ErrHung, w.deadline)
		}
		err = <-j.result // it has ended just now
	}
	if err == nil {
		copy(in, j.r)
	}
	return err
}

// hang says that a job hangs, unless it has ended meanwhile.
func (w *worker) hang(j *job, begun time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if j.ended {
		return false
	}
	w.since = begun
	close(w.hung)
	return true
}

// end says that the worker is free again.
func (w *worker) end(j *job) {
	w.mu.Lock()
	defer w.mu.Unlock()
	j.ended = true
	select {
	case <-w.hung:
		w.hung = make(chan struct{})
	default:
	}
}

// close ends the worker, at once or when the transaction that hangs has ended.
func (w *worker) close() { w.closed.Do(func() { close(w.closing) }) }

func (w *worker) isClosed() bool {
	select {
	case <-w.closing:
		return true
	default:
		return false
	}
}
