package main

import (
	"fmt"
	"log/slog"
	"runtime/metrics"
	"slices"
	"time"

	"campus-gateway/systemd"
)

// manager tells the service manager how the daemon is doing, and watches over it.
// It belongs to the main loop: it is told anew only if that turns, and asks every
// part. A nil manager does nothing.
type manager struct {
	every time.Duration // default beatEvery
	most  uint64        // bytes of memory that the daemon may use
	log   *slog.Logger

	hung []string // as last told
}

const (
	// beatEvery is how often the main loop looks around. The watchdog wants to hear
	// of it within three times that, at least.
	beatEvery = 5 * time.Second

	// mostMemory is what the daemon may use: eight times what it usually does. It
	// ends itself then, with all that waits on the disk, because the memory cgroup,
	// which would end it otherwise, is off on Raspberry Pi OS.
	mostMemory = 192 << 20
)

// period is how often the main loop looks around.
func (m *manager) period() time.Duration {
	if m == nil || m.every == 0 {
		return beatEvery
	}
	return m.every
}

// ready says that the daemon senses and keeps.
func (m *manager) ready(p *parts) { m.tell(systemd.Ready, "STATUS="+p.status().Line) }

// stopping says that it is about to end.
func (m *manager) stopping() { m.tell(systemd.Stopping) }

// beat says how it is doing and, if every task turns, that it is alive. An error
// ends the daemon.
func (m *manager) beat(p *parts) error {
	if m == nil {
		return nil
	}
	s := p.status()
	if !slices.Equal(s.Hung, m.hung) {
		m.hung = s.Hung
		if len(s.Hung) > 0 {
			m.log.Error("a task does not turn any more: the watchdog will start the gateway anew", "tasks", s.Hung)
		} else {
			m.log.Info("all tasks turn again")
		}
	}
	states := []string{"STATUS=" + s.Line}
	if len(s.Hung) == 0 {
		states = append(states, systemd.Alive)
	}
	m.tell(states...)
	if used := memory(); used > m.most && systemd.Managed() {
		return fmt.Errorf("%d MiB of memory are used, more than the %d that can be right: the gateway ends, to be started anew", used>>20, m.most>>20)
	}
	return nil
}

// tell tells it. That it cannot is worth a line, no more.
func (m *manager) tell(states ...string) {
	if m == nil {
		return
	}
	if err := systemd.Notify(states...); err != nil {
		m.log.Warn("systemd is not told", "why", err)
	}
}

// memory is what the program has of the machine's, in bytes; not what of its
// files is mapped.
func memory() uint64 {
	samples := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(samples)
	return samples[0].Value.Uint64() - samples[1].Value.Uint64()
}

// overdue is for how long a task should have turned; 0: all is well, or it is
// none that turns.
func overdue(t task) time.Duration {
	if h, ok := t.(interface{ Overdue() time.Duration }); ok {
		return h.Overdue()
	}
	return 0
}
