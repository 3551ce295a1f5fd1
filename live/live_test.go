package live

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"campus-gateway"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func reading(sensor string, at time.Time, vs ...gateway.Value) gateway.Reading {
	return gateway.Reading{Sensor: sensor, At: gateway.Stamp{Wall: at}, Values: vs}
}

func newServer() *Server {
	b := &Board{}
	b.Reset([]Sensor{{Name: "room", Driver: "bme280"}, {Name: `<img src=x onerror=alert(1)>`, Driver: "contact"}})
	return &Server{Gateway: "gw-1", Board: b, Log: slog.New(slog.DiscardHandler)}
}

func get(s *Server, method, host, path string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "http://"+host+path, nil)
	r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, net.Addr(&net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 8080})))
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, r)
	return w
}

func TestSensors(t *testing.T) {
	s := newServer()
	at := time.Now().Add(-3 * time.Second)
	s.Board.SetState("room", gateway.OK, nil)
	s.Board.Put(reading("room", at, gateway.Value{Quantity: gateway.Temperature, V: 21.5}, gateway.Value{Quantity: gateway.Pressure, V: 97530.2}))
	s.Board.Put(reading("nobody", at, gateway.Value{Quantity: gateway.Temperature, V: 1.0}))
	s.Board.SetState(`<img src=x onerror=alert(1)>`, gateway.Gone, errors.New("no such line"))
	w := get(s, "GET", "localhost:8080", "/api/v1/sensors")
	var got struct {
		Gateway string
		Sensors []struct {
			Name, Driver, State, Why string
			Time                     *time.Time
			Age                      *float64 `json:"age_seconds"`
			Values                   []struct {
				Quantity, Unit string
				Value          any
			}
		}
	}
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got.Gateway != "gw-1" || len(got.Sensors) != 2 {
		t.Fatalf("%+v", got)
	}
	room, odd := got.Sensors[0], got.Sensors[1]
	if room.State != "ok" || room.Driver != "bme280" || !room.Time.Equal(at.Truncate(time.Millisecond)) || *room.Age < 3 || *room.Age > 10 {
		t.Errorf("%+v", room)
	}
	if len(room.Values) != 2 || room.Values[0].Value != 21.5 || room.Values[0].Unit != "°C" || room.Values[1].Quantity != "pressure" {
		t.Errorf("%+v", room.Values)
	}
	if odd.State != "gone" || odd.Why != "no such line" || odd.Time != nil || odd.Values == nil {
		t.Errorf("%+v", odd)
	}
	if strings.Contains(w.Body.String(), "<img") {
		t.Error("a sensor's name went out as markup")
	}
}

// Times are shown as they are known, not as the clock was then.
func TestTimesAreMended(t *testing.T) {
	s := newServer()
	s.Clock = gateway.NewClock()
	known := s.Clock.Stamp()
	known.Wall, known.Synced = known.Wall.Add(1000*time.Hour), true
	s.Clock.Saw(known)
	r := reading("room", time.Now(), gateway.Value{Quantity: gateway.Temperature, V: 21.5})
	r.At = s.Clock.Stamp()
	s.Board.Put(r)
	var got struct {
		Time    time.Time
		Sensors []struct {
			Time time.Time
			Age  float64 `json:"age_seconds"`
		}
	}
	if err := json.Unmarshal(get(s, "GET", "localhost", "/api/v1/sensors").Body.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	right := r.At.Wall.Add(1000 * time.Hour)
	if got.Sensors[0].Time.Sub(right).Abs() > 10*time.Millisecond || got.Time.Before(right.Add(-10*time.Millisecond)) || got.Sensors[0].Age < -0.01 || got.Sensors[0].Age > 10 {
		t.Errorf("%+v, want %v", got, right)
	}
}

// Names are rebound, addresses are not: only our own are answered.
func TestHosts(t *testing.T) {
	name, _ := os.Hostname()
	s := newServer()
	for host, want := range map[string]int{
		"localhost:8080": 200, "127.0.0.1:8080": 200, "[::1]:8080": 200, "192.0.2.7:8080": 200, "192.0.2.7": 200,
		name: 200, strings.ToUpper(name) + ".local:8080": 200,
		"192.0.2.8:8080": 421, "evil.example": 421, "localhost.evil.example": 421, name + ".evil.example": 421,
	} {
		if got := get(s, "GET", host, "/healthz").Code; got != want {
			t.Errorf("%s: %d, want %d", host, got, want)
		}
	}
}

func TestRoutes(t *testing.T) {
	s := newServer()
	for _, c := range []struct {
		method, path string
		want         int
	}{
		{"GET", "/healthz", 200}, {"GET", "/readyz", 503}, {"GET", "/metrics", 200}, {"GET", "/api/v1/sensors", 200}, {"HEAD", "/api/v1/sensors", 200},
		{"POST", "/api/v1/sensors", 405}, {"DELETE", "/metrics", 405}, {"PUT", "/healthz", 405},
		{"GET", "/debug/pprof/", 404}, {"GET", "/", 404}, {"GET", "/api/v1/../../etc/passwd", 307},
	} {
		w := get(s, c.method, "localhost", c.path)
		if w.Code != c.want {
			t.Errorf("%s %s: %d, want %d", c.method, c.path, w.Code, c.want)
		}
		if w.Header().Get("X-Content-Type-Options") != "nosniff" || w.Header().Get("Access-Control-Allow-Credentials") != "" {
			t.Errorf("%s %s: headers %v", c.method, c.path, w.Header())
		}
		if readable := w.Header().Get("Access-Control-Allow-Origin") == "*"; readable != (c.method == "GET" || c.method == "HEAD") {
			t.Errorf("%s %s: readable from other pages: %v", c.method, c.path, readable)
		}
	}
	s.SetReady(true)
	if w := get(s, "GET", "localhost", "/readyz"); w.Code != 200 {
		t.Errorf("ready, and /readyz says %d", w.Code)
	}
}

func TestMetrics(t *testing.T) {
	s := newServer()
	s.Metrics = func(w io.Writer) { fmt.Fprintln(w, "extra 1") }
	s.Board.SetState("room", gateway.OK, nil)
	s.Board.Put(reading("room", time.Unix(1_800_000_000, 0), gateway.Value{Quantity: gateway.Temperature, V: 21.5}, gateway.Value{Quantity: gateway.Contact, V: true}))
	text := get(s, "GET", "localhost", "/metrics").Body.String()
	for _, want := range []string{
		`gateway_sensor_up{sensor="room",driver="bme280"} 1`,
		`gateway_reading{sensor="room",quantity="temperature",unit="°C"} 21.5`,
		`gateway_reading{sensor="room",quantity="contact",unit=""} 1`,
		`gateway_reading_timestamp_seconds{sensor="room"} 1.8e+09`,
		"\nextra 1\n", "process_resident_memory_bytes ",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in:\n%.2000s", want, text)
		}
	}
}

// What is known of a sensor that stays, stays; another driver under its name is
// another sensor.
func TestReset(t *testing.T) {
	b := &Board{}
	b.Reset([]Sensor{{Name: "a", Driver: "x"}, {Name: "b", Driver: "x"}})
	b.Put(reading("a", time.Now(), gateway.Value{Quantity: gateway.Temperature, V: 1.0}))
	b.Put(reading("b", time.Now(), gateway.Value{Quantity: gateway.Temperature, V: 2.0}))
	b.Reset([]Sensor{{Name: "b", Driver: "y"}, {Name: "a", Driver: "x"}})
	got := b.Sensors()
	if got[0].Newest != nil || got[1].Newest == nil || got[1].Name != "a" {
		t.Errorf("%+v", got)
	}
}

// A crowd of clients that say nothing does not keep the others out for good, and
// the server ends with its context.
func TestServeCrowd(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := newServer()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Serve(ctx, ln) }()
	var idle []net.Conn
	for range maxConnections {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, c)
	}
	idle[0].Close()
	idle[1].Close()
	client := &http.Client{Timeout: 4 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			r, err := client.Get("http://" + ln.Addr().String() + "/healthz")
			if err != nil {
				t.Error(err)
				return
			}
			r.Body.Close()
		})
	}
	wg.Wait()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	for _, c := range idle {
		c.Close()
	}
}

func TestExplain(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, err = net.Listen("tcp", ln.Addr().String())
	if got := Explain(ln.Addr().String(), err); !strings.Contains(got, "another program listens") {
		t.Error(got)
	}
	if got := Explain(":80", fmt.Errorf("listen: %w", os.ErrPermission)); !strings.Contains(got, "above 1023") {
		t.Error(got)
	}
}
