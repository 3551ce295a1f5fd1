package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"campus-gateway/drivers/sim"
	"campus-gateway/ngsi/sandbox"
)

// TestMain is also the daemon that TestKill9 kills: run, over the simulated board.
// The test's program serves as the daemon that is killed, and as what the log
// starts to look at its files.
func TestMain(m *testing.M) {
	_ = os.Setenv("GORACE", "atexit_sleep_ms=0") // for children: the race detector rests a second before each exit
	if len(os.Args) == 3 && os.Args[1] == "inspect" {
		os.Exit(execute(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
	}
	file := os.Getenv("GATEWAY_TEST_RUN")
	if file == "" {
		os.Exit(m.Run())
	}
	c, err := loadConfig(file)
	if err == nil {
		board := sim.NewBoard(sim.NewRoom(demoMorning(time.Now()), 60))
		err = run(context.Background(), file, c, nil, simulated{board}, newLogger(os.Stderr))
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// The daemon is killed again and again, with its broker away half of the time.
// The ledger is kept outside, from what the live view shows: with a window of 0 a
// reading is on disk before its sensor's next one is shown. All of the ledger
// arrives, each sensor's readings in order and once: the broker is asked what it holds.
func TestKill9(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	arrived := map[string][]int64{} // times by sensor, ms
	broker := sandbox.New(sandbox.Options{OnUpdate: func(u sandbox.Update) {
		mu.Lock()
		defer mu.Unlock()
		for _, a := range u.Attrs {
			if a.Name == "illuminance" || a.Name == "relativeHumidity" {
				name := map[string]string{"illuminance": "light", "relativeHumidity": "window"}[a.Name]
				at, err := time.Parse(time.RFC3339, a.Time)
				if err != nil {
					t.Error(err)
				}
				arrived[name] = append(arrived[name], at.UnixMilli())
			}
		}
	}})
	address, view := freeAddress(t), freeAddress(t)
	file := filepath.Join(t.TempDir(), "gateway.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, `gateway: {id: gw-1, location: {longitude: -7.6, latitude: 33}}
broker: {url: "http://%s", spread: 1s}
log: {dir: %q, window: 0s}
clock: {hold: 0s}
live: {http: {listen: %q}}
sensors:
  - {name: window, driver: sht4x, interval: 100ms}
  - {name: light, driver: bh1750, interval: 200ms}
`, address, filepath.Join(t.TempDir(), "log"), view), 0o600); err != nil {
		t.Fatal(err)
	}
	serving := func() *group {
		var ln net.Listener
		await(t, "the broker's address", func() (ok bool) {
			var err error
			ln, err = net.Listen("tcp", address)
			return err == nil
		})
		return start(brokerTask{broker, ln})
	}
	ledger, shown := map[string][]int64{}, map[string]int64{}
	look := func() (ready bool) {
		var v struct {
			Sensors []struct {
				Name string
				Time time.Time
			}
		}
		if !getJSON("http://"+view+"/api/v1/sensors", &v) {
			return false
		}
		for _, s := range v.Sensors {
			if s.Time.IsZero() {
				continue
			}
			at := s.Time.UnixMilli()
			if before := shown[s.Name]; before != 0 && at != before {
				ledger[s.Name] = append(ledger[s.Name], before)
			}
			shown[s.Name] = at
		}
		return true
	}
	daemon := func() *exec.Cmd {
		clear(shown) // what was shown last before the kill may not be on disk
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "GATEWAY_TEST_RUN="+file)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		await(t, "the daemon", look)
		return cmd
	}
	for cycle := range 6 {
		var up *group
		if cycle%2 == 1 {
			up = serving()
		}
		cmd := daemon()
		for range 60 {
			look()
			time.Sleep(20 * time.Millisecond)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // killed
		if up != nil {
			up.stop()
		}
	}
	up := serving()
	defer up.stop()
	cmd := daemon()
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	missing := func() (n int) {
		mu.Lock()
		defer mu.Unlock()
		for sensor, times := range ledger {
			for _, at := range times {
				if !slices.Contains(arrived[sensor], at) {
					n++
				}
			}
		}
		return n
	}
	await(t, "all of the ledger to arrive", func() bool { return missing() == 0 })
	mu.Lock()
	defer mu.Unlock()
	total := 0
	for sensor, times := range arrived {
		total += len(ledger[sensor])
		newest := int64(0)
		for _, at := range times {
			if at <= newest {
				t.Errorf("%s: %d arrived after %d", sensor, at, newest)
			}
			newest = max(newest, at)
		}
	}
	t.Logf("6 kills, %d readings in the ledger, none lost, none twice", total)
	if total < 50 {
		t.Errorf("a ledger of %d readings proves little", total)
	}
}
