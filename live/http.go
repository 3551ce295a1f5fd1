package live

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"campus-gateway"

	"github.com/VictoriaMetrics/metrics"
)

// Server serves a Board over HTTP, read only:
//
//	GET /api/v1/sensors   the newest reading and the state of every sensor, JSON
//	GET /api/v1/uplinks   how the ways to the brokers are doing, JSON
//	GET /healthz          200: the program answers
//	GET /readyz           200: sensors are being read and kept; else 503
//	GET /metrics          Prometheus text
//	GET /contexts/NAME    an @context, for brokers without the internet
//
// Anyone who reaches the address may read; nothing can be changed. A request
// must name a host that is ours (see ours), which stops web pages elsewhere
// from reading a lab through a visitor's browser by DNS rebinding. The @contexts
// are the same everywhere: a broker may have them under any name of this machine.
type Server struct {
	Listen  string // address and port
	Gateway string // id
	Board   *Board
	Clock   *gateway.Clock  // puts the times right that are shown; may be nil
	Metrics func(io.Writer) // the other rooms' metrics, appended to ours; may be nil
	Uplinks func() []Uplink // may be nil
	Log     *slog.Logger

	Contexts fs.FS // JSON-LD @context files; may be nil

	ready atomic.Bool
}

// SetReady says whether sensors are being read and kept.
func (s *Server) SetReady(ready bool) { s.ready.Store(ready) }

// String names the task.
func (s *Server) String() string { return "live view on " + s.Listen }

// Limits of what a client may ask and hold (a Pi has few resources, and a lab
// has curious students).
const (
	maxConnections = 64
	retryListen    = 10 * time.Second
)

// Run serves until ctx ends and returns nil. An address that cannot be had is
// told once and tried again: the sensors go on without the view.
func (s *Server) Run(ctx context.Context) error {
	for told := false; ctx.Err() == nil; {
		ln, err := net.Listen("tcp", s.Listen)
		if err == nil {
			return s.Serve(ctx, ln)
		}
		if !told {
			s.Log.Error("live view not served: "+Explain(s.Listen, err), "listen", s.Listen)
			told = true
		}
		select {
		case <-ctx.Done():
		case <-time.After(retryListen):
		}
	}
	return nil
}

// Explain says in a person's words why an address cannot be listened on.
func Explain(listen string, err error) string {
	switch {
	case strings.Contains(err.Error(), "address already in use"):
		return fmt.Sprintf("another program listens on %s already: stop it, or choose another port", listen)
	case errors.Is(err, os.ErrPermission):
		return fmt.Sprintf("%s needs more rights: choose a port above 1023", listen)
	}
	return err.Error()
}

// Serve serves on ln until ctx ends, closes it and returns nil.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	srv := &http.Server{
		Handler:           s.Handler(),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       15 * time.Second,
		WriteTimeout:      15 * time.Second,
		IdleTimeout:       60 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if srv.Shutdown(closing) != nil {
			srv.Close()
		}
	})
	defer stop()
	err := srv.Serve(Limit(ln, maxConnections))
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("live view: %w", err)
}

// Handler answers the requests.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", s.readyz)
	mux.HandleFunc("GET /api/v1/sensors", s.sensors)
	mux.HandleFunc("GET /api/v1/uplinks", s.uplinks)
	mux.HandleFunc("GET /metrics", s.metrics)
	mux.HandleFunc("GET "+contextPath+"{name}", s.context)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Content-Security-Policy", "default-src 'self'; frame-ancestors 'none'")
		h.Set("Cache-Control", "no-store")
		if !ours(r) && !strings.HasPrefix(r.URL.Path, contextPath) {
			http.Error(w, "this gateway is not called that: use its address, its host name or localhost", http.StatusMisdirectedRequest)
			return
		}
		if r.Method == http.MethodGet || r.Method == http.MethodHead {
			h.Set("Access-Control-Allow-Origin", "*") // readings are open to students' own pages; no credentials exist
		}
		mux.ServeHTTP(w, r)
	})
}

// ours accepts the address the connection came in on, localhost, and the host's
// name with and without .local. Addresses cannot be rebound, only names.
func ours(r *http.Request) bool {
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
	if ip := net.ParseIP(host); ip != nil {
		local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
		return !ok || local.IP.Equal(ip) || ip.IsLoopback()
	}
	name, err := os.Hostname()
	name = strings.ToLower(name)
	return host == "localhost" || err == nil && name != "" && (host == name || host == name+".local")
}

func (s *Server) readyz(w http.ResponseWriter, _ *http.Request) {
	if !s.ready.Load() {
		http.Error(w, "starting or stopping", http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ready")
}

const contextPath = "/contexts/"

// context serves an @context. Brokers keep what they have fetched: it changes with
// the gateway's version only.
func (s *Server) context(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	var b []byte
	err := fs.ErrNotExist
	if s.Contexts != nil && strings.HasSuffix(name, ".jsonld") {
		b, err = fs.ReadFile(s.Contexts, name)
	}
	if err != nil {
		http.Error(w, "there is no such @context here", http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "application/ld+json")
	w.Header().Set("Cache-Control", "public, max-age=86400")
	http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(b))
}

type sensorsJSON struct {
	Gateway string       `json:"gateway"`
	Time    time.Time    `json:"time"`
	Sensors []sensorJSON `json:"sensors"`
}

type sensorJSON struct {
	Name   string        `json:"name"`
	Driver string        `json:"driver"`
	State  gateway.State `json:"state"`
	Why    string        `json:"why,omitempty"`
	Since  time.Time     `json:"since"`                 // of the state
	Time   *time.Time    `json:"time,omitempty"`        // of the newest reading
	Age    *float64      `json:"age_seconds,omitempty"` // of the newest reading
	Values []valueJSON   `json:"values"`
}

type valueJSON struct {
	Quantity gateway.Quantity `json:"quantity"`
	Value    any              `json:"value"`
	Unit     string           `json:"unit,omitempty"`
}

func (s *Server) sensors(w http.ResponseWriter, _ *http.Request) {
	now := time.Now().UTC()
	if s.Clock != nil {
		now = s.Clock.Now()
	}
	out := sensorsJSON{Gateway: s.Gateway, Time: now.Truncate(time.Millisecond), Sensors: []sensorJSON{}}
	for _, x := range s.Board.Sensors() {
		j := sensorJSON{Name: x.Name, Driver: x.Driver, State: x.State, Why: x.Why, Since: x.Changed.UTC().Truncate(time.Millisecond), Values: []valueJSON{}}
		if x.Newest != nil {
			at := s.at(x.Newest).Truncate(time.Millisecond)
			age := float64(now.Sub(at).Milliseconds()) / 1000
			j.Time, j.Age = &at, &age
			for _, v := range x.Newest.Values {
				j.Values = append(j.Values, valueJSON{v.Quantity, v.V, v.Quantity.Unit()})
			}
		}
		out.Sensors = append(out.Sensors, j)
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(out) // the client has gone: nobody is left to be told
}

func (s *Server) uplinks(w http.ResponseWriter, _ *http.Request) {
	out := struct {
		Gateway string   `json:"gateway"`
		Uplinks []Uplink `json:"uplinks"`
	}{s.Gateway, []Uplink{}}
	if s.Uplinks != nil {
		out.Uplinks = append(out.Uplinks, s.Uplinks()...)
	}
	for i := range out.Uplinks {
		u := &out.Uplinks[i]
		u.Seconds, u.Down = u.Latency.Seconds(), u.Down.UTC().Truncate(time.Second)
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(out) // the client has gone: nobody is left to be told
}

// at is when a reading was taken, as well as it is known.
func (s *Server) at(r *gateway.Reading) time.Time {
	if s.Clock != nil {
		at, _ := s.Clock.Mend(r.At) // as it is, as long as it cannot be dated
		return at.Wall.UTC()
	}
	return r.At.Wall.UTC()
}

func (s *Server) metrics(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	for _, x := range s.Board.Sensors() {
		up := uint64(0)
		if x.State == gateway.OK {
			up = 1
		}
		metrics.WriteGaugeUint64(w, fmt.Sprintf("gateway_sensor_up{sensor=%q,driver=%q}", x.Name, x.Driver), up)
		if x.Newest == nil {
			continue
		}
		metrics.WriteGaugeFloat64(w, fmt.Sprintf("gateway_reading_timestamp_seconds{sensor=%q}", x.Name), float64(s.at(x.Newest).UnixMilli())/1000)
		for _, v := range x.Newest.Values {
			name := fmt.Sprintf("gateway_reading{sensor=%q,quantity=%q,unit=%q}", x.Name, string(v.Quantity), v.Quantity.Unit())
			switch value := v.V.(type) {
			case float64:
				metrics.WriteGaugeFloat64(w, name, value)
			case bool:
				metrics.WriteGaugeUint64(w, name, map[bool]uint64{true: 1}[value])
			}
		}
	}
	if s.Metrics != nil {
		s.Metrics(w)
	}
	metrics.WriteProcessMetrics(w)
}

// Limit is ln with at most n connections at a time.
func Limit(ln net.Listener, n int) net.Listener {
	return &limitedListener{Listener: ln, slots: make(chan struct{}, n)}
}

// limitedListener accepts at most cap(slots) connections at a time.
type limitedListener struct {
	net.Listener
	slots chan struct{}
}

func (l *limitedListener) Accept() (net.Conn, error) {
	l.slots <- struct{}{}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &limitedConn{Conn: c, free: sync.OnceFunc(func() { <-l.slots })}, nil
}

type limitedConn struct {
	net.Conn
	free func()
}

func (c *limitedConn) Close() error {
	defer c.free()
	return c.Conn.Close()
}
