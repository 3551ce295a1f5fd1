package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"campus-gateway"
	"campus-gateway/buffer"
	"campus-gateway/drivers/sim"
	"campus-gateway/live"
	"campus-gateway/ngsi/sandbox"
	"campus-gateway/systemd"
)

// listenNotify is a service manager that listens: next is what it is told next.
func listenNotify(t *testing.T) (next func() []string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return func() []string {
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		b := make([]byte, 4096)
		n, err := c.Read(b)
		if err != nil {
			t.Fatalf("the service manager is not told: %v", err)
		}
		return strings.Split(string(b[:n]), "\n")
	}
}

// The service manager is told that the daemon is ready, how it is, that it lives,
// and that it stops; everybody may ask how it is, and nothing else.
func TestStatus(t *testing.T) {
	next := listenNotify(t)
	runtime, logs := t.TempDir(), filepath.Join(t.TempDir(), "log")
	t.Setenv("RUNTIME_DIRECTORY", runtime)
	c, err := readConfig("x.yaml", fmt.Appendf(nil, `gateway: {id: gw-1}
broker: {url: "http://%s"}
log: {dir: %q}
live: {http: {listen: off}}
sensors:
  - {name: room, driver: bme280, interval: 100ms}
  - {name: lost, driver: bme280, address: 0x77, interval: 100ms}
`, freeAddress(t), logs))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- run(ctx, "/etc/gateway/x.yaml", c, errors.New("x.yaml:3: no"), simulated{sim.NewBoard(sim.NewRoom(demoMorning(time.Now()), 1))}, newLogger(&syncBuffer{}))
	}()
	// Readiness, life and the line come on their own.
	var ready, alive, line bool
	for !ready || !alive || !line {
		for _, x := range next() {
			ready, alive = ready || x == "READY=1", alive || x == "WATCHDOG=1"
			line = line || strings.HasPrefix(x, "STATUS=2 sensors, 1 gone, ") && strings.Contains(x, "broker down ")
			if alive && !ready {
				t.Error("alive before it is ready")
			}
		}
	}

	var s status
	body, err := askAt(t.Context(), filepath.Join(runtime, publicSocket), http.MethodGet, "/status")
	if err := decodeAnswer(body, err, &s); err != nil {
		t.Fatal(err)
	}
	if !s.Ready || s.Gateway != "gw-1" || s.Version != version || len(s.Sensors) != 2 || s.Sensors[0].State != gateway.OK || s.Sensors[1].State != gateway.Gone ||
		s.Sensors[1].Why == "" || s.Waiting == 0 || len(s.Uplinks) != 1 || s.Uplinks[0].Down.IsZero() || !s.Simulated || s.Refused == "" || len(s.Hung) > 0 {
		t.Errorf("%+v", s)
	}
	if i, err := os.Stat(filepath.Join(runtime, publicSocket)); err != nil || i.Mode().Perm() != 0o666 {
		t.Errorf("%v %v", i, err)
	}
	for _, path := range []string{"/stat", "/export", "/rejects", "/verify", "/"} {
		if body, err := askAt(t.Context(), filepath.Join(runtime, publicSocket), http.MethodGet, path); err == nil {
			body.Close()
			t.Errorf("everybody may ask for %s", path)
		}
	}
	if body, err := askAt(t.Context(), filepath.Join(runtime, publicSocket), http.MethodPost, "/repair"); err == nil {
		body.Close()
		t.Error("everybody may repair")
	}

	code, out, stderr := command(t, "status", "--dir", logs)
	for _, want := range []string{"gateway gw-1 runs for ", "sensor room    ok", "sensor lost    gone for ", "uplink broker  ngsi-v2 http://", "down for ", "is refused, an earlier one runs"} {
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("no %q in (%d) %s%s", want, code, out, stderr)
		}
	}
	code, out, _ = command(t, "status", "--json", "--dir", logs)
	if err := json.Unmarshal([]byte(out), &s); code != 0 || err != nil {
		t.Errorf("%d, %v: %s", code, err, out)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	for told := next(); told[0] != "STOPPING=1"; told = next() {
	}
	if code, _, stderr := command(t, "status", "--dir", logs); code != exitNotRunning || !strings.Contains(stderr, "no daemon has the log in "+logs) {
		t.Errorf("%d %s", code, stderr)
	}
}

// stuck is a task that does not turn.
type stuck struct{}

func (stuck) Run(ctx context.Context) error { <-ctx.Done(); return nil }
func (stuck) String() string                { return "stuck" }
func (stuck) Overdue() time.Duration        { return time.Second }

// The watchdog is content only while every task turns, and a gateway with a leak
// ends itself.
func TestBeat(t *testing.T) {
	next := listenNotify(t)
	c, err := readConfig("x.yaml", fmt.Appendf(nil, "gateway: {id: gw-1}\nlog: {dir: %q}\nlive: {http: {listen: off}}\n", t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	var log syncBuffer
	p, closeLog, err := newParts(c, simulated{}, newLogger(&log))
	if err != nil {
		t.Fatal(err)
	}
	defer closeLog()
	n := &notifier{most: 1 << 40, log: newLogger(&log)}
	told := make(chan []string)
	go func() {
		for {
			told <- next()
		}
	}()
	for i, x := range []struct {
		sensing []task
		alive   bool
	}{{nil, true}, {[]task{stuck{}}, false}, {[]task{stuck{}}, false}, {nil, true}} {
		p.plan.Store(&plan{sensing: x.sensing})
		if err := n.beat(p.hung()); err != nil {
			t.Fatal(err)
		}
		select {
		case got := <-told:
			if !x.alive || !slices.Equal(got, []string{"WATCHDOG=1"}) {
				t.Errorf("%d: %q", i, got)
			}
		case <-time.After(map[bool]time.Duration{true: 10 * time.Second, false: 100 * time.Millisecond}[x.alive]):
			if x.alive {
				t.Errorf("%d: nothing is told", i)
			}
		}
		if line := p.status().Line; strings.Contains(line, "hung: stuck") == x.alive {
			t.Errorf("%d: %s", i, line)
		}
	}
	if got := log.String(); strings.Count(got, "does not turn any more") != 1 || strings.Count(got, "all tasks turn again") != 1 {
		t.Errorf("not told once each:\n%s", got)
	}
	n.most = 1 << 20
	if err := n.beat(nil); err == nil || !strings.Contains(err.Error(), "to be started anew") {
		t.Errorf("a leak: %v", err)
	}
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "gone"))
	n.most = 1 << 40
	for range 3 {
		if err := n.beat(nil); err != nil {
			t.Fatal(err)
		}
	}
	if got := log.String(); strings.Count(got, "systemd is not told") != 1 {
		t.Errorf("said each time:\n%s", got)
	}
	n.most = 1 << 20
	t.Setenv("NOTIFY_SOCKET", "")
	if err := n.beat(nil); err != nil {
		t.Errorf("nobody would start it anew: %v", err)
	}
}

// stuckRecords hangs in a commit, once it is stuck.
type stuckRecords struct {
	records
	stuck *atomic.Bool
	free  chan struct{}
}

func (r stuckRecords) Append(dst []byte, rs []gateway.Reading) ([]byte, error) {
	if r.stuck.Load() {
		<-r.free
	}
	return r.records.Append(dst, rs)
}

// A log whose commits hang is seen, and who sees it does not wait for it.
func TestStuckLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := stuckRecords{records{clock: gateway.NewClock()}, &atomic.Bool{}, make(chan struct{})}
		q, err := buffer.Open(t.TempDir(), r, buffer.Options{Window: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		defer q.Close()
		p := &parts{queue: q}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- q.Run(ctx) }()
		put := func() {
			if err := q.Put(gateway.Reading{Sensor: "x", At: gateway.Stamp{Wall: time.Now()}, Values: []gateway.Value{{Quantity: gateway.Temperature, V: 20.}}}); err != nil {
				t.Error(err)
			}
		}
		put()
		time.Sleep(time.Hour)
		if got := p.hung(); got != nil {
			t.Errorf("all is well, and %v hangs", got)
		}
		r.stuck.Store(true)
		put()
		time.Sleep(slowDisk)
		if got := p.hung(); got != nil {
			t.Errorf("a slow card, and %v hangs", got)
		}
		time.Sleep(time.Minute)
		if got := p.hung(); !slices.Equal(got, []string{"log"}) {
			t.Errorf("a commit hangs, and %v is told", got)
		}
		close(r.free)
		cancel()
		<-done
		if got := p.hung(); got != nil {
			t.Errorf("one that has ended hangs: %v", got)
		}
	})
}

// A leak ends the daemon as a failing task does: orderly, with what waits on disk.
func TestLeakEndsTheDaemon(t *testing.T) {
	listenNotify(t)
	c, err := readConfig("x.yaml", fmt.Appendf(nil, "gateway: {id: gw-1}\nlog: {dir: %q}\nlive: {http: {listen: off}}\nsensors:\n  - {name: room, driver: bme280, interval: 100ms}\n", t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	p, closeLog, err := newParts(c, simulated{sim.NewBoard(sim.NewRoom(demoMorning(time.Now()), 1))}, newLogger(&syncBuffer{}))
	if err != nil {
		t.Fatal(err)
	}
	p.notify = &notifier{every: 500 * time.Millisecond, most: 1 << 20, log: p.log}
	stopped := false
	err = serve(t.Context(), c, p, nil, func(*config) {}, func() { stopped = true })
	if err == nil || !strings.Contains(err.Error(), "MiB of memory are used") || !stopped {
		t.Errorf("%v, told that it stops: %v", err, stopped)
	}
	depth := p.queue.Stats().Depth
	closeLog()
	if s, err := statLog(t.Context(), c.Log.Dir); err != nil || depth == 0 || s.Waiting != depth {
		t.Errorf("%d waited, on disk %d, %v", depth, s.Waiting, err)
	}
}

func TestStatusLine(t *testing.T) {
	now := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	for _, x := range []struct {
		s    status
		want string
	}{
		{status{Ready: true, Durable: "durable"}, "no sensor configured, 0 waiting, no broker configured"},
		{status{Ready: true, Durable: "durable", Sensors: make([]sensorStatus, 3), Waiting: 120, Uplinks: uplinks(now.Add(-4*time.Minute - 10*time.Second))}, "3 sensors, 120 waiting, broker down 4 min"},
		{status{Ready: true, Durable: "not durable, on tmpfs", Undated: true, Sensors: []sensorStatus{{State: gateway.Gone}}, Uplinks: uplinks(time.Time{})}, "1 sensor, 1 gone, 0 waiting, waiting for the time, not durable"},
		{status{Durable: "durable", Refused: "x", Simulated: true, Hung: []string{"a", "b"}}, "no sensor configured, 0 waiting, the configuration is faulty: an earlier one runs, chips simulated, hung: a, b"},
	} {
		if got := x.s.line(now); got != x.want {
			t.Errorf("%q, want %q", got, x.want)
		}
	}
	for d, want := range map[time.Duration]string{-time.Hour: "0 s", 59 * time.Second: "59 s", 61 * time.Minute: "1 h 1 min", 49 * time.Hour: "2 days"} {
		if got := since(now, now.Add(-d)); got != want {
			t.Errorf("%v: %q", d, got)
		}
	}
}

// A configuration that has become faulty is passed over for the last one that
// worked, if there is a service's folder with one.
func TestLastGood(t *testing.T) {
	state := t.TempDir()
	file := filepath.Join(t.TempDir(), "gateway.yaml")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	faulty := good + "sensors: 5\n"
	write(faulty)
	if _, _, err := loadRunnable(file); err == nil {
		t.Error("a faulty one runs")
	}
	t.Setenv("STATE_DIRECTORY", state)
	if _, _, err := loadRunnable(file); err == nil || !strings.Contains(err.Error(), "sensors: want a list") {
		t.Errorf("with no earlier one: %v", err)
	}
	write(good)
	c, refused, err := loadRunnable(file)
	if err != nil || refused != nil {
		t.Fatal(err, refused)
	}
	if err := keepGood(c); err != nil {
		t.Fatal(err)
	}
	kept := filepath.Join(state, goodName)
	was, err := os.Stat(kept)
	if err != nil || was.Mode().Perm() != 0o600 {
		t.Fatal(was, err)
	}
	if err := keepGood(c); err != nil {
		t.Fatal(err)
	}
	if is, err := os.Stat(kept); err != nil || !os.SameFile(was, is) {
		t.Error("what is kept already is written again")
	}
	write(faulty)
	c, refused, err = loadRunnable(file)
	if err != nil || c.Gateway.ID != "gw-1" || refused == nil || !strings.Contains(refused.Error(), "gateway.yaml:3") {
		t.Errorf("%+v, %v, %v", c, refused, err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if c, refused, err = loadRunnable(file); err != nil || c == nil || refused == nil || !strings.Contains(refused.Error(), "there is no such file") {
		t.Errorf("%+v, %v, %v", c, refused, err)
	}
	if err := os.WriteFile(kept, []byte(faulty), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err = loadRunnable(file); err == nil || !strings.Contains(err.Error(), "there is no such file") {
		t.Errorf("%v", err)
	}
}

// What the service manager hands over is read in the place of root's file.
func TestHandedSecrets(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	text := []byte("gateway: {id: gw-1}\nbroker: {url: \"http://localhost:1026\", auth: {token_file: /etc/gateway/secrets/token}}\n")
	if err := faultsOf(text); err == nil || !strings.Contains(err.Error(), "/etc/gateway/secrets/token was not there when the service began") || !strings.Contains(err.Error(), "sudo systemctl restart gateway") {
		t.Errorf("%v", err)
	}
	handed := filepath.Join(dir, "secrets_token")
	if err := os.WriteFile(handed, []byte("canary\n"), 0o400); err != nil {
		t.Fatal(err)
	}
	c, err := readConfig("x.yaml", text)
	if err != nil || c.whole() != nil || c.Uplinks[0].Auth.TokenFile != handed {
		t.Errorf("%v, %+v", err, c)
	}
	elsewhere := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(elsewhere, []byte("other"), 0o400); err != nil {
		t.Fatal(err)
	}
	c, err = readConfig("x.yaml", []byte(strings.Replace(string(text), "/etc/gateway/secrets/token", elsewhere, 1)))
	if err != nil || c.whole() != nil || c.Uplinks[0].Auth.TokenFile != elsewhere {
		t.Errorf("%v, %+v", err, c)
	}
}

func uplinks(down time.Time) []live.Uplink { return []live.Uplink{{Name: "broker", Down: down}} }

func TestNotRunning(t *testing.T) {
	bin := t.TempDir()
	t.Setenv("PATH", bin)
	for _, x := range []struct{ state, want string }{
		{"ActiveState=failed\nExecMainStatus=78\n", "gateway check"},
		{"ActiveState=failed\nExecMainStatus=2\n", "journalctl"},
		{"ActiveState=activating\nExecMainStatus=243\n", "sudo install -d -m 0700 /etc/gateway/secrets"},
		{"ActiveState=inactive\nExecMainStatus=0\n", "sudo gateway start"},
		{"", "sudo gateway start"},
	} {
		script := "#!/bin/sh\nprintf '" + strings.ReplaceAll(x.state, "\n", "\\n") + "'\n"
		if err := os.WriteFile(filepath.Join(bin, "systemctl"), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
		if got := notRunning(t.Context(), systemd.Installation{By: systemd.Package}); !strings.Contains(got, x.want) {
			t.Errorf("%q: %s", x.state, got)
		}
	}
	if got := notRunning(t.Context(), systemd.Installation{}); !strings.Contains(got, "gateway install") {
		t.Error(got)
	}
}

// faultsOf is all that gateway check tells of a configuration.
func faultsOf(text []byte) error {
	c, err := readConfig("x.yaml", text)
	if err == nil {
		err = c.whole()
	}
	return err
}

// An uplink whose token is not there waits for it, alone, and the log keeps its
// place; when the file comes, it begins by itself.
func TestUplinkWaitsForItsFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	token := filepath.Join(dir, "token")
	var tokens sync.Map // by path, what has come with requests
	serve := func(name string) string {
		broker := sandbox.New(sandbox.Options{OnUpdate: func(sandbox.Update) { tokens.LoadOrStore(name, "") }})
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "" {
				tokens.Store(name, r.Header.Get("Authorization"))
			}
			broker.ServeHTTP(w, r)
		}))
		t.Cleanup(s.Close)
		return s.URL
	}
	file := filepath.Join(dir, "gateway.yaml")
	text := fmt.Sprintf("gateway: {id: gw-1, location: {longitude: -7.6, latitude: 33}}\nuplinks:\n  - {name: open, url: %q}\n  - {name: closed, url: %q, auth: {token_file: %q}}\nlog: {dir: %q}\nclock: {hold: 0s}\nlive: {http: {listen: off}}\nsensors:\n  - {name: room, driver: bme280, interval: 100ms}\n",
		serve("open"), serve("closed"), token, filepath.Join(dir, "log"))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := command(t, "check", file); code == 0 || !strings.Contains(stderr, "uplinks[1].auth.token_file: the secret's file cannot be read") {
		t.Errorf("check: %d %s", code, stderr)
	}
	c, err := loadConfig(file)
	if err != nil {
		t.Fatal(err)
	}
	var log syncBuffer
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- run(ctx, file, c, nil, simulated{sim.NewBoard(sim.NewRoom(demoMorning(time.Now()), 1))}, newLogger(&log))
	}()
	await(t, "the open uplink", func() bool { _, ok := tokens.Load("open"); return ok })
	var s status
	await(t, "the closed one, and what waits for it", func() bool {
		body, err := ask(t.Context(), filepath.Join(dir, "log"), http.MethodGet, "/status")
		return decodeAnswer(body, err, &s) == nil && len(s.Uplinks) == 2 && s.Uplinks[0].Name == "closed" && s.Uplinks[0].Waiting >= 5
	})
	if u := s.Uplinks[0]; u.Down.IsZero() || !strings.Contains(u.Why, "token_file: the secret's file cannot be read") || !strings.Contains(s.Line, "closed down") {
		t.Errorf("%+v %s", u, s.Line)
	}
	if got := log.String(); strings.Count(got, "an uplink waits for a file") != 1 {
		t.Errorf("%s", got)
	}
	if err := os.WriteFile(token, []byte("canary\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	await(t, "the closed uplink", func() bool { v, _ := tokens.Load("closed"); return v == "Bearer canary" })
	await(t, "all of it", func() bool {
		s = status{}
		body, err := ask(t.Context(), filepath.Join(dir, "log"), http.MethodGet, "/status")
		return decodeAnswer(body, err, &s) == nil && len(s.Uplinks) == 2 && s.Uplinks[1].Sent > 5 && s.Uplinks[1].Waiting < 5
	})
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Who asks in a bad way, and never ends, takes nothing from the daemon: at most 16
// connections at a time, each for some seconds. And a configuration that holds a
// secret in the wrong place is not shown to everybody.
func TestPublicSocketHostile(t *testing.T) {
	runtime := t.TempDir()
	t.Setenv("RUNTIME_DIRECTORY", runtime)
	c, err := readConfig("x.yaml", fmt.Appendf(nil, "gateway: {id: gw-1}\nlog: {dir: %q}\nlive: {http: {listen: off}}\n", t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	_, refused := readConfig("x.yaml", []byte("gateway: {id: gw-1}\nbroker: {url: http://x, auth: {bearer_token: CANARY-1}}\n"))
	if refused == nil || strings.Contains(refused.Error(), "CANARY-1") {
		t.Errorf("%v", refused)
	}
	_, refused = readConfig("x.yaml", []byte("gateway: {id: gw-1}\nnote: CANARY-2\n"))
	if refused == nil || !strings.Contains(refused.Error(), "CANARY-2") {
		t.Errorf("an ordinary line is not shown: %v", refused)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- run(ctx, "/etc/gateway/x.yaml", c, refused, simulated{}, newLogger(&syncBuffer{}))
	}()
	socket := filepath.Join(runtime, publicSocket)
	ask := func() (s status, err error) {
		body, err := askAt(t.Context(), socket, http.MethodGet, "/status")
		return s, decodeAnswer(body, err, &s)
	}
	await(t, "the daemon", func() bool { _, err := ask(); return err == nil })
	s, err := ask()
	if err != nil || s.Refused != "1 fault: `sudo gateway check /etc/gateway/x.yaml` shows why" {
		t.Errorf("%q, %v", s.Refused, err)
	}
	files := func() int { all, _ := os.ReadDir("/proc/self/fd"); return len(all) }
	before := files()
	for range 40 {
		conn, err := net.Dial("unix", socket)
		if err != nil { // the kernel's queue is full
			break
		}
		defer conn.Close()
	}
	time.Sleep(50 * time.Millisecond)
	if now := files(); before > 0 && now > before+40+20 { // the 40 are this test's own
		t.Errorf("%d files before, %d after 40 connections", before, now)
	}
	await(t, "an answer in the end", func() bool { _, err := ask(); return err == nil })
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Everybody may ask while a new configuration begins (for the race detector).
func TestStatusWhileReloading(t *testing.T) {
	t.Parallel()
	text := fmt.Appendf(nil, "gateway: {id: gw-1}\nbroker: {url: \"http://%s\"}\nlog: {dir: %q}\nlive: {http: {listen: off}}\nsensors:\n  - {name: room, driver: bme280, interval: 100ms}\n", freeAddress(t), t.TempDir())
	c, err := readConfig("x.yaml", text)
	if err != nil {
		t.Fatal(err)
	}
	p, closeLog, err := newParts(c, simulated{sim.NewBoard(sim.NewRoom(demoMorning(time.Now()), 1))}, newLogger(&syncBuffer{}))
	if err != nil {
		t.Fatal(err)
	}
	defer closeLog()
	next := make(chan *config)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- serve(ctx, c, p, next, func(*config) {}, func() {}) }()
	asking := make(chan struct{})
	go func() {
		defer close(asking)
		for ctx.Err() == nil {
			p.status()
			p.hung()
		}
	}()
	for range 3 {
		c, err := readConfig("x.yaml", text)
		if err != nil {
			t.Fatal(err)
		}
		next <- c
	}
	stop()
	<-asking
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A key that comes and cannot be used is waited for, too: it does not end the daemon.
func TestBadSecretDoesNotEndTheDaemon(t *testing.T) {
	key := filepath.Join(t.TempDir(), "key")
	text := fmt.Appendf(nil, "gateway: {id: gw-1}\nbroker: {url: \"mqtt://127.0.0.1:9\", api: iota-json, api_key_file: %q}\nlog: {dir: %q}\nlive: {http: {listen: off}}\n", key, t.TempDir())
	for _, content := range []string{"", "ab/cd\n", "good\n"} {
		if err := os.WriteFile(key, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := readConfig("x.yaml", text)
		if err != nil || (c.whole() == nil) != (content == "good\n") {
			t.Fatalf("%q: %v", content, err)
		}
		if content == "good\n" { // and it changes between the check and its use
			if err := os.WriteFile(key, []byte("ab/cd"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		p, closeLog, err := newParts(c, simulated{}, newLogger(&syncBuffer{}))
		if err != nil {
			t.Fatal(err)
		}
		plan, err := buildTasks(c, p)
		if err != nil || len(plan.absent) != 1 || len(plan.forwarding) != 0 {
			t.Errorf("%q: %v, %+v", content, err, plan)
		}
		plan.close()
		closeLog()
	}
}
