package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"time"

	"campus-gateway"
	"campus-gateway/ngsi"
	"campus-gateway/systemd"

	"github.com/VictoriaMetrics/metrics"
)

// lastResort is how long NTP may take before the broker's word is taken: a campus
// may block it.
const lastResort = time.Minute

// trusted is the source of the demo's time: the machine's clock, as it is.
const trusted = "machine"

// bootsName is the file in the log's folder that keeps what is known of boots.
const bootsName = "boots.json"

// openClock makes the clock, with what is known of earlier boots.
func openClock(file string, log *slog.Logger) *gateway.Clock {
	clock := gateway.NewClock()
	clock.Log = log
	if err := clock.Load(file); err != nil {
		log.Warn("what was known of earlier boots is lost: their readings are dated less well", "why", err)
	}
	return clock
}

// records are readings as the log keeps them, whose age the clock knows.
type records struct {
	gateway.Codec
	clock *gateway.Clock
}

// Age is known only where both the reading's time and the present are.
func (r records) Age(x gateway.Reading) (time.Duration, bool) {
	at, ok := r.clock.Mend(x.At)
	return r.clock.Now().Sub(at.Wall), ok && at.Earliest.IsZero() && r.clock.Stats().Source != ""
}

// follow says where the clock learns the time, under a configuration.
func (p *parts) follow(c *config, brokers []broker) {
	hold, sources := c.Clock.Hold, []gateway.Source{
		{Name: "timesyncd", Ask: own(systemd.Timesyncd)},
		{Name: "timedate1", Ask: own(systemd.Timedate)},
	}
	for _, b := range brokers {
		if b, ok := b.(*ngsi.Sink); ok {
			sources = append(sources, gateway.Source{Name: "broker", After: lastResort, Ask: b.Date})
			break
		}
	}
	switch {
	case p.trust:
		sources = []gateway.Source{{Name: trusted, Ask: own(func(context.Context) error { return nil })}}
	case p.printTo != nil: // nothing is asked of the broker, and nothing waits for it
		hold, sources = 0, sources[:2]
	}
	p.clock.Follow(hold, sources)
}

// own asks whether the machine's own clock is right.
func own(synced func(context.Context) error) func(context.Context) (time.Time, time.Duration, error) {
	return func(ctx context.Context) (time.Time, time.Duration, error) { return time.Time{}, 0, synced(ctx) }
}

// writeClock writes the clock's metrics.
func writeClock(w io.Writer, c *gateway.Clock) {
	s := c.Stats()
	for _, source := range c.Sources {
		synced := uint64(0)
		if source.Name == s.Source {
			synced = 1
		}
		metrics.WriteGaugeUint64(w, fmt.Sprintf("gateway_clock_synced{source=%q}", source.Name), synced)
	}
	metrics.WriteGaugeFloat64(w, "gateway_clock_error_seconds", s.Within.Seconds())
	metrics.WriteCounterUint64(w, "gateway_clock_steps_total", s.Steps)
	held := uint64(0)
	if s.Held {
		held = 1
	}
	metrics.WriteGaugeUint64(w, "gateway_clock_holds_readings", held)
}
