//go:build faults && !windows

package main

import (
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"
)

// This build goes wrong on demand, for the life-cycle test: at SIGUSR1 the main
// loop hangs, at SIGUSR2 it begins to leak 10 MiB each 100 ms.
func init() {
	go func() {
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGUSR1, syscall.SIGUSR2)
		for s := range signals {
			if s == syscall.SIGUSR1 {
				hung.Store(true)
				continue
			}
			for range time.Tick(100 * time.Millisecond) {
				b := make([]byte, 10<<20)
				for i := range b {
					b[i] = 1 // or it is not really there
				}
				leaked = append(leaked, b)
			}
		}
	}()
}

var leaked [][]byte

var hung atomic.Bool

// hang is called by the main loop each time it turns.
func hang() {
	if hung.Load() {
		select {}
	}
}
