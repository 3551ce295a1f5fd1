package main

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"campus-gateway/drivers/sim"
)

// `gateway buffer` says the same of a log through a running daemon and of its files
// afterwards; of a damaged one it says so, rescues the rest, and repairs.
func TestBuffer(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "log")
	file := filepath.Join(t.TempDir(), "gateway.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, `gateway: {id: gw-1, location: {longitude: -7.6, latitude: 33}}
broker: {url: "http://%s"}
log: {dir: %q, window: 50ms}
clock: {hold: 0s}
live: {http: {listen: "off"}}
sensors:
  - {name: climate, driver: bme280, interval: 100ms}
  - {name: light, driver: bh1750, interval: 200ms}
`, freeAddress(t), dir), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := loadConfig(file)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- run(ctx, file, c, nil, simulated{sim.NewBoard(sim.NewRoom(demoMorning(time.Now()), 60))}, newLogger(&syncBuffer{}))
	}()
	ask := func(args ...string) string {
		t.Helper()
		status, out, errs := command(t, append([]string{"buffer"}, args...)...)
		if status != 0 {
			t.Fatalf("gateway buffer %s: status %d: %s%s", strings.Join(args, " "), status, out, errs)
		}
		return out
	}
	var state logState
	look := func() logState {
		t.Helper()
		state = logState{}
		if err := json.Unmarshal([]byte(ask("stat", "--json", "-c", file)), &state); err != nil {
			t.Fatal(err)
		}
		return state
	}
	await(t, "a log", func() bool { _, err := os.Stat(filepath.Join(dir, socketName)); return err == nil })
	await(t, "readings", func() bool { s := look(); return s.Waiting > 20 && s.Commits > 1 })
	if i, err := os.Stat(filepath.Join(dir, socketName)); err != nil || i.Mode().Perm() != 0o600 {
		t.Errorf("the socket is %v, %v", i.Mode(), err)
	}
	if !state.Daemon || state.Files != 1 || state.Bytes == 0 || state.Uplinks["broker"] != state.Waiting {
		t.Errorf("%+v", state)
	}
	if out := ask("stat", "-c", file); !strings.Contains(out, " readings\n") || !strings.Contains(out, "for broker") {
		t.Errorf("%s", out)
	}
	if out := ask("verify", "-c", file); !strings.Contains(out, "are whole") {
		t.Errorf("%s", out)
	}
	early := ask("export", "-c", file) // the newest still wait in memory
	if out := ask("repair", "--dir", dir); !strings.Contains(out, "readings wait") {
		t.Errorf("%s", out)
	}
	if out := ask("rejects", "--dir", dir); out != "" {
		t.Errorf("%s", out)
	}
	live := ask("export", "-c", file)
	if n := strings.Count(live, "\n"); n < state.Waiting {
		t.Errorf("%d lines, %d waited before", n, state.Waiting)
	}
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}

	if s := look(); s.Daemon || s.Waiting < strings.Count(live, "\n") {
		t.Errorf("%+v", s)
	}
	if got, want := undelivered(t.Context(), file), fmt.Sprintf("%d readings not delivered yet", state.Waiting); got != want {
		t.Errorf("gateway uninstall says %q, want %q", got, want)
	}
	all := ask("export", "-c", file)
	if !strings.HasPrefix(all, early) || !strings.HasPrefix(all, live) {
		t.Error("the files say otherwise than the daemon")
	}
	var r logReading
	if err := json.Unmarshal([]byte(all[:strings.Index(all, "\n")]), &r); err != nil || r.Sensor == "" || len(r.Values) == 0 || r.Time.Before(time.Now().Add(-time.Hour)) {
		t.Errorf("%+v, %v", r, err)
	}
	rows, err := csv.NewReader(strings.NewReader(ask("export", "-c", file, "--format", "csv"))).ReadAll()
	if err != nil || len(rows) < 1+strings.Count(all, "\n") || strings.Join(rows[0], " ") != "time sensor quantity value unit time_uncertain" {
		t.Errorf("%d rows, %v, %v", len(rows), rows[0], err)
	}
	var body struct{ Entities []struct{ ID string } }
	ngsi := ask("export", "-c", file, "--format", "ngsi")
	if err := json.Unmarshal([]byte(ngsi[:strings.Index(ngsi, "\n")]), &body); err != nil || len(body.Entities) == 0 || !strings.Contains(ngsi, "gw-1:climate") {
		t.Errorf("%v: %.300s", err, ngsi)
	}
	if status, _, errs := command(t, "buffer", "export", "-c", file, "--format", "xml"); status != exitUsage || !strings.Contains(errs, "csv, jsonl, ngsi") {
		t.Errorf("%d: %s", status, errs)
	}
	if out := ask("verify", "-c", file); !strings.Contains(out, "whole, ") {
		t.Errorf("%s", out)
	}

	// Rot in the newest file: in every page but those that are not used.
	files, err := filepath.Glob(filepath.Join(dir, "log-*.db"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	b, err := os.ReadFile(files[len(files)-1])
	if err != nil {
		t.Fatal(err)
	}
	clear(b[:2*4096])
	if err := os.WriteFile(files[len(files)-1], b, 0o600); err != nil {
		t.Fatal(err)
	}
	status, out, errs := command(t, "buffer", "verify", "-c", file)
	if status != exitFailure || !strings.Contains(errs, "are damaged: `gateway buffer repair`") {
		t.Errorf("%d: %s%s", status, out, errs)
	}
	status, rescued, errs := command(t, "buffer", "export", "-c", file)
	if status != 0 || !strings.Contains(errs, "is damaged") || strings.Count(rescued, "\n") < strings.Count(all, "\n") {
		t.Errorf("%d: %s: %d of %d lines", status, errs, strings.Count(rescued, "\n"), strings.Count(all, "\n"))
	}
	out = ask("repair", "-c", file)
	if !strings.Contains(out, "set aside") || !strings.Contains(out, ".damaged-") {
		t.Errorf("%s", out)
	}
	if again := ask("export", "-c", file); again != all {
		t.Errorf("after the repair %d lines, were %d", strings.Count(again, "\n"), strings.Count(all, "\n"))
	}
	if out := ask("verify", "-c", file); !strings.Contains(out, "whole, ") {
		t.Errorf("%s", out)
	}
}
