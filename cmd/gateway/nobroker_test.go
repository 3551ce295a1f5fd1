package main

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"campus-gateway"
	"campus-gateway/drivers/sim"
	"campus-gateway/ngsi/sandbox"
)

// A gateway that has no broker yet keeps what it senses. The day one is
// configured, it gets all of it.
func TestNoBrokerYet(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var arrived []string // times, in order
	broker := sandbox.New(sandbox.Options{OnUpdate: func(u sandbox.Update) {
		mu.Lock()
		defer mu.Unlock()
		for _, a := range u.Attrs {
			if a.Name == "temperature" {
				arrived = append(arrived, a.Time)
			}
		}
	}})
	address := freeAddress(t)
	file := filepath.Join(t.TempDir(), "gateway.yaml")
	text := fmt.Sprintf("gateway: {id: gw-1, location: {longitude: -7.6, latitude: 33}}\nlog: {dir: %q, window: 50ms}\nclock: {hold: 0s}\nlive: {http: {listen: off}}\nsensors:\n  - {name: climate, driver: bme280, bus: i2c-3, interval: 100ms}\n",
		filepath.Join(t.TempDir(), "log"))
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(text)
	c, err := loadConfig(file)
	if err != nil {
		t.Fatal(err)
	}
	var log syncBuffer
	p, closeLog, err := newParts(c, simulated{sim.NewBoard(sim.NewRoom(demoMorning(time.Now()), 60))}, newLogger(&log))
	if err != nil {
		t.Fatal(err)
	}
	defer closeLog()
	p.trust = true
	next := make(chan *config)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- serve(ctx, c, p, next, func(*config) {}, func() {}) }()
	await(t, "readings that wait", func() bool { return p.queue.Stats().Depth >= 5 })
	var oldest string
	if err := p.queue.Each(func(r gateway.Reading) error {
		oldest = cmp.Or(oldest, asLogReading(p.clock, r).Time.Format("2006-01-02T15:04:05.000Z"))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	serving := start(brokerTask{broker, ln})
	defer serving.stop()
	write(strings.Replace(text, "sensors:", fmt.Sprintf("broker: {url: \"http://%s\"}\nsensors:", address), 1))
	c, err = loadConfig(file)
	if err != nil {
		t.Fatal(err)
	}
	next <- c
	await(t, "what has waited at the broker", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(arrived) >= 6
	})
	mu.Lock()
	if arrived[0] != oldest {
		t.Errorf("the first to arrive is of %s, the first to wait was of %s", arrived[0], oldest)
	}
	mu.Unlock()
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
