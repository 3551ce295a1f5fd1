package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"campus-gateway/drivers"
	"campus-gateway/drivers/bus"
	"campus-gateway/drivers/sim"
	"campus-gateway/live"
	"campus-gateway/ngsi/sandbox"
)

var update = flag.Bool("update", false, "write the table of drivers into the README")

// command runs a command line to its end.
func command(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	status = execute(t.Context(), args, &out, &err)
	return status, out.String(), err.String()
}

func TestCommandLine(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, c := range []struct {
		args           []string
		status         int
		stdout, stderr string // must be in it
	}{
		{[]string{}, 0, "gateway demo", ""},
		{[]string{"--help"}, 0, "Examples:", ""},
		{[]string{"version"}, 0, "go1.", ""},
		{[]string{"check", file("good.yaml", good)}, 0, "is good: gateway gw-1, 0 sensors", ""},
		{[]string{"check", file("bad.yaml", "broker: {}\nx: 1\n")}, 1, "", "bad.yaml:2:1: x: unknown key"},
		{[]string{"check", filepath.Join(dir, "none.yaml")}, 1, "", "there is no such file: make one with `gateway init"},
		{[]string{"check", dir}, 1, "", "this is a folder"},
		{[]string{"check"}, 2, "", "the configuration file is missing"},
		{[]string{"check", "a", "b"}, 2, "", `"b" is one argument too many`},
		{[]string{"run", "--config", file("bad2.yaml", "broker: {}\n")}, 78, "", "bad2.yaml:1:"},
		{[]string{"rnu"}, 2, "", `unknown command "rnu": did you mean "run"?`},
		{[]string{"run", "--confg", "x"}, 2, "", "unknown flag: --confg"},
		{[]string{"help", "nonsense"}, 2, "", "unknown command"},
		{[]string{"read"}, 2, "", "the driver's name"},
		{[]string{"read", "bmx280"}, 2, "", `unknown driver "bmx280": did you mean`},
		{[]string{"read", "bh1750", "--address", "0x99"}, 2, "", "0x99 is outside 0x08..0x77"},
		{[]string{"read", "bh1750", "--set", "mtreg=5"}, 2, "", "mtreg: 5 is outside 31..254"},
		{[]string{"read", "bh1750", "--set", "mtreg"}, 2, "", "want key=value"},
		{[]string{"read", "contact"}, 2, "", "there is no pin"},
		{[]string{"read", "bh1750", "--bus", "i2c-987"}, 1, "", "i2c-987: there is no"},
		{[]string{"start", "now"}, 2, "", `"now" is one argument too many`},
		{[]string{"uninstall", "--force"}, 2, "", "unknown flag: --force"},
		{[]string{"demo", "--speed", "0"}, 2, "", "--speed 0: want more than 0"},
		{[]string{"demo", "--api", "ngsi-v3"}, 2, "", "want ngsi-v2 or ngsi-ld"},
		{[]string{"demo", "--listen", "nowhere"}, 2, "", "--listen:"},
	} {
		t.Run(strings.Join(c.args, " "), func(t *testing.T) {
			status, stdout, stderr := command(t, c.args...)
			if status != c.status || !strings.Contains(stdout, c.stdout) || !strings.Contains(stderr, c.stderr) {
				t.Errorf("status %d (want %d)\nstdout: %s\nstderr: %s", status, c.status, stdout, stderr)
			}
			if c.status == 2 && strings.Count(stderr, "\n") != 1 {
				t.Errorf("want one line:\n%s", stderr)
			}
		})
	}
}

func TestHelpHasExamples(t *testing.T) {
	for _, c := range newRoot().Commands() {
		if c.Hidden {
			continue
		}
		status, stdout, _ := command(t, c.Name(), "--help")
		if status != 0 || !strings.Contains(strings.ReplaceAll(stdout, "sudo ", ""), "Examples:\n  gateway "+c.Name()) {
			t.Errorf("%s: status %d\n%s", c.Name(), status, stdout)
		}
	}
}

func TestInitIsAccepted(t *testing.T) {
	_, text, _ := command(t, "init")
	file := filepath.Join(t.TempDir(), "gateway.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if status, _, stderr := command(t, "check", file); status != 0 {
		t.Errorf("status %d: %s", status, stderr)
	}
}

func TestDriversJSON(t *testing.T) {
	_, text, _ := command(t, "drivers", "--json")
	var rows []map[string]any
	if err := json.Unmarshal([]byte(text), &rows); err != nil {
		t.Fatal(err)
	}
	if len(rows) != len(drivers.All()) {
		t.Errorf("%d rows", len(rows))
	}
	for _, r := range rows {
		for _, key := range []string{"name", "quantities", "bus", "addresses", "doc", "experimental"} {
			if r[key] == nil {
				t.Errorf("%v: no %s", r["name"], key)
			}
		}
	}
	_, table, _ := command(t, "drivers")
	if lines := strings.Count(table, "\n"); lines != 1+len(rows) {
		t.Errorf("%d lines:\n%s", lines, table)
	}
}

// The keys of a driver's options stand among those that all sensors have.
func TestOptionsDoNotCollide(t *testing.T) {
	d := &decoder{faults: &faults{}}
	for _, x := range drivers.All() {
		ours, theirs := d.fields(&sensorConfig{}), d.fields(x.Options())
		for k := range theirs {
			if _, both := ours[k]; both {
				t.Errorf("%s: the option %s is a key of every sensor", x.Name, k)
			}
		}
	}
}

func TestREADME(t *testing.T) {
	const begin, end = "<!-- drivers -->\n", "<!-- /drivers -->"
	file := filepath.Join("..", "..", "README.md")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(b), begin)
	old, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("no %s…%s in the README", begin, end)
	}
	var rows strings.Builder
	rows.WriteString("| driver | where | senses | what |\n|---|---|---|---|\n")
	for _, r := range driverRows() {
		where := string(r.Bus)
		if len(r.Addresses) > 0 {
			where = strings.Join(r.Addresses, " ")
		}
		var senses []string
		for _, q := range r.Quantities {
			senses = append(senses, string(q))
		}
		fmt.Fprintf(&rows, "| `%s` | %s | %s | %s |\n", r.Name, where, strings.Join(senses, " "), r.Doc)
	}
	if *update {
		if err := os.WriteFile(file, []byte(before+begin+rows.String()+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if old != rows.String() {
		t.Errorf("the README's drivers are not ours: go test ./cmd/gateway -run README -update")
	}
}

// syncBuffer is a log that is read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// freeAddress is one that nothing listens on just now.
func freeAddress(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func TestDemo(t *testing.T) {
	for _, api := range []string{"ngsi-v2", "ngsi-ld"} {
		t.Run(api, func(t *testing.T) {
			t.Parallel()
			f := demoFlags{brokerListen: freeAddress(t), listen: freeAddress(t), dir: t.TempDir(), api: api, speed: 600}
			var out syncBuffer
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- demo(ctx, f, &out) }()
			path := "/v2/entities?type=AirQualityObserved&options=keyValues"
			if api == "ngsi-ld" {
				path = "/ngsi-ld/v1/entities?type=AirQualityObserved&options=keyValues"
			}
			await(t, "an entity at the broker", func() bool {
				var es []map[string]any
				return getJSON("http://"+f.brokerListen+path, &es) && len(es) == 1 && es[0]["co2"] != nil
			})
			var view struct {
				Sensors []struct{ Name, State string }
			}
			if !getJSON("http://"+f.listen+"/api/v1/sensors", &view) || len(view.Sensors) != 8 {
				t.Errorf("the live view shows %+v", view)
			}
			for _, s := range view.Sensors {
				if s.State != "ok" {
					t.Errorf("%s is %s", s.Name, s.State)
				}
			}
			cancel()
			if err := <-done; err != nil {
				t.Errorf("ended with %v", err)
			}
			for _, want := range []string{"8 simulated sensors", "curl ", "AirQualityObserved:demo:air", " ppm", "0 readings wait in the log"} {
				if !strings.Contains(out.String(), want) {
					t.Errorf("%q is not in:\n%s", want, out.String())
				}
			}
		})
	}
}

func getJSON(url string, v any) bool {
	r, err := http.Get(url)
	if err != nil {
		return false
	}
	defer r.Body.Close()
	return r.StatusCode == http.StatusOK && json.NewDecoder(r.Body).Decode(v) == nil
}

func TestDemoPortInUse(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for _, args := range [][]string{{"--broker-listen", ln.Addr().String()}, {"--broker-listen", "127.0.0.1:0", "--listen", ln.Addr().String()}} {
		status, _, stderr := command(t, append([]string{"demo"}, args...)...)
		if status != 1 || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, "another program listens on "+ln.Addr().String()) {
			t.Errorf("%v: status %d: %s", args, status, stderr)
		}
	}
}

// Configuration becomes tasks, each with a name that tells it.
func TestBuildTasks(t *testing.T) {
	c, err := readConfig("x.yaml", []byte(`gateway: {id: gw-1}
broker: {url: "http://broker:1026", api: ngsi-ld}
log: {dir: `+t.TempDir()+`}
sensors:
  - {name: room, driver: bme280}
  - {name: door, driver: contact, pin: GPIO4}
`))
	if err != nil {
		t.Fatal(err)
	}
	p, closeLog, err := newParts(c, simulated{}, newLogger(io.Discard))
	if err != nil {
		t.Fatal(err)
	}
	defer closeLog()
	plan, err := buildTasks(c, p)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, x := range append(plan.sensing, plan.uplinks...) {
		got = append(got, x.String())
	}
	if want := []string{`sensor "room"`, `sensor "door"`, "live view on 127.0.0.1:8080", "clock", "uplink ngsi-ld http://broker:1026"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// Where the clock learns the time; what it knows is shown, and kept beside the log.
func TestClockParts(t *testing.T) {
	dir := t.TempDir()
	c, err := readConfig("x.yaml", fmt.Appendf(nil, "gateway: {id: gw-1}\nbroker: {url: \"http://broker:1026\"}\nlog: {dir: %q}\nclock: {hold: 5m}\n", dir))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "boots.json")
	for name, x := range map[string]struct {
		change  func(*parts)
		hold    time.Duration
		sources string
	}{
		"run":     {func(*parts) {}, 5 * time.Minute, "timesyncd timedate1 broker"},
		"demo":    {func(p *parts) { p.trust = true }, 5 * time.Minute, "machine"},
		"dry run": {func(p *parts) { p.printTo = io.Discard }, 0, "timesyncd timedate1"},
	} {
		var log syncBuffer
		if err := os.WriteFile(file, []byte("torn"), 0o600); err != nil {
			t.Fatal(err)
		}
		p, closeLog, err := newParts(c, simulated{}, newLogger(&log))
		if err != nil {
			t.Fatal(err)
		}
		x.change(p)
		if _, err := buildTasks(c, p); err != nil {
			t.Fatal(err)
		}
		var sources []string
		for _, s := range p.clock.Sources {
			sources = append(sources, s.Name)
		}
		if got := strings.Join(sources, " "); got != x.sources || p.clock.Hold != x.hold {
			t.Errorf("%s: %s, hold %v", name, got, p.clock.Hold)
		}
		var metrics strings.Builder
		writeClock(&metrics, p.clock)
		for _, want := range append(sources, "gateway_clock_steps_total 0", "gateway_clock_error_seconds 0", "gateway_clock_holds_readings") {
			if !strings.Contains(metrics.String(), want) {
				t.Errorf("%s: %q is not in:\n%s", name, want, metrics.String())
			}
		}
		closeLog()
		if b, err := os.ReadFile(file); err != nil || !strings.Contains(string(b), `"boots":[{"id":"`) {
			t.Errorf("%s: %s, %v", name, b, err)
		}
		if n := strings.Count(log.String(), "earlier boots is lost"); n != 1 {
			t.Errorf("%s: %s", name, log.String())
		}
	}
}

// A daemon over the simulated board, a broker that goes away and comes back, a
// sensor that is pulled out, and a new configuration on the way: no reading is
// lost or comes twice, and only what is meant is disturbed.
func TestDaemon(t *testing.T) {
	t.Parallel()
	type arrival struct{ id, at string }
	var mu sync.Mutex
	var arrived []arrival
	broker := sandbox.New(sandbox.Options{OnUpdate: func(u sandbox.Update) {
		mu.Lock()
		defer mu.Unlock()
		for _, a := range u.Attrs {
			if a.Name == "temperature" || a.Name == "illuminance" {
				arrived = append(arrived, arrival{u.ID, a.Time})
			}
		}
	}})
	count := func(part string) (n int) {
		mu.Lock()
		defer mu.Unlock()
		for _, a := range arrived {
			if strings.Contains(a.id, part) {
				n++
			}
		}
		return n
	}
	address, view := freeAddress(t), freeAddress(t)
	listen := func() *group {
		var ln net.Listener
		await(t, "the broker's address", func() (ok bool) {
			var err error
			ln, err = net.Listen("tcp", address)
			return err == nil
		})
		return start(brokerTask{broker, ln})
	}
	text := func(sensors string) string {
		return fmt.Sprintf("gateway: {id: gw-1, location: {longitude: -7.6, latitude: 33}}\nbroker: {url: \"http://%s\", spread: 1s}\nlog: {dir: %q, window: 50ms}\nclock: {hold: 0s}\nlive: {http: {listen: %q}}\nsensors:\n%s",
			address, filepath.Join(t.TempDir(), "log"), view, sensors)
	}
	const climate, light = "  - {name: climate, driver: bme280, interval: 100ms}\n", "  - {name: light, driver: bh1750, interval: 200ms}\n"
	file := filepath.Join(t.TempDir(), "gateway.yaml")
	first := text(climate + light)
	write := func(s string) {
		if err := os.WriteFile(file, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(first)
	c, err := loadConfig(file)
	if err != nil {
		t.Fatal(err)
	}
	board := sim.NewBoard(sim.NewRoom(demoMorning(time.Now()), 60))
	var log syncBuffer
	logger := newLogger(&log)
	p, closeLog, err := newParts(c, simulated{board}, logger)
	if err != nil {
		t.Fatal(err)
	}
	hup := make(chan os.Signal)
	reloads := &reloader{file: file, current: c, hup: hup, next: make(chan *config), refused: p.refuse, log: logger}
	watching := start(reloads)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	began := make(chan *config, 5)
	go func() {
		done <- serve(ctx, c, p, reloads.next, func(c *config) { began <- c }, func() {})
	}()
	<-began

	serving := listen()
	await(t, "readings at the broker", func() bool { return count("climate") > 3 && count("light") > 1 })
	var health struct {
		Sensors []struct{ Name, State string }
	}
	state := func(name string) string {
		if !getJSON("http://"+view+"/api/v1/sensors", &health) {
			return ""
		}
		for _, s := range health.Sensors {
			if s.Name == name {
				return s.State
			}
		}
		return "not listed"
	}
	await(t, "the live view", func() bool { return state("climate") == "ok" && state("light") == "ok" })

	// The broker goes; readings wait; it comes back.
	serving.stop()
	await(t, "readings to wait", func() bool { return p.queue.Stats().Depth > 10 })
	serving = listen()
	await(t, "nothing to wait", func() bool { return p.queue.Stats().Depth < 3 })

	// A chip is pulled out: only its sensor is gone.
	board.Bus.Unplug(0x76)
	await(t, "climate to be gone", func() bool { return state("climate") == "gone" })
	lights := count("light")
	await(t, "light to go on", func() bool { return count("light") > lights+2 })
	if s := state("light"); s != "ok" {
		t.Errorf("light is %s", s)
	}
	board.Bus.Plug(0x76)
	await(t, "climate to be back", func() bool { return state("climate") == "ok" })

	// A bad configuration is refused; a good one begins without a restart.
	write("nonsense: true\n")
	hup <- os.Interrupt
	await(t, "the refusal", func() bool { return strings.Contains(log.String(), "new configuration refused") })
	write(strings.Replace(first, light, "", 1))
	hup <- os.Interrupt
	<-began
	await(t, "the sensor to be taken off the list", func() bool { return state("light") == "not listed" })
	climates := count("climate")
	await(t, "climate to go on", func() bool { return count("climate") > climates+2 })

	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	watching.stop()
	if depth := p.queue.Stats().Depth; depth != 0 {
		t.Errorf("%d readings were left behind", depth)
	}
	closeLog()
	serving.stop()

	mu.Lock()
	defer mu.Unlock()
	last := map[string]string{}
	for _, a := range arrived {
		if a.at <= last[a.id] {
			t.Errorf("%s: %s after %s", a.id, a.at, last[a.id])
		}
		last[a.id] = max(last[a.id], a.at)
	}
	for _, want := range []string{"broker back", "sensor gone", "sensor back"} { // "nothing gets through" twice, if two things were in the way
		if n := strings.Count(log.String(), want); n != 1 {
			t.Errorf("%q is %d times in the log:\n%s", want, n, log.String())
		}
	}
}

// On a machine without hardware or broker the daemon starts, says in one line
// each what it could not open, and serves what it can.
func TestDaemonWithoutAnything(t *testing.T) {
	t.Parallel()
	view := freeAddress(t)
	c, err := readConfig("x.yaml", fmt.Appendf(nil, `gateway: {id: gw-1}
broker: {url: "http://%s"}
log: {dir: %q}
live: {http: {listen: %q}}
sensors:
  - {name: room, driver: bme280, bus: i2c-987, interval: 100ms}
  - {name: door, driver: contact, pin: GPIO987}
  - {name: rain, driver: pulse, pin: GPIO988}
`, freeAddress(t), t.TempDir(), view))
	if err != nil {
		t.Fatal(err)
	}
	var log syncBuffer
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- run(ctx, "x.yaml", c, nil, &bus.Host{}, newLogger(&log)) }()
	await(t, "readiness", func() bool {
		r, err := http.Get("http://" + view + "/readyz")
		if err != nil {
			return false
		}
		r.Body.Close()
		return r.StatusCode == 200
	})
	await(t, "three lines", func() bool { return strings.Count(log.String(), "sensor not there") == 3 })
	time.Sleep(300 * time.Millisecond) // nothing more is said
	for _, name := range []string{"room", "door", "rain"} {
		if n := strings.Count(log.String(), "sensor="+name); n != 1 {
			t.Errorf("%d lines of %s:\n%s", n, name, log.String())
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A dry run senses, prints what it would send, secrets hidden, sends nothing and
// leaves no log behind.
func TestDryRun(t *testing.T) {
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("geheim-1234\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	broker := freeAddress(t)
	ln, err := net.Listen("tcp", broker)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	logDir := filepath.Join(t.TempDir(), "log")
	c, err := readConfig("x.yaml", fmt.Appendf(nil, "gateway: {id: gw-1, location: {longitude: -7.6, latitude: 33}}\nbroker: {url: \"http://%s\", service: campus, auth: {token_file: %q}}\nlog: {dir: %q}\nsensors:\n  - {name: light, driver: bh1750}\n", broker, token, logDir))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var out syncBuffer
	done := make(chan error, 1)
	go func() {
		done <- dryRun(ctx, c, simulated{sim.NewBoard(sim.NewRoom(demoMorning(time.Now()), 1))}, &out, newLogger(io.Discard))
	}()
	await(t, "a request", func() bool { return strings.Contains(out.String(), `"illuminance"`) })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	for _, want := range []string{"POST http://" + broker + "/v2/op/update?options=forcedUpdate\n", "Fiware-Service: campus\n", "(hidden)", `"unitCode"`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in:\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "geheim") {
		t.Error("the token is shown")
	}
	if _, err := os.Stat(logDir); err == nil {
		t.Error("the real log was opened")
	}
	_ = ln.(*net.TCPListener).SetDeadline(time.Now().Add(50 * time.Millisecond))
	if conn, err := ln.Accept(); err == nil {
		conn.Close()
		t.Error("the broker was connected to")
	}
}

func TestListenTaken(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var log syncBuffer
	s := start(&live.Server{Listen: ln.Addr().String(), Board: &live.Board{}, Log: newLogger(&log)})
	await(t, "a line", func() bool { return strings.Contains(log.String(), "another program listens on") })
	s.stop()
}
