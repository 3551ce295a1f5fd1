package main

import (
	"context"
	"io"
	"os"
	"strings"
	"time"

	"github.com/kardianos/service"
)

// managed runs the program, and speaks with the service manager if that has
// started it.
func managed(ctx context.Context, execute func(context.Context, io.Writer) int) int {
	if service.Interactive() {
		return execute(ctx, os.Stderr)
	}
	ctx, cancel := context.WithCancel(ctx)
	p := &managedProgram{ctx: ctx, cancel: cancel, ended: make(chan struct{})}
	s, err := service.New(p, &service.Config{Name: serviceName})
	if err != nil {
		return exitFailure
	}
	stderr := io.Discard
	if l, err := s.SystemLogger(nil); err == nil {
		stderr = eventLog{l}
	}
	p.run = func() int { return execute(ctx, stderr) }
	if s.Run() != nil {
		return exitFailure
	}
	return 0
}

// managedProgram is a program that the service manager starts and stops.
type managedProgram struct {
	ctx    context.Context
	cancel context.CancelFunc
	run    func() int
	ended  chan struct{}
}

// Start returns at once: until then the manager waits.
func (p *managedProgram) Start(service.Service) error {
	go func() {
		status := p.run()
		if p.ctx.Err() == nil { // by itself: to the manager a failure, and it starts us again
			os.Exit(status)
		}
		close(p.ended)
	}()
	return nil
}

// Stop waits for the log to be closed.
func (p *managedProgram) Stop(service.Service) error {
	p.cancel()
	select {
	case <-p.ended:
	case <-time.After(15 * time.Second): // the manager waits for 20 s
	}
	return nil
}

// eventLog is Windows' event log, an event a line.
type eventLog struct{ service.Logger }

func (l eventLog) Write(b []byte) (int, error) { return len(b), l.Info(strings.TrimSpace(string(b))) }
