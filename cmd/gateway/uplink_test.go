package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"campus-gateway"
	"campus-gateway/drivers/sim"
	"campus-gateway/live"
	"campus-gateway/ngsi/sandbox"
)

// Two brokers of different kinds, each with its own place in the log: one that is away
// does not hold back the other, and gets all when it comes. One that is taken out of the
// configuration holds nothing back any more.
func TestUplinks(t *testing.T) {
	t.Parallel()
	orion, stellio := sandbox.New(sandbox.Options{}), sandbox.New(sandbox.Options{Like: sandbox.Stellio})
	first, second, view := freeAddress(t), freeAddress(t), freeAddress(t)
	dir := filepath.Join(t.TempDir(), "log")
	text := func(uplinks string) []byte {
		return fmt.Appendf(nil, "gateway: {id: gw-1, location: {longitude: -7.6, latitude: 33}}\nuplinks:\n%slog: {dir: %q, window: 50ms}\nclock: {hold: 0s}\nlive: {http: {listen: %q}}\nsensors:\n  - {name: climate, driver: bme280, interval: 100ms}\n",
			uplinks, dir, view)
	}
	campus := fmt.Sprintf("  - {name: campus, url: \"http://%s\", spread: 1s}\n", first)
	cluster := fmt.Sprintf("  - {name: cluster, url: \"http://%s\", api: ngsi-ld, spread: 1s}\n", second)
	both, err := readConfig("x.yaml", text(campus+cluster))
	if err != nil {
		t.Fatal(err)
	}
	one, err := readConfig("x.yaml", text(campus))
	if err != nil {
		t.Fatal(err)
	}
	listen := func(b *sandbox.Broker, address string) *group {
		ln, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		return start(brokerTask{b, ln})
	}
	var log syncBuffer
	p, closeLog, err := newParts(both, simulated{sim.NewBoard(sim.NewRoom(demoMorning(time.Now()), 60))}, newLogger(&log))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done, began, next := make(chan error, 1), make(chan *config, 5), make(chan *config)
	go func() { done <- serve(ctx, both, p, next, func(c *config) { began <- c }, func() {}) }()
	<-began
	var shown struct{ Uplinks []live.Uplink }
	state := func(name string) live.Uplink {
		shown.Uplinks = nil
		getJSON("http://"+view+"/api/v1/uplinks", &shown)
		for _, u := range shown.Uplinks {
			if u.Name == name {
				return u
			}
		}
		return live.Uplink{}
	}
	here := listen(orion, first)
	await(t, "the campus to have readings", func() bool { return state("campus").Sent > 20 })
	if u := state("cluster"); u.Sent != 0 || u.Down.IsZero() || !strings.Contains(u.Why, "connection refused") || u.Waiting < 10 {
		t.Errorf("%+v", u)
	}
	there := listen(stellio, second)
	await(t, "the cluster to have all", func() bool { u := state("cluster"); return u.Down.IsZero() && u.Sent > 20 && u.Waiting < 5 })
	if u := state("cluster"); u.Broker == "" || u.Batch == 0 || u.Lanes == 0 || u.To != "ngsi-ld http://"+second {
		t.Errorf("%+v", u)
	}
	resp, err := http.Get("http://" + view + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	var metrics strings.Builder
	_ = resp.Write(&metrics)
	resp.Body.Close()
	for _, want := range []string{`gateway_uplink_up{uplink="campus"} 1`, `gateway_uplink_sent_bytes_total{uplink="cluster"}`, `gateway_uplink_batch_readings{uplink="campus"}`} {
		if !strings.Contains(metrics.String(), want) {
			t.Errorf("no %s in\n%s", want, metrics.String())
		}
	}

	there.stop()
	await(t, "readings to wait", func() bool { return state("cluster").Waiting > 5 })
	next <- one
	<-began
	await(t, "nothing to be held back", func() bool { return p.queue.Stats().Depth < 3 })
	if !strings.Contains(log.String(), "no longer configured") || !strings.Contains(log.String(), "uplink=cluster") {
		t.Error(log.String())
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	closeLog()
	here.stop()
	if b, err := os.ReadFile(filepath.Join(dir, tunedName)); err != nil || !strings.Contains(string(b), `"campus":{"batch":`) {
		t.Errorf("what was tuned is not kept: %s, %v", b, err)
	}
}

func TestTunings(t *testing.T) {
	dir := t.TempDir()
	if known := readTunings(dir); known.of("a") != (gateway.Tuned{}) {
		t.Errorf("%+v", known)
	}
	known := readTunings(dir)
	known.known["a"] = gateway.Tuned{Batch: 120, Lanes: 3}
	if err := known.write(); err != nil {
		t.Fatal(err)
	}
	if got := readTunings(dir).of("a"); got != (gateway.Tuned{Batch: 120, Lanes: 3}) {
		t.Errorf("%+v", got)
	}
	for _, text := range []string{"", "torn{", `{"a":{"batch":-5}}`, `{"a":{"batch":1000000}}`, `{"a":{"lanes":99}}`, "[]"} {
		if err := os.WriteFile(filepath.Join(dir, tunedName), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := readTunings(dir).of("a"); got != (gateway.Tuned{}) {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

// An IoT Agent is an uplink as any: checked, dry-run without its key shown, and named by
// what it is.
func TestAgentUplink(t *testing.T) {
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte("canary-4711\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := readConfig("x.yaml", fmt.Appendf(nil, "gateway: {id: gw-1, location: {longitude: -7.6, latitude: 33}}\nbroker: {api: iota-json, url: \"mqtt://mqtt.campus.example\", api_key_file: %q}\nlog: {dir: %q}\nlive: {http: {listen: \"off\"}}\nclock: {hold: 0s}\nsensors:\n  - {name: climate, driver: bme280, interval: 100ms}\n", key, filepath.Join(t.TempDir(), "log")))
	if err != nil {
		t.Fatal(err)
	}
	var log, out syncBuffer
	p, closeLog, err := newParts(c, simulated{sim.NewBoard(sim.NewRoom(demoMorning(time.Now()), 60))}, newLogger(&log))
	if err != nil {
		t.Fatal(err)
	}
	p.printTo = &out
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- serve(ctx, c, p, nil, func(*config) {}, func() {}) }()
	await(t, "a message", func() bool { return strings.Contains(out.String(), "\"temperature\":") })
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	closeLog()
	if text := out.String(); !strings.Contains(text, "PUBLISH mqtt://mqtt.campus.example:1883/json/(API key)/gw-1:climate/attrs") || strings.Contains(text+log.String(), "canary") {
		t.Errorf("%s\n%s", text, log.String())
	}
}
