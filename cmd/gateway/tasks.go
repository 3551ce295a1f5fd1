package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"

	"campus-gateway"
	"campus-gateway/buffer"
	"campus-gateway/drivers"
	"campus-gateway/live"
	"campus-gateway/ngsi"

	"github.com/VictoriaMetrics/metrics"
)

// task is one thing the daemon does until it is told to stop. Run returns nil
// when ctx ends; an error ends the daemon.
type task interface {
	Run(ctx context.Context) error
	String() string
}

// group is tasks that are stopped together.
type group struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
	failed chan error // the first error of a task
}

// start runs tasks until stop. It and the bus's workers are the only ones that say go.
func start(tasks ...task) *group {
	ctx, cancel := context.WithCancel(context.Background())
	g := &group{cancel: cancel, failed: make(chan error, len(tasks))}
	for _, t := range tasks {
		g.wg.Go(func() {
			if err := t.Run(ctx); err != nil {
				g.failed <- fmt.Errorf("%s: %w", t, err)
			}
		})
	}
	return g
}

// stop ends the tasks and waits for them.
func (g *group) stop() {
	g.cancel()
	g.wg.Wait()
}

// plan is what a configuration becomes before anything of it runs. A stage is
// stopped, and waited for, before the one it feeds.
type plan struct {
	sensing []task // the sensors, and who shows them
	uplinks []task // the forwarders
	view    *live.Server
	close   func() // lets go of what the tasks have used
}

// parts are what stays while configurations come and go.
type parts struct {
	log    *slog.Logger
	clock  *gateway.Clock
	opener *drivers.Opener
	queue  *buffer.Log[gateway.Reading]
	board  *live.Board
	keep   *keeper

	trust   bool      // the machine's clock, as it is
	printTo io.Writer // where a dry run shows what it does not send; else nil
}

// buildTasks turns a configuration into tasks. It opens nothing.
func buildTasks(c *config, p *parts) (*plan, error) {
	broker, err := newSink(c, p.clock, p.log)
	if err != nil {
		return nil, err
	}
	var sink gateway.Sink = broker
	if p.printTo != nil {
		sink = &printer{sink: broker, out: p.printTo}
	}
	cursor, err := p.queue.Cursor("broker")
	if err != nil {
		return nil, err
	}
	p.follow(c, broker)
	forwarder := &gateway.Forwarder{Queue: cursor, Sink: sink, Dater: p.clock, Log: p.log}
	plan := &plan{uplinks: []task{p.clock, forwarder}, close: broker.Close}
	var lines []live.Sensor
	for i := range c.Sensors {
		s := &c.Sensors[i]
		lines = append(lines, live.Sensor{Name: s.Name, Driver: s.Driver})
		plan.sensing = append(plan.sensing, &gateway.Poller{
			Name:  s.Name,
			Every: s.Interval,
			Open: func(ctx context.Context) (gateway.Resource, error) {
				return p.opener.Open(ctx, s.driver, s.place(), s.options)
			},
			Stamp: p.clock.Stamp,
			Put:   p.keep.put,
			State: p.board.SetState,
			Log:   p.log,
		})
	}
	p.board.Reset(lines)
	if listen := c.Live.HTTP.Listen; listen != "off" {
		plan.view = &live.Server{
			Listen: listen, Gateway: c.Gateway.ID, Board: p.board, Clock: p.clock, Log: p.log,
			Metrics: func(w io.Writer) {
				writeMetrics(w, p.queue.Stats(), forwarder.Stats(), p.keep.refused.Load())
				writeClock(w, p.clock)
			},
		}
		plan.sensing = append(plan.sensing, plan.view)
	}
	return plan, nil
}

// newSink is the configured broker.
func newSink(c *config, clock *gateway.Clock, log *slog.Logger) (*ngsi.Sink, error) {
	m := newMapper(c)
	tls, err := ngsi.TLS(c.Broker.CAFile)
	if err != nil {
		return nil, err
	}
	tls.Time = clock.Now // with the machine's clock in the past, no certificate would be valid yet
	var token func() (string, error)
	if c.Broker.Auth != (authConfig{Header: c.Broker.Auth.Header}) {
		token = c.Broker.Auth.token
	}
	return ngsi.New(ngsi.Config{
		URL: c.Broker.URL, API: c.Broker.API,
		Service: c.Broker.Service, ServicePath: c.Broker.ServicePath, Tenant: c.Broker.Tenant,
		Token: token, AuthHeader: c.Broker.Auth.Header,
		TLS: tls, Timeout: c.Broker.Timeout,
		Warn: func(err error) {
			log.Warn("the description of a sensor is not at the broker; its readings are not affected", "why", err)
		},
	}, m)
}

func newMapper(c *config) *ngsi.Mapper {
	var things []ngsi.Thing
	for i := range c.Sensors {
		things = append(things, c.Sensors[i].thing(c))
	}
	return ngsi.NewMapper(c.Gateway.ID, things)
}

// keeper shows a reading to the lab and puts it into the log.
type keeper struct {
	board   *live.Board
	queue   *buffer.Log[gateway.Reading]
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

// writeMetrics writes the log's and the uplink's metrics.
func writeMetrics(w io.Writer, b buffer.Stats, f gateway.ForwarderStats, refused uint64) {
	metrics.WriteGaugeUint64(w, "gateway_log_waiting_readings", uint64(b.Depth))
	metrics.WriteGaugeUint64(w, "gateway_log_size_bytes", uint64(b.Size))
	metrics.WriteCounterUint64(w, "gateway_log_written_bytes_total", uint64(b.Written))
	metrics.WriteCounterUint64(w, "gateway_log_refused_readings_total", refused)
	for reason, n := range b.Dropped {
		metrics.WriteCounterUint64(w, fmt.Sprintf("gateway_log_dropped_readings_total{reason=%q}", reason), n)
	}
	metrics.WriteCounterUint64(w, "gateway_uplink_sent_readings_total", f.Sent)
	metrics.WriteCounterUint64(w, "gateway_uplink_rejected_readings_total", f.Rejected)
	metrics.WriteCounterUint64(w, "gateway_uplink_failures_total", f.Failures)
	up := uint64(0)
	if f.Down.IsZero() {
		up = 1
	}
	metrics.WriteGaugeUint64(w, "gateway_uplink_up", up)
	if !f.Last.IsZero() {
		metrics.WriteGaugeUint64(w, "gateway_uplink_last_success_timestamp_seconds", uint64(f.Last.Unix()))
	}
}

// committer is the log's own task.
type committer struct{ *buffer.Log[gateway.Reading] }

func (committer) String() string { return "log" }

// openLog opens the log and says what was wrong with it.
func openLog(c *config, log *slog.Logger) (*buffer.Log[gateway.Reading], error) {
	q, err := buffer.Open(c.Log.Dir, gateway.Codec{}, buffer.Options{
		Window: c.Log.Window, MaxSize: int64(c.Log.MaxSize),
		Failing: func(err error) {
			if err != nil {
				log.Error("the disk fails: readings wait in memory, and a power cut would lose them", "why", err)
			} else {
				log.Info("the disk is well again: readings are on it")
			}
		},
	})
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("%w: give this user the folder, or name one of its own in the configuration, `log: {dir: /home/you/gateway-log}`", err)
	}
	if err != nil {
		return nil, err
	}
	s := q.Stats()
	for _, file := range s.SetAside {
		log.Error("a damaged file of the log was set aside: what it held is not delivered", "file", file)
	}
	if n := s.Dropped["damaged"]; n > 0 {
		log.Error("a part of the log is damaged and was passed over", "readings", n)
	}
	if s.Depth > 0 {
		log.Info("readings wait from before", "waiting", s.Depth)
	}
	return q, nil
}

// serve runs configurations, one after the other, until ctx ends. next gives
// the next one. ready is called whenever a configuration has begun, stopping
// once at the end.
func serve(ctx context.Context, c *config, p *parts, next <-chan *config, ready func(*config), stopping func()) error {
	committing := start(committer{p.queue})
	defer committing.stop()
	for c != nil {
		plan, err := buildTasks(c, p)
		if err != nil {
			return err
		}
		uplinks := start(plan.uplinks...)
		sensing := start(plan.sensing...)
		if plan.view != nil {
			plan.view.SetReady(true)
		}
		ready(c)
		c = nil
		select {
		case <-ctx.Done():
		case c = <-next:
		case err = <-sensing.failed:
		case err = <-uplinks.failed:
		case err = <-committing.failed:
		}
		if plan.view != nil {
			plan.view.SetReady(false)
		}
		if c == nil {
			stopping()
		}
		// Each stage is stopped before the one it feeds: no reading is left between.
		sensing.stop()
		uplinks.stop()
		plan.close()
		if err != nil {
			return err
		}
	}
	return nil
}
