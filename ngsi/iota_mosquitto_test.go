package ngsi

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"campus-gateway"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

// mosquitto is a real broker, which can be killed and started again.
type mosquitto struct {
	address, conf string
	cmd           *exec.Cmd
}

func newMosquitto(t *testing.T, conf ...string) *mosquitto {
	t.Helper()
	path, err := exec.LookPath("mosquitto")
	if err != nil {
		path, err = exec.LookPath("/usr/sbin/mosquitto")
	}
	if err != nil {
		why := "mosquitto is not installed: apt-get install -y mosquitto"
		if os.Getenv("CI") == "true" {
			t.Fatal(why)
		}
		fmt.Printf("SKIPPED: %s: %s\n", t.Name(), why)
		t.Skip("SKIPPED: " + why)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := &mosquitto{address: ln.Addr().String(), conf: filepath.Join(t.TempDir(), "mosquitto.conf"), cmd: &exec.Cmd{Path: path}}
	ln.Close()
	_, port, _ := net.SplitHostPort(m.address)
	lines := append([]string{"listener " + port + " 127.0.0.1", "persistence false", "max_inflight_messages 0", "max_queued_messages 0", "set_tcp_nodelay true"}, conf...)
	if os.Getuid() == 0 {
		lines = append(lines, "user root") // it would change to a user who may not read a test's files
	}
	if err := os.WriteFile(m.conf, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	m.start(t)
	t.Cleanup(m.kill)
	return m
}

func (m *mosquitto) start(t *testing.T) {
	t.Helper()
	m.cmd = exec.Command(m.cmd.Path, "-c", m.conf)
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for range 500 {
		c, err := net.Dial("tcp", m.address)
		if err == nil {
			c.Close()
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("mosquitto does not listen")
}

func (m *mosquitto) kill() {
	_ = m.cmd.Process.Kill()
	_ = m.cmd.Wait()
}

// subscribe hands what comes for the agent to f until the broker is gone; done is
// closed then. At QoS 0 mosquitto writes a message out before it confirms it to who
// published it, so what a killed one has confirmed is on its way, whatever it kept.
func (m *mosquitto) subscribe(t *testing.T, f func(*packets.PublishPacket)) (done chan struct{}) {
	t.Helper()
	c, err := net.Dial("tcp", m.address)
	if err != nil {
		t.Fatal(err)
	}
	connect := packets.NewControlPacket(packets.Connect).(*packets.ConnectPacket)
	connect.ProtocolName, connect.ProtocolVersion, connect.CleanSession, connect.ClientIdentifier = "MQTT", 4, true, "agent"
	sub := packets.NewControlPacket(packets.Subscribe).(*packets.SubscribePacket)
	sub.MessageID, sub.Topics, sub.Qoss = 1, []string{"/json/+/+/attrs"}, []byte{0}
	for _, p := range []packets.ControlPacket{connect, sub} {
		if err := p.Write(c); err != nil {
			t.Fatal(err)
		}
		if _, err := packets.ReadPacket(c); err != nil { // CONNACK, SUBACK
			t.Fatal(err)
		}
	}
	done = make(chan struct{})
	go func() {
		defer close(done)
		defer c.Close()
		for {
			p, err := packets.ReadPacket(c)
			if err != nil {
				return
			}
			if p, ok := p.(*packets.PublishPacket); ok {
				f(p)
			}
		}
	}()
	return done
}

// TestMosquitto: a real broker hands on what is published.
func TestMosquitto(t *testing.T) {
	q := newMosquitto(t, "allow_anonymous true")
	got := make(chan *packets.PublishPacket, 10)
	q.subscribe(t, func(p *packets.PublishPacket) { got <- p })
	m := NewMapper("gw 1", []Thing{{Name: "door/2", Quantities: []gateway.Quantity{gateway.Contact}}})
	r := reading("door/2", gateway.Value{Quantity: gateway.Contact, V: true})
	s := newIOTA(t, nil, IOTAConfig{URL: "mqtt://" + q.address}, m)
	if err := s.Send(t.Context(), []gateway.Reading{r}); err != nil {
		t.Fatal(err)
	}
	at := noon.Format(timeForm)
	want := `{"TimeInstant":"` + at + `","dateObserved":"` + at + `","refDevice":"urn:ngsi-ld:Device:gw~201:door~2F2","contact":1}`
	if p := <-got; p.TopicName != "/json/"+apiKey+"/gw~201:door~2F2/attrs" || string(p.Payload) != want || p.Retain {
		t.Errorf("%s %s, want %s", p.TopicName, p.Payload, want)
	}
}

// TestMosquittoDenies: who may not in keeps everything, and is told why.
func TestMosquittoDenies(t *testing.T) {
	q := newMosquitto(t, "allow_anonymous false")
	m, rs := run(1, 1)
	s := newIOTA(t, nil, IOTAConfig{URL: "mqtt://" + q.address, Credentials: func() (string, string, error) { return "u", password, nil }}, m)
	for range 2 {
		if words := retry(t, s.Send(t.Context(), rs)); !strings.Contains(words, "check its username and password_file") {
			t.Error(words)
		}
	}
}

// TestMosquittoKilled: a real broker is killed 20 times under load. Nothing that was
// called sent is missing at a subscriber, and each device's order is kept.
func TestMosquittoKilled(t *testing.T) {
	q := newMosquitto(t, "allow_anonymous true")
	var mu sync.Mutex
	received := map[string][]float64{}
	collect := func(p *packets.PublishPacket) {
		device, values := parsePublish(t, p)
		mu.Lock()
		defer mu.Unlock()
		received[device] = append(received[device], values...)
	}
	done := q.subscribe(t, collect)

	const kills, sensors = 20, 4
	var up sync.RWMutex // held by the killer until there is a subscriber again
	m, _ := run(sensors, 1)
	s := newIOTA(t, nil, IOTAConfig{URL: "mqtt://" + q.address, MaxPayload: 1000}, m)
	failures, total := 0, 0
	stop := make(chan struct{})
	var load sync.WaitGroup
	load.Go(func() {
		for over := false; !over; total += 200 {
			select {
			case <-stop:
				over = true
			default:
			}
			var rs []gateway.Reading
			for i := range 200 * sensors {
				r := reading(fmt.Sprintf("s %d", i%sensors), num(gateway.Temperature, float64(total+i/sensors)))
				r.At.Wall = noon.Add(time.Duration(total+i/sensors) * time.Second)
				rs = append(rs, r)
			}
			for {
				up.RLock()
				err := s.Send(t.Context(), rs)
				up.RUnlock()
				if err == nil {
					break
				}
				if failures++; failures > 5000 {
					t.Error(err)
					return
				}
				time.Sleep(5 * time.Millisecond)
			}
		}
	})
	func() {
		defer load.Wait()
		defer close(stop)
		for n := range kills {
			time.Sleep(time.Duration(30+n*17%60) * time.Millisecond)
			q.kill() // in the midst of a Send
			func() {
				up.Lock()
				defer up.Unlock()
				<-done
				q.start(t)
				done = q.subscribe(t, collect)
			}()
		}
		time.Sleep(50 * time.Millisecond)
	}()
	s.Close()
	q.kill()
	<-done
	if failures < kills/4 {
		t.Errorf("only %d Sends failed: nothing was under way at the kills", failures)
	}
	again := 0
	for device, values := range received {
		received[device] = firsts(values)
		again += len(values) - len(received[device])
	}
	inOrder(t, received, sensors, total)
	t.Logf("%d readings sent, %d Sends failed, %d readings came twice", total*sensors, failures, again)
}
