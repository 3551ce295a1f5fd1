package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"campus-gateway"
	"campus-gateway/buffer"
	"campus-gateway/drivers"
	"campus-gateway/live"
	"campus-gateway/ngsi"
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

// start runs tasks until stop. Of what the daemon does, it and the bus's workers are the
// only ones that say go.
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
	gateway string // id
	sensing []task // the sensors, and who shows them
	uplinks []task // the forwarders, and the clock they date by
	view    *live.Server

	forwarding []*uplink
	absent     []absentUplink

	close func() // lets go of what the tasks have used
}

// absentUplink waits for a file that it needs.
type absentUplink struct {
	name, to, why string
	queue         gateway.Queue // its place in the log
	since         time.Time
}

// shown is how the uplinks are doing. It may be called from any goroutine once the
// plan is made.
func (p *plan) shown() (list []live.Uplink) {
	for _, u := range p.absent {
		list = append(list, live.Uplink{Name: u.name, To: u.to, Waiting: u.queue.Depth(), Down: u.since, Why: u.why})
	}
	for _, u := range p.forwarding {
		list = append(list, u.live())
	}
	return list
}

func (p *plan) tasks() []task { return slices.Concat(p.sensing, p.uplinks) }

// parts are what stays while configurations come and go.
type parts struct {
	log    *slog.Logger
	clock  *gateway.Clock
	opener *drivers.Opener
	queue  *buffer.Log[gateway.Reading]
	board  *live.Board
	keep   *keeper
	tuned  *tunings

	began   time.Time
	file    string                 // of the configuration
	refused atomic.Pointer[string] // why what stands there now does not run; nil: it does
	plan    atomic.Pointer[plan]   // that runs; nil: none
	notify  *notifier              // nil: nobody is told how it goes

	trust   bool      // the machine's clock, as it is
	printTo io.Writer // where a dry run shows what it does not send; else nil
}

// buildTasks turns a configuration into tasks. It opens nothing.
func buildTasks(c *config, p *parts) (*plan, error) {
	plan := &plan{gateway: c.Gateway.ID}
	var brokers []broker
	var names []string
	plan.close = func() {
		p.tuned.note(plan.forwarding)
		for _, b := range brokers {
			b.Close()
		}
	}
	for _, u := range c.Uplinks {
		cursor, err := p.queue.Cursor(u.Name) // the log keeps its place, whatever follows
		if err != nil {
			plan.close()
			return nil, err
		}
		names = append(names, u.Name)
		wait := func(u *uplinkConfig, why string) {
			p.log.Error("an uplink waits for a file: nothing is sent, readings are kept", "uplink", u.Name, "why", why)
			plan.absent = append(plan.absent, absentUplink{u.Name, u.URL, why, cursor, time.Now()})
		}
		if u.absent != "" && p.printTo == nil {
			wait(u, u.absent)
			continue
		}
		b, err := newBroker(c, u, p.clock, p.log, thisMachine())
		if err != nil { // a file that it needs has changed since it was checked
			wait(u, err.Error())
			continue
		}
		brokers = append(brokers, b)
		var sink gateway.Sink = b
		if p.printTo != nil {
			sink = &printer{sink: b, out: p.printTo}
		}
		plan.forwarding = append(plan.forwarding, newUplink(u, cursor, sink, p))
	}
	if len(names) > 0 { // with none, the log keeps everything for the first to come
		for _, name := range p.queue.Only(names...) {
			p.log.Warn("an uplink is no longer configured: the log keeps nothing back for it", "uplink", name)
		}
	}
	p.follow(c, brokers)
	plan.uplinks = []task{p.clock}
	for _, u := range plan.forwarding {
		plan.uplinks = append(plan.uplinks, u)
	}
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
				for _, u := range plan.forwarding {
					u.writeMetrics(w)
				}
				writeClock(w, p.clock)
			},
			Uplinks: plan.shown,
		}
		plan.sensing = append(plan.sensing, plan.view)
	}
	return plan, nil
}

func newMapper(c *config) *ngsi.Mapper {
	var things []ngsi.Thing
	for i := range c.Sensors {
		things = append(things, c.Sensors[i].thing(c))
	}
	return ngsi.NewMapper(c.Gateway.ID, things)
}

// serve runs configurations, one after the other, until ctx ends. next gives
// the next one. ready is called whenever a configuration has begun, stopping
// once at the end.
func serve(ctx context.Context, c *config, p *parts, next <-chan *config, ready func(*config), stopping func()) error {
	standing := append(p.sockets(c.Log.Dir), committer{p.queue})
	if p.notify != nil {
		standing = append(standing, announcer{p, p.notify.period()})
	}
	committing := start(standing...)
	defer committing.stop()
	around := time.NewTicker(p.notify.period())
	defer around.Stop()
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
		p.plan.Store(plan)
		ready(c)
		c = nil
		for waiting := true; waiting; {
			waiting = false
			select {
			case <-around.C:
				hang()
				err = p.notify.beat(p.hung())
				waiting = err == nil
			case <-ctx.Done():
			case c = <-next:
			case err = <-sensing.failed:
			case err = <-uplinks.failed:
			case err = <-committing.failed:
			}
		}
		p.plan.Store(nil)
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
