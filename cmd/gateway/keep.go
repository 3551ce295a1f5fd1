package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"campus-gateway"
	"campus-gateway/buffer"
	"campus-gateway/live"

	"github.com/VictoriaMetrics/metrics"
)

// keeper shows a reading to the lab and puts it into the log.
type keeper struct {
	board   *live.Board
	queue   *buffer.Log[gateway.Reading]
	clock   *gateway.Clock
	log     *slog.Logger
	refused atomic.Uint64 // readings that the log did not take

	mu      sync.Mutex
	failing bool
}

// put may be called from several goroutines. That the log refuses, and takes
// again, is logged once.
func (k *keeper) put(r gateway.Reading) {
	k.board.Put(r)
	err := k.queue.Put(r)
	if errors.Is(err, buffer.ErrVolatile) {
		err = nil // it is kept; openLog's Failing tells how
	}
	if err != nil {
		k.refused.Add(1)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case err != nil && !k.failing:
		k.log.Error("readings are not kept: they are shown, but lost to the broker", "why", err)
	case err == nil && k.failing:
		k.log.Info("readings are kept again", "lost", k.refused.Load())
	}
	k.failing = err != nil
}

// committer is the log's own task.
type committer struct{ *buffer.Log[gateway.Reading] }

func (committer) String() string { return "log" }

// slowDisk is how long a commit may take, at worst: a card that tidies up, or ends
// its life.
const slowDisk = 5 * time.Minute

// Overdue is for how long the log should have looked at what waits; 0: all is well.
func (c committer) Overdue() time.Duration {
	looked := c.Looked()
	if looked.IsZero() {
		return 0
	}
	return max(0, time.Since(looked)-slowDisk)
}

// openLog opens the log and says what is wrong with it. It fails only when
// another gateway has it: without a disk it keeps readings in memory.
func openLog(c *config, clock *gateway.Clock, log *slog.Logger) (*buffer.Log[gateway.Reading], error) {
	q, err := buffer.Open(c.Log.Dir, records{clock: clock}, buffer.Options{
		Window: c.Log.Window, MaxSize: int64(c.Log.MaxSize), MinFree: int64(c.Log.MinFree),
		Full: buffer.Policy(c.Log.Full), MaxAge: c.Log.MaxAge,
		Verify: inspectApart,
		Failing: func(err error) {
			if errors.Is(err, fs.ErrPermission) {
				err = fmt.Errorf("%w: give this user the folder, or name one of its own in the configuration, `log: {dir: /home/you/gateway-log}`", err)
			}
			if err != nil {
				log.Error("readings are kept in memory only: a power cut would lose them; they move to the disk when it is well", "why", err)
			} else {
				log.Info("the disk is well: readings are on it")
			}
		},
		Damaged: func(d buffer.Damage) {
			if d.File == "" {
				log.Error("a part of the log is missing", "lost", d.Lost, "why", d.Why)
				return
			}
			log.Error("a file of the log is damaged: it is set aside, what is whole in it is delivered",
				"file", d.File, "salvaged", d.Salvaged, "lost", d.Lost, "why", d.Why)
		},
	})
	if err != nil {
		return nil, err
	}
	s := q.Stats()
	if s.Volatile != "" && s.Failing == nil && !c.temporary {
		log.Warn("the log is not durable: a power cut empties it; put it on a disk, `log: {dir: ...}`", "dir", c.Log.Dir, "on", s.Volatile)
	}
	if r, ok := q.Last(); ok {
		clock.Saw(r.At)
	}
	if s.Depth > 0 {
		log.Info("readings wait from before", "waiting", s.Depth)
	}
	return q, nil
}

// inspectApart looks at a file of the log in a process of its own, which damage
// may end: this same program (the hidden command inspect).
var inspectApart = buffer.Apart("/proc/self/exe", "inspect")

// writeMetrics writes the log's metrics.
func (k *keeper) writeMetrics(w io.Writer) {
	s := k.queue.Stats()
	metrics.WriteGaugeUint64(w, "gateway_log_waiting_readings", uint64(s.Depth))
	metrics.WriteGaugeUint64(w, "gateway_log_size_bytes", uint64(s.Size))
	metrics.WriteCounterUint64(w, "gateway_log_written_bytes_total", uint64(s.Written))
	metrics.WriteCounterUint64(w, "gateway_log_commits_total", uint64(s.Commits))
	metrics.WriteCounterUint64(w, "gateway_log_refused_readings_total", k.refused.Load())
	for _, reason := range sortedKeys(s.Dropped) {
		for _, sensor := range sortedKeys(s.Dropped[reason]) {
			metrics.WriteCounterUint64(w, fmt.Sprintf("gateway_log_dropped_readings_total{reason=%q,sensor=%q}", reason, sensor), s.Dropped[reason][sensor])
		}
	}
	metrics.WriteCounterUint64(w, "gateway_log_damaged_files_total", uint64(len(s.Damage)))
	var salvaged uint64
	for _, d := range s.Damage {
		salvaged += d.Salvaged
	}
	metrics.WriteCounterUint64(w, "gateway_log_salvaged_readings_total", salvaged)
	durable := uint64(1)
	if s.Volatile != "" || s.Failing != nil {
		durable = 0
	}
	metrics.WriteGaugeUint64(w, "gateway_log_durable", durable)
}

// volatile says in a word why a power cut would lose what the log holds.
func volatile(s buffer.Stats) string {
	switch {
	case s.Failing != nil:
		return "not durable, in memory: " + s.Failing.Error()
	case s.Volatile != "":
		return "not durable, on " + strings.TrimSpace(s.Volatile)
	}
	return "durable"
}
