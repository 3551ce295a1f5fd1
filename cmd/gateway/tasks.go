package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"

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
	broker, err := newSink(c, p.clock, p.log, thisMachine())
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
			Listen: listen, Gateway: c.Gateway.ID, Board: p.board, Clock: p.clock, Log: p.log, Contexts: ngsi.Contexts(),
			Metrics: func(w io.Writer) {
				p.keep.writeMetrics(w)
				writeMetrics(w, forwarder.Stats())
				writeClock(w, p.clock)
			},
		}
		plan.sensing = append(plan.sensing, plan.view)
	}
	return plan, nil
}

// newSink is the configured broker, told of readings taken on that machine.
func newSink(c *config, clock *gateway.Clock, log *slog.Logger, on ngsi.Host) (*ngsi.Sink, error) {
	m := newMapper(c).On(on)
	warn := func(text string) func(error) { return func(err error) { log.Warn(text, "why", err) } }
	// The gateway's clock: with the machine's in the past, no certificate would be valid yet.
	tls, err := c.Broker.TLS.client(clock.Now, warn("certificates"))
	if err != nil {
		return nil, err
	}
	auth, err := c.Broker.Auth.owner(c.Log.Dir, "broker", tls, warn("the broker's token"))
	if err != nil {
		return nil, err
	}
	return ngsi.New(ngsi.Config{
		URL: c.Broker.URL, API: c.Broker.API,
		Service: c.Broker.Service, ServicePath: c.Broker.ServicePath, Tenant: c.Broker.Tenant,
		Auth: auth, AuthHeader: c.Broker.Auth.Header,
		Contexts: c.Contexts.urls(),
		TLS:      tls, Timeout: c.Broker.Timeout,
		Warn: warn("the description of a sensor is not at the broker; its readings are not affected"),
	}, m)
}

func newMapper(c *config) *ngsi.Mapper {
	var things []ngsi.Thing
	for i := range c.Sensors {
		things = append(things, c.Sensors[i].thing(c))
	}
	return ngsi.NewMapper(c.Gateway.ID, things)
}

// writeMetrics writes the uplink's metrics.
func writeMetrics(w io.Writer, f gateway.ForwarderStats) {
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

// serve runs configurations, one after the other, until ctx ends. next gives
// the next one. ready is called whenever a configuration has begun, stopping
// once at the end.
func serve(ctx context.Context, c *config, p *parts, next <-chan *config, ready func(*config), stopping func()) error {
	committing := start(committer{p.queue}, &control{keep: p.keep, dir: c.Log.Dir, log: p.log})
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
