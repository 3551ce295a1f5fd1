package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"campus-gateway/drivers/bus"
	"campus-gateway/drivers/sim"
	"campus-gateway/live"
	"campus-gateway/ngsi/sandbox"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// demoConfig is the demo's configuration: an ordinary one, for the simulated
// board. The four %s are the broker's URL, its API, the log's folder and the
// live view's address.
const demoConfig = `
gateway: {id: demo, location: {longitude: -7.62, latitude: 33.00}}
broker: {url: "http://%s", api: %s}
log: {dir: %q}
live: {http: {listen: "%s"}}
sensors:
  - {name: climate,  driver: bme280,  address: 0x76, interval: 2s}
  - {name: window,   driver: sht4x,   address: 0x44, interval: 2s}
  - {name: air,      driver: scd4x,   address: 0x62, interval: 5s, altitude: 370}
  - {name: daylight, driver: bh1750,  address: 0x23, interval: 2s}
  - name: soil
    driver: ads1115
    address: 0x48
    channel: A0
    quantity: soilMoisture
    curve: {points: [[2.8, 0], [1.2, 100]]}   # a capacitive probe v1.2: dry air, water
    interval: 5s
  - {name: motion,   driver: contact, pin: GPIO17, quantity: occupancy}
  - {name: door,     driver: contact, pin: GPIO27, repeat: 30s}
  - {name: tap,      driver: pulse,   pin: GPIO22, quantity: waterFlow, per_unit: 450, interval: 2s}
`

type demoFlags struct {
	brokerListen, listen, dir, api string
	speed                          float64
}

func newDemo() *cobra.Command {
	var f demoFlags
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "See it work with simulated chips and a broker of its own",
		Long: `Runs the whole gateway with no hardware and no broker: the real drivers read
chips that are simulated register by register in a simulated room, the real log
keeps, and the real forwarder sends to a small broker inside, for demo and test
only. What arrives there is shown live. Ctrl-C ends it.`,
		Example: `  gateway demo
  gateway demo --api ngsi-ld --speed 600
  curl 'http://127.0.0.1:1026/v2/entities?options=keyValues'   (meanwhile, elsewhere)`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return demo(cmd.Context(), f, cmd.OutOrStdout())
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.brokerListen, "broker-listen", "127.0.0.1:1026", "the `address` of the broker inside")
	fl.StringVar(&f.listen, "listen", "127.0.0.1:8080", "the `address` of the live view, or off")
	fl.StringVar(&f.dir, "dir", "", "the `folder` of the log, kept afterwards (default: one that is thrown away)")
	fl.StringVar(&f.api, "api", "ngsi-v2", "ngsi-v2 or ngsi-ld")
	fl.Float64Var(&f.speed, "speed", 60, "how fast the room's day passes; 60: a day in 24 minutes")
	return cmd
}

func demo(ctx context.Context, f demoFlags, out io.Writer) error {
	if !slices.Contains([]string{"ngsi-v2", "ngsi-ld"}, f.api) {
		return usage(fmt.Errorf("--api %s: want ngsi-v2 or ngsi-ld", f.api))
	}
	if !(f.speed > 0 && f.speed <= 1e6) {
		return usage(fmt.Errorf("--speed %v: want more than 0, at most 1000000", f.speed))
	}
	for _, a := range []struct{ flag, value string }{{"listen", f.listen}, {"broker-listen", f.brokerListen}} {
		if err := checkListen(a.value); err != nil {
			return usage(fmt.Errorf("--%s: %w", a.flag, err))
		}
	}
	ln, err := net.Listen("tcp", f.brokerListen)
	if err != nil {
		return fmt.Errorf("--broker-listen: %s", live.Explain(f.brokerListen, err))
	}
	defer ln.Close()
	if f.listen != "off" { // the daemon would go on without the view and try again; a demo says so at once
		probe, err := net.Listen("tcp", f.listen)
		if err != nil {
			return fmt.Errorf("--listen: %s", live.Explain(f.listen, err))
		}
		probe.Close()
	}
	dir := f.dir
	if dir == "" {
		if dir, err = os.MkdirTemp("", "gateway-demo-"); err != nil {
			return err
		}
		defer os.RemoveAll(dir)
	}
	url := ln.Addr().String()
	c, err := readConfig("demo", fmt.Appendf(nil, demoConfig, url, f.api, filepath.ToSlash(dir), f.listen))
	if err != nil {
		return err
	}
	c.temporary = f.dir == ""
	show := newScreen(out)
	broker := sandbox.New(sandbox.Options{OnUpdate: show.update})
	serving := start(brokerTask{broker, ln})
	defer serving.stop()
	notifying := start(notifyTask{broker})
	defer notifying.stop()

	room := sim.NewRoom(demoMorning(time.Now()), f.speed)
	p, closeLog, err := newParts(c, simulated{sim.NewBoard(room)}, newLogger(show))
	if err != nil {
		return err
	}
	defer closeLog()
	p.trust = true
	show.begin(fmt.Sprintf("%d simulated sensors, a day in %s. Ctrl-C ends it.", len(c.Sensors), day(f.speed)), askWith(f.api, url, f.listen))
	err = serve(ctx, c, p, nil, func(*config) {}, func() {})
	show.end(fmt.Sprintf("Ended. %d entities were written to the broker; %d readings wait in the log.", broker.Stats().Updates, p.queue.Stats().Depth))
	return err
}

// demoMorning is twenty past eight on the Monday of the week: the first lecture
// is about to begin.
func demoMorning(now time.Time) time.Time {
	monday := now.AddDate(0, 0, -(int(now.Weekday())+6)%7)
	return time.Date(monday.Year(), monday.Month(), monday.Day(), 8, 20, 0, 0, time.UTC)
}

func day(speed float64) string {
	d := time.Duration(float64(24*time.Hour) / speed)
	return strings.TrimSuffix(strings.TrimSuffix(d.Round(time.Second).String(), "0s"), "0m")
}

func askWith(api, url, listen string) []string {
	ask := []string{fmt.Sprintf("curl 'http://%s/v2/entities?options=keyValues'", url)}
	if api == "ngsi-ld" {
		ask = []string{fmt.Sprintf("curl 'http://%s/ngsi-ld/v1/entities?type=IndoorEnvironmentObserved'", url)}
	}
	if listen != "off" {
		ask = append(ask, fmt.Sprintf("curl http://%s/api/v1/sensors", listen))
	}
	return ask
}

type brokerTask struct {
	*sandbox.Broker
	ln net.Listener
}

func (b brokerTask) Run(ctx context.Context) error { return b.Serve(ctx, b.ln) }
func (b brokerTask) String() string                { return "sandbox broker" }

type notifyTask struct{ *sandbox.Broker }

func (notifyTask) String() string { return "sandbox broker's notifications" }

// simulated is a drivers.Host over the simulated board.
type simulated struct{ *sim.Board }

func (s simulated) Counter(name string, _ bus.CounterOpts) (bus.Counter, error) {
	p, err := s.Pulses(name)
	if err != nil {
		return nil, err
	}
	return simulatedCounter{p}, nil
}

type simulatedCounter struct{ *sim.Pulses }

func (s simulatedCounter) Read() (c bus.Count, err error) {
	c.Edges, c.Lost, c.First, c.Last, err = s.Pulses.Read()
	return c, err
}

// screen shows what arrives at the broker: on a terminal one line an entity,
// repainted in place; elsewhere a line for each arrival. It is also where the
// log's lines go, above the table. Safe for concurrent use.
type screen struct {
	out      io.Writer
	terminal *os.File // nil: out is none

	mu      sync.Mutex
	order   []string // entities by first arrival
	rows    map[string]string
	painted int // lines of the table on the screen
	ended   bool
}

func newScreen(out io.Writer) *screen {
	s := &screen{out: out, rows: map[string]string{}}
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb" {
		s.terminal = f
	}
	return s
}

func (s *screen) begin(what string, ask []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(s.out, "Campus gateway, demo: %s\n\nAsk meanwhile:\n  %s\n\nArrived at the broker:\n", what, strings.Join(ask, "\n  "))
}

// entityWidth fits the longest id of the demo.
const entityWidth = 41

// update is told of every entity written. Devices, which do not change, are
// passed over.
func (s *screen) update(u sandbox.Update) {
	if u.Type == "Device" {
		return
	}
	var values []string
	for _, a := range u.Attrs {
		if a.Time != "" { // the measured ones
			values = append(values, strings.TrimSpace(a.Name+" "+a.Value+" "+unitOf(a.Unit)))
		}
	}
	row := fmt.Sprintf("%s  %-*s %s", u.At.Local().Format("15:04:05"), entityWidth, strings.TrimPrefix(u.ID, "urn:ngsi-ld:"), strings.Join(values, ", "))
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	if s.terminal == nil {
		fmt.Fprintln(s.out, row)
		return
	}
	if _, known := s.rows[u.ID]; !known {
		s.order = append(s.order, u.ID)
	}
	s.rows[u.ID] = row
	s.clear()
	s.paint()
}

// Write puts a line of the log above the table.
func (s *screen) Write(line []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
	defer s.paint()
	return s.out.Write(line)
}

func (s *screen) end(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	fmt.Fprintf(s.out, "\n%s\n", what)
}

func (s *screen) clear() {
	if s.painted > 0 {
		fmt.Fprintf(s.out, "\x1b[%dA\x1b[J", s.painted) // up, and empty from there on
	}
	s.painted = 0
}

func (s *screen) paint() {
	if s.terminal == nil || s.ended {
		return
	}
	width, _, err := term.GetSize(int(s.terminal.Fd()))
	if err != nil || width < 20 {
		width = 80
	}
	for _, id := range s.order {
		fmt.Fprintln(s.out, cut(s.rows[id], width-1))
	}
	s.painted = len(s.order)
}

// cut shortens a line, so that the terminal does not break it.
func cut(s string, width int) string {
	if utf8.RuneCountInString(s) <= width {
		return s
	}
	return string([]rune(s)[:width-1]) + "…"
}

// unitOf is a UN/CEFACT code as people write it.
func unitOf(code string) string {
	if u, ok := map[string]string{"CEL": "°C", "A97": "hPa", "LUX": "lx", "59": "ppm", "L2": "L/min", "C62": "", "P1": "%"}[code]; ok {
		return u
	}
	return code
}
