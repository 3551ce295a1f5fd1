package ngsi

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"campus-gateway"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"
)

const (
	apiKey   = "canary-4jggokgpepnvsb2uv4s40d59ov"
	password = "canary-mqtt-password"
)

// mqttBroker is a scripted one. Without a script it takes everything.
type mqttBroker struct {
	// connect answers the n-th CONNECT. false: no more is read.
	connect func(n int, c net.Conn, p *packets.ConnectPacket) bool
	// publish answers the k-th PUBLISH of all. false: the connection is cut.
	publish func(k int, c net.Conn, p *packets.PublishPacket) bool
	deaf    atomic.Bool // to pings

	mu       sync.Mutex
	connects int
	asked    int
	stored   []*packets.PublishPacket // that it has confirmed
}

var errRefused = &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}

// dial is a connection to b in memory.
func (b *mqttBroker) dial(context.Context, string, string) (net.Conn, error) {
	a, z := net.Pipe()
	go b.serve(z)
	return a, nil
}

func (b *mqttBroker) serve(c net.Conn) {
	defer c.Close()
	in := bufio.NewReader(c) // Pipe hands over a write only when all of it is read
	for {
		p, err := packets.ReadPacket(in)
		if err != nil {
			return
		}
		switch p := p.(type) {
		case *packets.ConnectPacket:
			b.mu.Lock()
			b.connects++
			n := b.connects
			b.mu.Unlock()
			if b.connect != nil {
				if !b.connect(n, c, p) {
					return
				}
				continue
			}
			connack(c, 0)
		case *packets.PublishPacket:
			b.mu.Lock()
			b.asked++
			k := b.asked
			b.mu.Unlock()
			if p.Qos != 1 || p.Dup {
				return // paho resends nothing
			}
			if b.publish != nil {
				if !b.publish(k, c, p) {
					return
				}
				continue
			}
			b.confirm(c, p)
		case *packets.PingreqPacket:
			if !b.deaf.Load() {
				_ = packets.NewControlPacket(packets.Pingresp).Write(c)
			}
		case *packets.DisconnectPacket:
			return
		}
	}
}

func connack(c io.Writer, code byte) bool {
	_, err := c.Write([]byte{2 << 4, 2, 0, code})
	return err == nil
}

func ack(c io.Writer, kind byte, id uint16) {
	_, _ = c.Write([]byte{kind, 2, byte(id >> 8), byte(id)})
}

// confirm keeps p and says so.
func (b *mqttBroker) confirm(c net.Conn, p *packets.PublishPacket) bool {
	b.mu.Lock()
	b.stored = append(b.stored, p)
	b.mu.Unlock()
	ack(c, 4<<4, p.MessageID)
	return true
}

// got is what b has confirmed: for each device the temperatures, as they came.
func (b *mqttBroker) got(t testing.TB) map[string][]float64 {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	all := map[string][]float64{}
	for _, p := range b.stored {
		device, values := parsePublish(t, p)
		all[device] = append(all[device], values...)
	}
	return all
}

type sent struct {
	TimeInstant string
	Temperature float64
}

func parsePublish(t testing.TB, p *packets.PublishPacket) (device string, values []float64) {
	t.Helper()
	device, ok := strings.CutPrefix(p.TopicName, "/json/"+apiKey+"/")
	device, isAttrs := strings.CutSuffix(device, "/attrs")
	if !ok || !isAttrs || p.Retain {
		t.Errorf("published on %s, retained %t", p.TopicName, p.Retain)
	}
	var list []sent
	err := json.Unmarshal(p.Payload, &list)
	if len(p.Payload) > 0 && p.Payload[0] == '{' {
		list = make([]sent, 1)
		err = json.Unmarshal(p.Payload, &list[0])
	}
	if err != nil || len(list) == 0 {
		t.Errorf("%s: %v: %s", device, err, p.Payload)
	}
	for i, g := range list {
		if i > 0 && g.TimeInstant < list[i-1].TimeInstant {
			t.Errorf("%s: not by time: %s", device, p.Payload)
		}
		values = append(values, g.Temperature)
	}
	return device, values
}

// bubble runs f in time of its own, with some of it left for what f has begun.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t); time.Sleep(2 * time.Hour) })
}

func newIOTA(t testing.TB, b *mqttBroker, cfg IOTAConfig, m *Mapper) *IOTA {
	t.Helper()
	cfg.APIKey = apiKey
	if cfg.URL == "" {
		cfg.URL = "mqtt://broker.test"
	}
	s, err := NewIOTA(cfg, m)
	if err != nil {
		t.Fatal(err)
	}
	if b != nil {
		s.dial = b.dial
	}
	t.Cleanup(s.Close)
	return s
}

// run is n readings of each of so many sensors, whose temperatures count up.
func run(sensors, n int) (*Mapper, []gateway.Reading) {
	var things []Thing
	var rs []gateway.Reading
	for i := range n {
		for k := range sensors {
			name := fmt.Sprintf("s %d", k)
			if i == 0 {
				things = append(things, Thing{Name: name, Location: &settat, Quantities: []gateway.Quantity{gateway.Temperature}})
			}
			r := reading(name, num(gateway.Temperature, float64(i)))
			r.At.Wall = noon.Add(time.Duration(i) * time.Second)
			rs = append(rs, r)
		}
	}
	return NewMapper("gw-1", things), rs
}

// persist sends rs until it is through, and returns how often it was not.
func persist(t testing.TB, s *IOTA, rs []gateway.Reading) (failures int) {
	t.Helper()
	for {
		err := s.Send(t.Context(), rs)
		if err == nil {
			return failures
		}
		if failures++; failures > 2000 {
			t.Fatalf("no end: %v", err)
		}
		retry(t, err)
		time.Sleep(time.Second)
	}
}

func retry(t testing.TB, err error) string {
	t.Helper()
	if _, ok := errors.AsType[*gateway.RetryError](err); !ok {
		t.Fatalf("got %T %v, want a *RetryError", err, err)
	}
	if strings.Contains(err.Error(), "canary") || strings.Contains(fmt.Sprintf("%+v", errors.Unwrap(err)), "canary") {
		t.Errorf("a secret is in %q", err)
	}
	return err.Error()
}

// TestIOTAMeasures: what is published, held in a file.
func TestIOTAMeasures(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m, rs := room()
		later := reading("room", num(gateway.Temperature, -3.5), num(gateway.Humidity, 48), num(gateway.BatteryLevel, 250), num(gateway.RSSI, -71))
		later.At.Wall = noon.Add(1500 * time.Millisecond).In(time.FixedZone("", 3600))
		gone := reading("gone/+#", num(gateway.Distance, 1234.5))
		rs = append([]gateway.Reading{later}, append(rs, gone)...) // not by time
		b := &mqttBroker{}
		s := newIOTA(t, b, IOTAConfig{}, m)
		if err := s.Send(t.Context(), rs); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		var got bytes.Buffer
		for _, p := range b.stored {
			parsePublish(t, p)
			fmt.Fprintf(&got, "%s\n%s\n", strings.ReplaceAll(p.TopicName, apiKey, "APIKEY"), p.Payload)
		}
		const file = "testdata/golden/iota.txt"
		if *update {
			if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil || !bytes.Equal(got.Bytes(), want) {
			t.Errorf("%s is not what is published now (-update accepts it): %v\n%s", file, err, &got)
		}
	})
}

// TestIOTAUncertain: an uncertain time is said, and taken back once.
func TestIOTAUncertain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m, rs := run(1, 4)
		rs[1].At.Earliest, rs[1].At.Latest = noon, noon.Add(time.Hour)
		b := &mqttBroker{publish: func(k int, _ net.Conn, _ *packets.PublishPacket) bool { return false }}
		s := newIOTA(t, b, IOTAConfig{}, m)
		retry(t, s.Send(t.Context(), rs[:2])) // a try that failed changes nothing
		synctest.Wait()
		b.publish = nil
		for i := range rs {
			if err := s.Send(t.Context(), rs[i:i+1]); err != nil {
				t.Fatal(err)
			}
		}
		at := rs[2].At.Wall.Format(timeForm)
		want := []string{"", noon.Format(timeForm) + "/" + noon.Add(time.Hour).Format(timeForm), at + "/" + at, ""}
		synctest.Wait()
		for i, p := range b.stored {
			var got struct{ TimeUncertain string }
			if err := json.Unmarshal(p.Payload, &got); err != nil || got.TimeUncertain != want[i] {
				t.Errorf("%d: %q, %v, want %q", i, got.TimeUncertain, err, want[i])
			}
		}
	})
}

// TestIOTASplit: messages keep below their limit, and a device's in order.
func TestIOTASplit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m, rs := run(3, 200)
		longest := 0
		var b *mqttBroker
		flying := map[string]int{}
		b = &mqttBroker{publish: func(_ int, c net.Conn, p *packets.PublishPacket) bool {
			longest = max(longest, len(p.Payload))
			b.mu.Lock()
			if flying[p.TopicName]++; flying[p.TopicName] > 1 {
				t.Errorf("two messages of one device are under way")
			}
			b.mu.Unlock()
			go func() { // in any order
				time.Sleep(time.Duration(p.MessageID%3) * time.Second)
				b.mu.Lock()
				flying[p.TopicName]--
				b.mu.Unlock()
				b.confirm(c, p)
			}()
			return true
		}}
		s := newIOTA(t, b, IOTAConfig{}, m)
		s.limit = 2000
		if err := s.Send(t.Context(), rs); err != nil {
			t.Fatal(err)
		}
		if longest > 2000 || longest < 1500 {
			t.Errorf("the longest message has %d bytes", longest)
		}
		allOf(t, b, 3, 200)
	})
}

// whole fails unless b has each value of each sensor, by time, and none twice.
func allOf(t testing.TB, b *mqttBroker, sensors, n int) {
	t.Helper()
	inOrder(t, b.got(t), sensors, n)
}

// inEffect is whole but for what came again: where a connection is cut, a PUBACK may
// be lost that was on its way.
func inEffect(t testing.TB, b *mqttBroker, sensors, n int) {
	t.Helper()
	got := b.got(t)
	for device, values := range got {
		got[device] = firsts(values)
	}
	inOrder(t, got, sensors, n)
}

func inOrder(t testing.TB, got map[string][]float64, sensors, n int) {
	t.Helper()
	if len(got) != sensors {
		t.Errorf("%d devices, want %d", len(got), sensors)
	}
	for device, values := range got {
		for i, v := range values {
			if v != float64(i) {
				t.Fatalf("%s: value %d is %v", device, i, v)
			}
		}
		if len(values) != n {
			t.Errorf("%s: %d values, want %d", device, len(values), n)
		}
	}
}

// TestIOTACuts: the broker cuts at each k-th message without having kept it, or after
// it has. What Send calls sent is there, in order; only what was under way is sent
// twice.
func TestIOTACuts(t *testing.T) {
	for k := 1; k <= 7; k++ {
		for _, kept := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d %t", k, kept), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					m, rs := run(5, 30)
					var b *mqttBroker
					b = &mqttBroker{publish: func(n int, c net.Conn, p *packets.PublishPacket) bool {
						if n%k != 0 || k == 1 && n%2 == 0 {
							return b.confirm(c, p)
						}
						if kept {
							b.mu.Lock()
							b.stored = append(b.stored, p)
							b.mu.Unlock()
						}
						return false
					}}
					s := newIOTA(t, b, IOTAConfig{MaxPayload: 1000}, m)
					failures := 0
					for len(rs) > 0 {
						n := min(50, len(rs))
						failures += persist(t, s, rs[:n])
						for _, r := range rs[:n] { // it is forgotten now
							device, v := s.Key(r.Sensor), r.Values[0].V.(float64)
							if !slices.Contains(b.got(t)[device], v) {
								t.Fatalf("%s %v: called sent, and lost", device, v)
							}
						}
						rs = rs[n:]
					}
					if failures == 0 {
						t.Error("nothing was cut")
					}
					inEffect(t, b, 5, 30)
					if len(s.taken) != 0 {
						t.Errorf("%d measures are still remembered", len(s.taken))
					}
				})
			})
		}
	}
}

// firsts is values, each only when it first comes.
func firsts(values []float64) []float64 {
	var out []float64
	seen := map[float64]bool{}
	for _, v := range values {
		if !seen[v] {
			seen[v] = true
			out = append(out, v)
		}
	}
	return out
}

// TestNaive is what the acknowledgement must not be built on: paho, as it comes, calls
// a message delivered that no broker ever confirmed. IOTA does not.
func TestNaive(t *testing.T) {
	cut := func(int, net.Conn, *packets.PublishPacket) bool { return false }
	m, rs := run(1, 1)
	bubble(t, func(t *testing.T) {
		b := &mqttBroker{publish: cut}
		o := mqtt.NewClientOptions().AddBroker("tcp://broker.test:1883")
		o.SetCustomOpenConnectionFn(func(_ *url.URL, _ mqtt.ClientOptions) (net.Conn, error) { return b.dial(t.Context(), "", "") })
		c := mqtt.NewClient(o)
		if token := c.Connect(); !token.WaitTimeout(time.Minute) || token.Error() != nil {
			t.Fatal(token.Error())
		}
		token := c.Publish("/json/"+apiKey+"/gw-1:s/attrs", 1, false, "{}")
		if !token.WaitTimeout(time.Minute) || token.Error() != nil || len(b.stored) != 0 {
			t.Errorf("paho has learnt: %v, %d stored", token.Error(), len(b.stored))
		}
		c.Disconnect(0)
		time.Sleep(time.Minute)
	})
	bubble(t, func(t *testing.T) {
		b := &mqttBroker{publish: cut}
		s := newIOTA(t, b, IOTAConfig{}, m)
		for range 10 {
			retry(t, s.Send(t.Context(), rs))
		}
	})
}

// TestIOTAOddAcks: only the PUBACK of that message, on that connection, counts.
func TestIOTAOddAcks(t *testing.T) {
	for name, c := range map[string]struct {
		answer func(c net.Conn, id uint16)
		words  string // empty: it is a confirmation
	}{
		"right":      {func(c net.Conn, id uint16) { ack(c, 4<<4, id) }, ""},
		"twice":      {func(c net.Conn, id uint16) { ack(c, 4<<4, id); ack(c, 4<<4, id) }, ""},
		"other id":   {func(c net.Conn, id uint16) { ack(c, 4<<4, id+1) }, "no PUBACK"},
		"id 0":       {func(c net.Conn, id uint16) { ack(c, 4<<4, 0) }, "no PUBACK"},
		"PUBCOMP":    {func(c net.Conn, id uint16) { ack(c, 7<<4, id) }, "not asked for"},
		"UNSUBACK":   {func(c net.Conn, id uint16) { ack(c, 11<<4, id) }, "not asked for"},
		"PUBREC":     {func(c net.Conn, id uint16) { ack(c, 5<<4, id) }, "not asked for"},
		"CONNACK":    {func(c net.Conn, id uint16) { ack(c, 2<<4, id) }, "another"},
		"short":      {func(c net.Conn, id uint16) { _, _ = c.Write([]byte{4 << 4, 0}) }, "cannot have"},
		"half":       {func(c net.Conn, id uint16) { _, _ = c.Write([]byte{4 << 4, 2, byte(id >> 8)}) }, "no PUBACK"},
		"then cut":   {func(c net.Conn, id uint16) { ack(c, 4<<4, id); c.Close() }, ""},
		"cut, other": {func(c net.Conn, id uint16) { ack(c, 4<<4, id+7); c.Close() }, "before all was confirmed"},
		"nothing":    {func(net.Conn, uint16) {}, "no PUBACK"},
		"only pings": {func(c net.Conn, _ uint16) { _, _ = c.Write([]byte{13 << 4, 0}) }, "no PUBACK"},
		"a message":  {func(c net.Conn, id uint16) { _, _ = c.Write([]byte{3 << 4, 3, 0, 1, 'a'}); ack(c, 4<<4, id) }, ""},
		"no message": {func(c net.Conn, id uint16) { _, _ = c.Write([]byte{3<<4 | 2, 3, 0xff, 0xff, 'a'}) }, "before all was confirmed"},
		"endless":    {func(c net.Conn, _ uint16) { _, _ = c.Write([]byte{3 << 4, 0xff, 0xff, 0xff, 0xff, 0xff, 1}) }, "no end"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				m, rs := run(1, 1)
				var b *mqttBroker
				b = &mqttBroker{publish: func(k int, conn net.Conn, p *packets.PublishPacket) bool {
					if k > 1 {
						return b.confirm(conn, p)
					}
					c.answer(conn, p.MessageID)
					return true
				}}
				s := newIOTA(t, b, IOTAConfig{}, m)
				begun := time.Now()
				err := s.Send(t.Context(), rs)
				if took := time.Since(begun); took > 21*time.Second {
					t.Errorf("it took %v", took)
				}
				if c.words == "" {
					if err != nil {
						t.Fatal(err)
					}
					s.Close()
					return
				}
				if words := retry(t, err); !strings.Contains(words, c.words) || !strings.Contains(words, "mqtt://broker.test:1883") {
					t.Errorf("it says %q, want %q", words, c.words)
				}
				err = s.Send(t.Context(), rs)
				synctest.Wait()
				if err != nil || b.connects != 2 || len(b.stored) != 1 {
					t.Errorf("afterwards: %v, %d connections, %d stored", err, b.connects, len(b.stored))
				}
			})
		})
	}
}

// TestIOTAEarlyAck: a PUBACK that comes before its message has gone out is none.
func TestIOTAEarlyAck(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m, rs := run(1, 2)
		var b *mqttBroker
		b = &mqttBroker{publish: func(k int, c net.Conn, p *packets.PublishPacket) bool {
			ack(c, 4<<4, p.MessageID+1)
			return k == 1 && b.confirm(c, p)
		}}
		s := newIOTA(t, b, IOTAConfig{}, m)
		if err := s.Send(t.Context(), rs[:1]); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		retry(t, s.Send(t.Context(), rs[1:]))
	})
}

// TestIOTANoConnection: each trouble has its words, the same each time, and no secret.
func TestIOTANoConnection(t *testing.T) {
	say := func(b ...byte) func(int, net.Conn, *packets.ConnectPacket) bool {
		return func(_ int, c net.Conn, _ *packets.ConnectPacket) bool { _, _ = c.Write(b); return false }
	}
	for name, c := range map[string]struct {
		connect func(n int, c net.Conn, p *packets.ConnectPacket) bool
		dial    func(context.Context, string, string) (net.Conn, error)
		words   string
	}{
		"nobody": {dial: func(context.Context, string, string) (net.Conn, error) { return nil, errRefused }, words: "connection refused: is the broker running"},
		"no name": {dial: func(context.Context, string, string) (net.Conn, error) {
			return nil, &net.DNSError{Name: "broker.test"}
		}, words: "broker.test cannot be resolved"},
		"no route":  {dial: func(ctx context.Context, _, _ string) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }, words: "takes too long"},
		"cut":       {connect: say(), words: "closed too early"},
		"version":   {connect: say(2<<4, 2, 0, 1), words: "does not speak MQTT 3.1.1"},
		"id":        {connect: say(2<<4, 2, 0, 2), words: "shorter client_id"},
		"not ready": {connect: say(2<<4, 2, 0, 3), words: "the broker is not ready"},
		"password":  {connect: say(2<<4, 2, 0, 4), words: "user name or password: check its username and password_file"},
		"denied":    {connect: say(2<<4, 2, 0, 5), words: "does not let us in"},
		"code 6":    {connect: say(2<<4, 2, 0, 6), words: "refuses us with code 6"},
		"code 254":  {connect: say(2<<4, 2, 0, 254), words: "refuses us with code 254"},
		"code 255":  {connect: say(2<<4, 2, 0, 255), words: "refuses us with code 255"},
		"HTTP":      {connect: say([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")...), words: "does not answer as an MQTT broker does"},
		"TLS":       {connect: say(0x15, 3, 3, 0, 2, 2, 70), words: "does not answer as an MQTT broker does"},
		"huge":      {connect: say(2<<4, 0xff, 0xff, 0xff, 0x7f), words: "does not answer as an MQTT broker does"},
		"half":      {connect: say(2<<4, 2, 0), words: "closed too early"},
		"silent":    {connect: func(int, net.Conn, *packets.ConnectPacket) bool { return true }, words: "takes too long"},
		"slow": {connect: func(_ int, c net.Conn, _ *packets.ConnectPacket) bool {
			for _, x := range []byte{2 << 4, 2, 0, 0} {
				time.Sleep(4 * time.Second)
				if _, err := c.Write([]byte{x}); err != nil {
					return false
				}
			}
			return true
		}, words: "takes too long"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				m, rs := run(1, 1)
				b := &mqttBroker{connect: c.connect}
				s := newIOTA(t, b, IOTAConfig{Credentials: func() (string, string, error) { return "u", password, nil }}, m)
				if c.dial != nil {
					s.dial = c.dial
				}
				words := ""
				for i := range 2 {
					begun := time.Now()
					said := retry(t, s.Send(t.Context(), rs))
					if took := time.Since(begun); took > connectTimeout {
						t.Errorf("it took %v", took)
					}
					if !strings.Contains(said, c.words) || i > 0 && said != words {
						t.Errorf("it says %q, then %q, want %q", words, said, c.words)
					}
					words = said
				}
				synctest.Wait()
				if c.dial == nil && b.connects != 2 {
					t.Errorf("it has connected %d times", b.connects)
				}
				s.dial, b.connect = b.dial, nil
				if err := s.Send(t.Context(), rs); err != nil {
					t.Errorf("afterwards: %v", err)
				}
			})
		})
	}
}

// TestIOTAConnects: who we say we are, and that one connection serves many.
func TestIOTAConnects(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m, rs := run(1, 3)
		var first *packets.ConnectPacket
		b := &mqttBroker{connect: func(_ int, c net.Conn, p *packets.ConnectPacket) bool { first = p; return connack(c, 0) }}
		asked := 0
		var broken error
		s := newIOTA(t, b, IOTAConfig{Credentials: func() (string, string, error) { asked++; return "user", password, broken }}, m)
		if s.String() != "iota-json mqtt://broker.test:1883" {
			t.Error(s)
		}
		for i := range rs {
			if err := s.Send(t.Context(), rs[i:i+1]); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Hour) // pings keep it
		}
		synctest.Wait()
		if b.connects != 1 || asked != 1 || first.ClientIdentifier != "campus-gateway-gw-1" || first.Username != "user" || string(first.Password) != password ||
			!first.CleanSession || first.ProtocolVersion != 4 || first.Keepalive != 30 || first.WillFlag {
			t.Errorf("%d connections, %v", b.connects, first)
		}
		// The broker's machine is gone: the pings tell.
		b.deaf.Store(true)
		time.Sleep(50 * time.Second)
		if s.link.wire.why() == nil {
			t.Error("a dead connection is not noticed")
		}
		b.deaf.Store(false)
		broken = errors.New("read the password: permission denied")
		if words := retry(t, s.Send(t.Context(), rs)); words != "no user name and password for mqtt://broker.test:1883: read the password: permission denied" {
			t.Error(words)
		}
		broken = nil
		if err := s.Send(t.Context(), rs); err != nil {
			t.Error(err)
		}
		s.Close()
		err := s.Send(t.Context(), rs)
		synctest.Wait()
		if err != nil || b.connects != 3 {
			t.Errorf("after Close: %v, %d connections", err, b.connects)
		}
	})
}

// TestIOTAStops: Send ends with its context, wherever it is.
func TestIOTAStops(t *testing.T) {
	m, rs := run(5, 100)
	for name, b := range map[string]*mqttBroker{
		"connecting": {connect: func(int, net.Conn, *packets.ConnectPacket) bool { return true }},
		"waiting":    {publish: func(int, net.Conn, *packets.PublishPacket) bool { return true }},
		"publishing": {connect: func(_ int, c net.Conn, _ *packets.ConnectPacket) bool {
			connack(c, 0)
			time.Sleep(time.Hour)
			return false
		}},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := newIOTA(t, b, IOTAConfig{}, m)
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
				defer cancel()
				begun := time.Now()
				if err := s.Send(ctx, rs); !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) != 3*time.Second {
					t.Errorf("%v after %v", err, time.Since(begun))
				}
				if s.limit != defaultPayload {
					t.Errorf("it takes that for a message that is too large: %d", s.limit)
				}
			})
		})
	}
}

// TestIOTARejects: what can never be sent, alone.
func TestIOTARejects(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m, rs := run(1, 5)
		rs[1].Values[0].V = true
		rs[2].At.Wall = time.Date(1969, 1, 1, 0, 0, 0, 0, time.UTC)
		for _, q := range gateway.Quantities() {
			if q.Kind() == gateway.Number && q != gateway.Temperature {
				rs[3].Values = append(rs[3].Values, num(q, 1e12+0.5))
			}
		}
		b := &mqttBroker{}
		s := newIOTA(t, b, IOTAConfig{MaxPayload: 1000}, m)
		got := rejections(t, s.Send(t.Context(), rs))
		if len(got) != 3 || !strings.Contains(got[1], "got a bool") || !strings.Contains(got[2], "1969") || !strings.Contains(got[3], "write a larger max_payload") {
			t.Errorf("%v", got)
		}
		if v := b.got(t)["gw-1:s~200"]; !slices.Equal(v, []float64{0, 4}) {
			t.Errorf("published %v", v)
		}
	})
}

// TestIOTATooLarge: a broker that throws us out for a large message gets smaller ones.
func TestIOTATooLarge(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m, rs := run(2, 3000)
		var b *mqttBroker
		b = &mqttBroker{publish: func(_ int, c net.Conn, p *packets.PublishPacket) bool {
			return len(p.Payload) < 40_000 && b.confirm(c, p)
		}}
		s := newIOTA(t, b, IOTAConfig{}, m)
		if n := persist(t, s, rs); n > 3 || n < 1 {
			t.Errorf("it took %d failures", n)
		}
		inEffect(t, b, 2, 3000)
	})
}

// TestIOTAFlaps: E1 and E2 of the test plan: a broker that comes and goes leaves
// nothing behind: no goroutine (the bubble's end would wait for it for ever), no lock.
func TestIOTAFlaps(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m, rs := run(4, 20)
		var b *mqttBroker
		b = &mqttBroker{connect: func(n int, c net.Conn, _ *packets.ConnectPacket) bool {
			switch n % 4 {
			case 0:
				return false
			case 1:
				connack(c, 0)
				return false
			}
			time.AfterFunc(time.Duration(n%500)*time.Millisecond, func() { c.Close() })
			return connack(c, 0)
		}, publish: func(k int, c net.Conn, p *packets.PublishPacket) bool {
			time.Sleep(time.Duration(k%97) * time.Millisecond)
			return k%5 != 0 && b.confirm(c, p)
		}}
		s := newIOTA(t, b, IOTAConfig{MaxPayload: 1000}, m)
		before := 0
		for n := 0; b.connects < 1000; n++ {
			synctest.Wait()
			if err := s.Send(t.Context(), rs); err != nil {
				retry(t, err)
			}
			if n == 10 {
				time.Sleep(time.Minute)
				synctest.Wait()
				before = runtime.NumGoroutine()
			}
			if n%100 == 0 {
				time.Sleep(time.Minute)
			}
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if after := runtime.NumGoroutine(); after > before+3 {
			t.Errorf("%d goroutines, %d after 10 flaps", after, before)
		}
	})
}

// TestIOTALeaks: over TCP, where paho does not take note of a connection that is
// closed at our end, none of its goroutines stays either.
func TestIOTALeaks(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &mqttBroker{publish: func(k int, _ net.Conn, _ *packets.PublishPacket) bool { return k%2 == 0 }} // silent, or cut
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { b.serve(c) })
		}
	})
	before := runtime.NumGoroutine()
	m, rs := run(1, 1)
	s := newIOTA(t, nil, IOTAConfig{URL: "mqtt://" + ln.Addr().String(), Timeout: 2 * time.Millisecond}, m)
	for range 100 {
		retry(t, s.Send(t.Context(), rs))
	}
	after := 0
	for range 300 {
		if after = runtime.NumGoroutine(); after <= before+3 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if after > before+3 {
		t.Errorf("%d goroutines, %d before", after, before)
	}
	ln.Close()
	wg.Wait()
}

// TestIOTALanes: several goroutines share one connection, and its end.
func TestIOTALanes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m, rs := run(4, 50)
		var b *mqttBroker
		b = &mqttBroker{publish: func(k int, c net.Conn, p *packets.PublishPacket) bool { return k%9 != 0 && b.confirm(c, p) }}
		s := newIOTA(t, b, IOTAConfig{MaxPayload: 1000}, m)
		var wg sync.WaitGroup
		for k := range 4 {
			wg.Go(func() {
				var own []gateway.Reading
				for i := k; i < len(rs); i += 4 {
					own = append(own, rs[i])
				}
				persist(t, s, own)
			})
		}
		wg.Wait()
		inEffect(t, b, 4, 50)
	})
}

// TestIOTAHuge: E3 of the test plan: an announced 256 MB costs nothing.
func TestIOTAHuge(t *testing.T) {
	var announced net.Conn
	m, rs := run(1, 1)
	b := &mqttBroker{publish: func(_ int, c net.Conn, p *packets.PublishPacket) bool {
		announced = c
		_, _ = c.Write([]byte{3 << 4, 0xff, 0xff, 0xff, 0x7f})
		_, _ = c.Write(make([]byte, 1<<20))
		return false
	}}
	s := newIOTA(t, b, IOTAConfig{}, m)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	words := retry(t, s.Send(t.Context(), rs))
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 3<<20 { // the test's own 1 MiB among them
		t.Errorf("%d bytes were allocated", grown)
	}
	if !strings.Contains(words, "more than 262144 bytes") {
		t.Error(words)
	}
	if _, err := announced.Write([]byte{0}); err == nil {
		t.Error("the connection is open still")
	}
	s.Close()
}

// TestIOTATLS: over TLS, to a server of a private authority.
func TestIOTATLS(t *testing.T) {
	ts := httptest.NewUnstartedServer(nil) // for its certificate
	ts.StartTLS()
	defer ts.Close()
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: ts.TLS.Certificates})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	b := &mqttBroker{}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { b.serve(c) })
		}
	})
	m, rs := run(1, 1)
	private, err := NewTLS(TLSConfig{CAFile: write(t, "ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ts.Certificate().Raw})))})
	if err != nil {
		t.Fatal(err)
	}
	s := newIOTA(t, nil, IOTAConfig{URL: "mqtts://" + ln.Addr().String(), TLS: private}, m)
	if err := s.Send(t.Context(), rs); err != nil {
		t.Error(err)
	}
	s.Close()
	s = newIOTA(t, nil, IOTAConfig{URL: "mqtts://" + ln.Addr().String()}, m)
	if words := retry(t, s.Send(t.Context(), rs)); !strings.Contains(words, "as ca_file") {
		t.Error(words)
	}
	allOf(t, b, 1, 1)
	ln.Close()
	wg.Wait()
}

func TestNewIOTA(t *testing.T) {
	m := NewMapper("gw-1", nil)
	for words, change := range map[string]func(*IOTAConfig){
		"want mqtt://":            func(c *IOTAConfig) { c.URL = "http://host" },
		"not its URL":             func(c *IOTAConfig) { c.URL = "mqtt://:1883" },
		"does not belong":         func(c *IOTAConfig) { c.URL = "mqtt://u:" + password + "@host" },
		"leave out":               func(c *IOTAConfig) { c.URL = "mqtt://host/x" },
		"API key":                 func(c *IOTAConfig) { c.APIKey = "" },
		"API key cannot":          func(c *IOTAConfig) { c.APIKey = "canary/x" },
		"MQTT topic":              func(c *IOTAConfig) { c.APIKey = "canary-#" },
		"printable characters, w": func(c *IOTAConfig) { c.APIKey = "canary\x00" },
		"client id":               func(c *IOTAConfig) { c.ClientID = "a b" },
		"messages of 10 bytes":    func(c *IOTAConfig) { c.MaxPayload = 10 },
	} {
		cfg := IOTAConfig{URL: "mqtt://host", APIKey: "k"}
		if _, err := NewIOTA(cfg, m); err != nil {
			t.Fatal(err)
		}
		change(&cfg)
		if _, err := NewIOTA(cfg, m); err == nil || !strings.Contains(err.Error(), words) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%v, want %q", err, words)
		}
	}
	if s, err := NewIOTA(IOTAConfig{URL: "mqtts://[::1]", APIKey: "k"}, m); err != nil || s.address != "[::1]:8883" || s.secure != "::1" {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := NewIOTA(IOTAConfig{URL: "mqtt://host", APIKey: "k"}, NewMapper(strings.Repeat("x", maxGateway+1), nil)); err == nil {
		t.Error("a gateway id that is too long passes")
	}
}

// FuzzKey: a device id fits into a topic and an agent, and comes back.
func FuzzKey(f *testing.F) {
	f.Add("gw-1", "room")
	f.Add("gw:1", "a/b+c#d")
	f.Add("~", "غرفة\x00$")
	f.Fuzz(func(t *testing.T, gw, sensor string) {
		s := &IOTA{mapper: NewMapper(gw, nil)}
		key := s.Key(sensor)
		if strings.ContainsFunc(key, func(r rune) bool { return r > '~' || !plain(byte(r)) && r != '~' && r != ':' }) {
			t.Errorf("%q of %q is a device %q", sensor, gw, key)
		}
		a, z, ok := strings.Cut(key, ":")
		back, err := IDUnescape(a)
		back2, err2 := IDUnescape(z)
		if !ok || err != nil || err2 != nil || back != gw || back2 != sensor {
			t.Errorf("%q comes back as %q of %q", key, back2, back)
		}
	})
}

// FuzzWire: whatever a broker sends, in whatever pieces, paho sees only whole packets
// of a size that is allowed, and only PUBACKs of what was sent count.
func FuzzWire(f *testing.F) {
	f.Add([]byte{2 << 4, 2, 0, 0, 4 << 4, 2, 0, 1, 13 << 4, 0}, 1)
	f.Add([]byte{2 << 4, 2, 0, 0, 3 << 4, 0xff, 0xff, 0xff, 0x7f}, 3)
	f.Add([]byte{2 << 4, 2, 0, 0, 3 << 4, 5, 0, 1, 'a', 'b', 'c', 4 << 4, 2, 0, 2}, 100)
	f.Fuzz(func(t *testing.T, in []byte, piece int) {
		w := newWire(conn{in: bytes.NewReader(in)})
		w.writing <- struct{}{}
		if _, err := w.Write(append([]byte{3<<4 | 2, 5, 0, 1, 'a', 0, 1}, []byte(nil)...)); err != nil {
			t.Fatal(err)
		}
		var seen []byte
		b := make([]byte, min(max(piece, 1), 5000))
		for {
			n, err := w.Read(b)
			seen = append(seen, b[:n]...)
			if err != nil {
				break
			}
		}
		if !bytes.HasPrefix(in, seen) || w.why() == nil {
			t.Fatalf("read %q of %q", seen, in)
		}
		acked := false
		for r := bytes.NewReader(seen); ; {
			kind, err := r.ReadByte()
			size, err2 := binary.ReadUvarint(r)
			if err != nil || err2 != nil {
				break
			}
			if size > maxInbound {
				t.Fatalf("paho is told of %d bytes", size)
			}
			body := make([]byte, size)
			if _, err := io.ReadFull(r, body); err != nil {
				break
			}
			acked = acked || kind>>4 == packetPuback && bytes.Equal(body, []byte{0, 1})
		}
		if w.took(2) || w.took(1) != acked || w.took(1) {
			t.Errorf("%q: acknowledged %t", seen, acked)
		}
	})
}

// conn is only read.
type conn struct {
	net.Conn
	in io.Reader
}

func (c conn) Read(b []byte) (int, error)       { return c.in.Read(b) }
func (c conn) Write(b []byte) (int, error)      { return len(b), nil }
func (c conn) SetWriteDeadline(time.Time) error { return nil }

func BenchmarkIOTA(b *testing.B) {
	m, rs := run(100, 5)
	s := newIOTA(b, &mqttBroker{}, IOTAConfig{}, m)
	for b.Loop() {
		if err := s.Send(b.Context(), rs); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N*len(rs))/b.Elapsed().Seconds(), "readings/s")
}
