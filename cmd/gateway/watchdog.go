package main

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/metrics"
	"slices"
	"time"

	"campus-gateway/systemd"
)

// notifier tells the service manager that the daemon lives, and ends it when it must
// be started anew. It belongs to the main loop, and waits for no part of the daemon: a
// part that is stuck must be told, not shared. A nil notifier does nothing.
type notifier struct {
	every time.Duration // default beatEvery
	most  uint64        // bytes of memory that the daemon may use
	log   *slog.Logger

	hung []string // as last told
	deaf bool     // the service manager could not be told, and that has been said
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
func (n *notifier) period() time.Duration {
	if n == nil || n.every == 0 {
		return beatEvery
	}
	return n.every
}

// ready says that the daemon senses and keeps.
func (n *notifier) ready() { n.tell(systemd.Ready) }

// stopping says that it is about to end.
func (n *notifier) stopping() { n.tell(systemd.Stopping) }

// beat says that the daemon is alive, if every task turns. An error ends the daemon.
func (n *notifier) beat(hung []string) error {
	if n == nil {
		return nil
	}
	if !slices.Equal(hung, n.hung) {
		n.hung = hung
		if len(hung) > 0 {
			n.log.Error("a task does not turn any more: the watchdog will start the gateway anew", "tasks", hung)
		} else {
			n.log.Info("all tasks turn again")
		}
	}
	if len(hung) == 0 {
		n.tell(systemd.Alive)
	}
	if used := memory(); used > n.most && systemd.Managed() {
		return fmt.Errorf("%d MiB of memory are used, more than the %d that can be right: the gateway ends, to be started anew", used>>20, n.most>>20)
	}
	return nil
}

// tell tells it. That it cannot is worth one line.
func (n *notifier) tell(states ...string) {
	if n == nil {
		return
	}
	err := systemd.Notify(states...)
	if err != nil && !n.deaf {
		n.log.Warn("systemd is not told", "why", err)
	}
	n.deaf = err != nil
}

// announcer is the task that tells the service manager how the daemon is doing, in a
// line. It asks every part for that, and waits for who is busy: the watchdog does not
// depend on it.
type announcer struct {
	*parts
	every time.Duration
}

func (announcer) String() string { return "status line" }

func (a announcer) Run(ctx context.Context) error {
	t := time.NewTicker(a.every)
	defer t.Stop()
	for said := ""; ; {
		if line := a.status().Line; line != said {
			said = line
			_ = systemd.Notify("STATUS=" + line) // the notifier says that it cannot
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
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

// hung names the tasks that do not turn any more. It waits for none of them.
func (p *parts) hung() (names []string) {
	if overdue(committer{p.queue}) > 0 {
		names = append(names, "log")
	}
	if plan := p.plan.Load(); plan != nil {
		for _, t := range plan.tasks() {
			if overdue(t) > 0 {
				names = append(names, t.String())
			}
		}
	}
	return names
}
