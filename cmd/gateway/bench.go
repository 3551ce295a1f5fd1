package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"campus-gateway"
	"campus-gateway/buffer"
	"campus-gateway/live"
	"campus-gateway/ngsi"

	"github.com/spf13/cobra"
)

type benchFlags struct {
	readings, sensors, values, put int
	broker, api, service, tenant   string
	offlineFirst                   bool
	dir                            string
	rate                           float64
	batch, lanes                   int
	window                         time.Duration
	serve                          string
	cpuProfile, memProfile         string
}

func newBench() *cobra.Command {
	var f benchFlags
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure how many readings a second the gateway, or your broker, takes",
		Long: `Pushes made-up readings through the real log and the real forwarder to a broker,
and prints one line of JSON: how many readings a second got through, what they
cost, and how long the broker took. This is how a lab sizes its broker.

A reading is what a BME280 says of a room: temperature, humidity and pressure, with
the noise of the chip. A sensor's readings are a second apart and end now; with
--rate they are taken as they come. The log is written through, with a flush for
every --put readings, unless --window lets readings wait in memory.

Without --broker it is a null server inside this process (net/http on a loopback
port): it reads each request and answers 204, or [] to a question. What is measured
then is the gateway. With --broker the entities are WRITTEN TO THAT BROKER, and stay
there: of the type IndoorEnvironmentObserved, with the ids
urn:ngsi-ld:IndoorEnvironmentObserved:bench:s001 and on, and their Devices. Use a
--service or --tenant of its own.

cpu_s_per_million is the processor time of this process, p50_ms and p99_ms are of
requests, bytes of their bodies. With --offline-first, readings_per_s is of the
draining, fill_seconds what came before it. For a log in memory, to compare with:
--dir /dev/shm.`,
		Example: `  gateway bench                                     this machine, without a broker
  gateway bench --offline-first --dir /var/lib      an outage: how fast it is made up for
  gateway bench --broker http://orion:1026 --service bench --readings 20000
  gateway bench --broker http://orion:1026 --service bench --rate 50 --readings 3000 --window 1s`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.serve != "" {
				return serveNull(cmd.Context(), f.serve)
			}
			if err := f.check(); err != nil {
				return usage(err)
			}
			r, err := bench(cmd.Context(), &f)
			if err != nil {
				return err
			}
			if err := json.NewEncoder(cmd.OutOrStdout()).Encode(r); err != nil {
				return err
			}
			if r.Rejected > 0 {
				return fmt.Errorf("bench: the broker rejects %d readings, the first because: %s", r.Rejected, r.why)
			}
			return nil
		},
	}
	fl := cmd.Flags()
	fl.IntVar(&f.readings, "readings", 400_000, "how many readings")
	fl.IntVar(&f.sensors, "sensors", 100, "of how many sensors, in turn")
	fl.IntVar(&f.values, "values", 3, "values a reading: 1 to 3")
	fl.Float64Var(&f.rate, "rate", 0, "readings a second; 0: as fast as the log takes them")
	fl.StringVar(&f.broker, "broker", "", "the broker's `URL`; it is written to (default: a null server inside)")
	fl.StringVar(&f.api, "api", "ngsi-v2", "ngsi-v2 or ngsi-ld, or the broker: orion, orion-ld, scorpio, stellio")
	fl.StringVar(&f.service, "service", "", "the tenant, NGSIv2 (Fiware-Service)")
	fl.StringVar(&f.tenant, "tenant", "", "the tenant, NGSI-LD (NGSILD-Tenant)")
	fl.BoolVar(&f.offlineFirst, "offline-first", false, "fill the log first, then drain it")
	fl.StringVar(&f.dir, "dir", "", "the `folder` in which the log is made, and removed (default: that of temporary files)")
	fl.DurationVar(&f.window, "window", 0, "how long a reading may wait in memory before it is written; 0s: it is on disk before the next is put")
	fl.IntVar(&f.put, "put", 0, "readings put at a time (default 4000; with --rate one by one: sensors that are sensed together put as many)")
	fl.IntVar(&f.batch, "batch", 0, "readings a request (default: tuned to the broker)")
	fl.IntVar(&f.lanes, "lanes", 0, "requests at a time while draining: 1 to 8 (default: tuned to the broker)")
	fl.StringVar(&f.serve, "serve", "", "nothing but the null server, on that `address`, for a bench elsewhere")
	fl.StringVar(&f.cpuProfile, "cpuprofile", "", "")
	fl.StringVar(&f.memProfile, "memprofile", "", "")
	_, _ = fl.MarkHidden("cpuprofile"), fl.MarkHidden("memprofile")
	return cmd
}

func (f *benchFlags) check() error {
	for _, n := range []struct {
		flag        string
		value       int
		least, most int
	}{
		{"readings", f.readings, 1, 1_000_000_000}, {"sensors", f.sensors, 1, 100_000}, {"values", f.values, 1, len(benchQuantities)},
		{"put", f.put, 0, 10_000}, {"batch", f.batch, 0, 10_000}, {"lanes", f.lanes, 0, 8},
	} {
		if n.value < n.least || n.value > n.most {
			return fmt.Errorf("--%s %d: want %d to %d", n.flag, n.value, n.least, n.most)
		}
	}
	switch {
	case !(f.rate >= 0 && f.rate <= 1e6):
		return fmt.Errorf("--rate %v: want 0 to 1000000", f.rate)
	case f.window < 0:
		return fmt.Errorf("--window %v: want 0s or more", f.window)
	case f.offlineFirst && f.rate > 0:
		return errors.New("--offline-first fills the log as fast as it can: leave out --rate")
	}
	return nil
}

// benchResult is the line of JSON.
type benchResult struct {
	ReadingsPerS    float64 `json:"readings_per_s"`
	Requests        int     `json:"requests"`
	Bytes           uint64  `json:"bytes"`
	CPUPerMillion   float64 `json:"cpu_s_per_million"`
	PeakRSS         int64   `json:"peak_rss_bytes"`
	P50             float64 `json:"p50_ms"`
	P99             float64 `json:"p99_ms"`
	Batch           int     `json:"batch"`
	Lanes           int     `json:"lanes"`
	Readings        int     `json:"readings"`
	Sensors         int     `json:"sensors"`
	Values          int     `json:"values"`
	Seconds         float64 `json:"seconds"`
	FillSeconds     float64 `json:"fill_seconds,omitempty"`
	Rejected        uint64  `json:"rejected"`
	Broker          string  `json:"broker"`
	API             string  `json:"api"`
	WindowMs        float64 `json:"window_ms"`
	LogDirFS        string  `json:"log_dir_fs"`
	LogWrittenBytes int64   `json:"log_written_bytes"`
	Commits         uint64  `json:"commits"`

	why string // the first was rejected
}

// benchPatience is how long a bench goes on while nothing gets through.
const benchPatience = 30 * time.Second

// bench runs one.
func bench(ctx context.Context, f *benchFlags) (r *benchResult, err error) {
	fail := func(doing string, err error) (*benchResult, error) {
		return nil, fmt.Errorf("bench: %s: %w", doing, err)
	}
	broker := f.broker
	if broker == "" {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return fail("begin the null server", err)
		}
		serving := start(nullServer{ln})
		defer serving.stop()
		broker = "http://" + ln.Addr().String()
	}
	room := newRoom(f.sensors, f.values)
	target, err := ngsi.New(ngsi.Config{URL: broker, API: f.api, Service: f.service, Tenant: f.tenant}, room.mapper())
	if err != nil {
		return nil, usage(err)
	}
	sink := &timedSink{Sink: target}
	defer sink.Close()
	dir, err := os.MkdirTemp(f.dir, "gateway-bench-")
	if err != nil {
		return fail("make the log's folder", err)
	}
	defer os.RemoveAll(dir)
	opt := buffer.Options{Window: f.window, Full: buffer.DropNewest, Verify: inspectApart}
	if f.window > 0 {
		opt.MaxPending = 1 << 20 // they wait, as many as come in a window
	}
	q, err := buffer.Open(dir, gateway.Codec{}, opt)
	if err != nil {
		return fail("open the log", err)
	}
	defer func() { err = errors.Join(err, q.Close()) }()
	cursor, err := q.Cursor("bench")
	if err != nil {
		return nil, err
	}
	clock := gateway.NewClock()
	defer clock.Close()
	queue := &countedQueue{Cursor: cursor, all: uint64(f.readings) + 1, done: make(chan struct{})}
	forwarder := &gateway.Forwarder{Queue: queue, Sink: sink, Dater: clock, Log: slog.New(slog.DiscardHandler), Spread: time.Second}
	if f.batch > 0 || f.lanes > 0 {
		forwarder.Batch, forwarder.Lanes, forwarder.Target = f.batch, cmp.Or(f.lanes, 1), -1
	}

	if f.cpuProfile != "" {
		file, err := os.Create(f.cpuProfile)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		if err := pprof.StartCPUProfile(file); err != nil {
			return nil, err
		}
		defer pprof.StopCPUProfile()
	}
	// Stopped in the reverse order: the log last.
	committing := start(committer{q})
	defer committing.stop()
	cpu, begun, filled := cpuTime(), time.Now(), time.Duration(0)
	room.begin(clock, f)
	putting := &putter{room: room, log: q, queue: queue, benchFlags: f, put: make(chan error, 1)}
	if f.offlineFirst {
		if err := putting.all(ctx); err != nil {
			return fail("fill the log", err)
		}
		filled = time.Since(begun)
		begun = begun.Add(filled)
		putting.put <- nil
	} else {
		producing := start(putting)
		defer producing.stop()
	}
	forwarding := start(forwarder)
	defer forwarding.stop()
	look := time.NewTicker(250 * time.Millisecond)
	defer look.Stop()
	for waiting := true; waiting; {
		select {
		case <-ctx.Done():
			return nil, errors.New("bench: interrupted")
		case err := <-putting.put:
			if err != nil {
				return fail("put readings into the log", err)
			}
		case <-queue.done:
			waiting = false
		case now := <-look.C:
			s := forwarder.Stats()
			if !s.Down.IsZero() && (s.Last.IsZero() || now.Sub(s.Last) > benchPatience) {
				return nil, fmt.Errorf("bench: nothing gets through: %s", s.Why)
			}
		}
	}
	took := time.Since(begun)
	cpu = cpuTime() - cpu
	if f.memProfile != "" {
		file, err := os.Create(f.memProfile)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		if err := pprof.Lookup("allocs").WriteTo(file, 0); err != nil {
			return nil, err
		}
	}
	s, l := forwarder.Stats(), q.Stats()
	r = &benchResult{
		ReadingsPerS: rounded(float64(f.readings)/took.Seconds(), 0), CPUPerMillion: rounded(cpu.Seconds()/float64(f.readings)*1e6, 3),
		PeakRSS: peakRSS(), Batch: s.Batch, Lanes: s.Lanes,
		Readings: f.readings, Sensors: f.sensors, Values: f.values, Seconds: rounded(took.Seconds(), 3), FillSeconds: rounded(filled.Seconds(), 3),
		Rejected: queue.rejected, Broker: cmp.Or(f.broker, "null server"), API: f.api,
		WindowMs: float64(f.window) / 1e6, LogDirFS: cmp.Or(l.Volatile, "disk"), LogWrittenBytes: l.Written, Commits: l.Commits,
		why: queue.why,
	}
	r.Requests, r.Bytes, r.P50, r.P99 = sink.told()
	return r, nil
}

func rounded(x float64, decimals int) float64 {
	p := math.Pow10(decimals)
	return math.Round(x*p) / p
}

// peakRSS is the most memory that this process had, in bytes; 0 where the system
// does not say. It is not getrusage's, which begins with that of who has started us.
func peakRSS() int64 {
	b, _ := os.ReadFile("/proc/self/status")
	for line := range bytes.Lines(b) {
		if rest, ok := bytes.CutPrefix(line, []byte("VmHWM:")); ok {
			kB, _ := strconv.ParseInt(string(bytes.Fields(rest)[0]), 10, 64)
			return kB << 10
		}
	}
	return 0
}

// countedQueue tells when all readings are settled.
type countedQueue struct {
	*buffer.Cursor[gateway.Reading]
	acked atomic.Uint64
	all   uint64
	done  chan struct{}

	// Of the forwarder's goroutine, until done.
	rejected uint64
	why      string // the first was
}

func (q *countedQueue) Ack(end uint64) {
	q.Cursor.Ack(end)
	if before := q.acked.Swap(end); end >= q.all && before < q.all {
		close(q.done)
	}
}

func (q *countedQueue) Reject(rs []gateway.Reading, why string) error {
	q.rejected, q.why = q.rejected+uint64(len(rs)), cmp.Or(q.why, why)
	return q.Cursor.Reject(rs, why)
}

// timedSink notes how long each request takes, and how many bytes it has.
type timedSink struct {
	*ngsi.Sink

	mu   sync.Mutex
	took []time.Duration
}

func (s *timedSink) Send(ctx context.Context, rs []gateway.Reading) error {
	return s.Sink.Send(s.traced(ctx), rs)
}

// History is timed as well.
func (s *timedSink) History() (gateway.Sink, bool) {
	past, ok := s.Sink.History()
	if !ok {
		return nil, false
	}
	return &timedHistory{past, past.(gateway.Reconciler), s}, true
}

type timedHistory struct {
	gateway.Sink
	gateway.Reconciler
	s *timedSink
}

func (h *timedHistory) Send(ctx context.Context, rs []gateway.Reading) error {
	return h.Sink.Send(h.s.traced(ctx), rs)
}

// traced times the requests of ctx, one after the other: from when they are begun to
// be written until the answer begins.
func (s *timedSink) traced(ctx context.Context) context.Context {
	var begun time.Time
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { begun = time.Now() },
		GotFirstResponseByte: func() {
			took := time.Since(begun)
			s.mu.Lock()
			defer s.mu.Unlock()
			s.took = append(s.took, took)
		},
	})
}

func (s *timedSink) told() (requests int, bytes uint64, p50, p99 float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	slices.Sort(s.took)
	if n := len(s.took); n > 0 {
		ms := func(d time.Duration) float64 { return rounded(float64(d)/1e6, 3) }
		p50, p99 = ms(s.took[n/2]), ms(s.took[min(n-1, n*99/100)])
	}
	return len(s.took), s.Sink.Bytes(), p50, p99
}

// room is where the readings come from.
type room struct {
	names  []string
	values [][]gateway.Value // drawn before the start: drawing them is not what is measured
	width  int               // values a reading
	first  gateway.Stamp     // of the sweep before the first
	clock  *gateway.Clock    // nil: a sensor's readings are a second apart
	n      int               // readings so far
}

var benchQuantities = []gateway.Quantity{gateway.Temperature, gateway.Humidity, gateway.Pressure}

// newRoom draws the values of a room: each wanders by its day, and has the noise and
// the steps of a BME280.
func newRoom(sensors, width int) *room {
	m := &room{width: width, values: make([][]gateway.Value, 4096)}
	for i := range sensors {
		m.names = append(m.names, fmt.Sprintf("s%03d", i+1))
	}
	random := rand.New(rand.NewPCG(1, 2))
	for i := range m.values {
		day := math.Sin(2 * math.Pi * float64(i) / float64(len(m.values)))
		all := []gateway.Value{
			{Quantity: gateway.Temperature, V: rounded(21.5+2.5*day+0.02*random.NormFloat64(), 2)},
			{Quantity: gateway.Humidity, V: rounded(45-8*day+0.05*random.NormFloat64(), 2)},
			{Quantity: gateway.Pressure, V: rounded(96_800+150*day+2*random.NormFloat64(), 0)},
		}
		m.values[i] = all[:width:width]
	}
	return m
}

func (m *room) mapper() *ngsi.Mapper {
	var things []ngsi.Thing
	for _, name := range m.names {
		things = append(things, ngsi.Thing{
			Name: name, Quantities: benchQuantities[:m.width], Driver: "bench", Doc: "made-up readings of gateway bench", Location: &[2]float64{-7.62, 33},
		})
	}
	return ngsi.NewMapper("bench", things)
}

// begin has the readings end now, or with a rate, begin now.
func (m *room) begin(clock *gateway.Clock, f *benchFlags) {
	if f.rate > 0 {
		m.clock = clock
		return
	}
	m.first = clock.Stamp()
	m.first.Synced = true
	m.shift(-time.Duration(f.readings/f.sensors+1) * time.Second)
}

func (m *room) shift(d time.Duration) {
	m.first.Wall, m.first.Since = m.first.Wall.Add(d), m.first.Since+d
}

// next is the next sensor's reading.
func (m *room) next() gateway.Reading {
	i := m.n % len(m.names)
	if m.clock != nil {
		m.first = m.clock.Stamp()
		m.first.Synced = true
	} else if i == 0 {
		m.shift(time.Second)
	}
	r := gateway.Reading{Sensor: m.names[i], At: m.first, Values: m.values[(m.n/len(m.names)+37*i)%len(m.values)]}
	m.n++
	return r
}

// putter puts a room's readings into the log.
type putter struct {
	*benchFlags
	room  *room
	log   *buffer.Log[gateway.Reading]
	queue *countedQueue
	put   chan error
}

func (*putter) String() string { return "readings" }

func (p *putter) Run(ctx context.Context) error {
	p.put <- p.all(ctx)
	return nil
}

// mostWaiting is how far the log may be ahead of the forwarder, as long as readings
// wait in memory.
const mostWaiting = 20_000

func (p *putter) all(ctx context.Context) error {
	size := cmp.Or(p.benchFlags.put, 4000)
	if p.rate > 0 {
		size = max(1, p.benchFlags.put, int(p.rate/100)) // a hundred times a second at most
	}
	begun := time.Now()
	rs := make([]gateway.Reading, 0, size)
	for p.room.n < p.readings {
		if p.rate > 0 {
			due := begun.Add(time.Duration(float64(p.room.n) / p.rate * float64(time.Second)))
			if err := sleep(ctx, time.Until(due)); err != nil {
				return err
			}
		}
		for p.window > 0 && !p.offlineFirst && p.rate == 0 && uint64(p.room.n) > p.queue.acked.Load()+mostWaiting {
			if err := sleep(ctx, time.Millisecond); err != nil {
				return err
			}
		}
		rs = rs[:0]
		for range min(size, p.readings-p.room.n) {
			rs = append(rs, p.room.next())
		}
		if err := p.log.Put(rs...); err != nil || ctx.Err() != nil {
			return cmp.Or(err, ctx.Err())
		}
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// nullServer is an HTTP server that takes everything, and holds nothing when asked.
type nullServer struct{ net.Listener }

func (nullServer) String() string { return "null server" }

func (s nullServer) Run(ctx context.Context) error {
	buffers := sync.Pool{New: func() any { return new([128 << 10]byte) }}
	h := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		buf := buffers.Get().(*[128 << 10]byte)
		defer buffers.Put(buf)
		for err := error(nil); err == nil; {
			_, err = r.Body.Read(buf[:])
		}
		if r.Method == http.MethodGet || strings.HasSuffix(r.URL.Path, "/query") {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, "[]")
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})}
	defer context.AfterFunc(ctx, func() { h.Close() })()
	if err := h.Serve(s.Listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// serveNull is the null server for a bench elsewhere.
func serveNull(ctx context.Context, address string) error {
	if err := checkListen(address); err != nil {
		return usage(fmt.Errorf("--serve: %w", err))
	}
	ln, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("--serve: %s", live.Explain(address, err))
	}
	return nullServer{ln}.Run(ctx)
}
