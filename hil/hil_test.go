//go:build hil

package hil

import (
	"encoding/json"
	"fmt"
	"math"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"campus-gateway/ngsi/sandbox"
)

const gatewayYAML = `
gateway: {id: hil, site: outdoor, location: {longitude: -7.62, latitude: 33.00}} # outdoor models take what is below zero
broker: {url: "http://10.0.2.2:%s"}
log: {dir: /tmp/log}
clock: {hold: 0s} # a board has no time
sensors:
- {name: kernel, driver: tmp102, variant: tmp105, address: 0x48, interval: 500ms, shared: true, entity: {type: WeatherObserved, id: kernel}}
- {name: own, driver: tmp102, variant: tmp105, address: 0x49, interval: 500ms, entity: {type: WeatherObserved, id: own}}
- {name: plug, driver: tmp102, variant: tmp105, address: 0x4a, interval: 500ms, entity: {type: WeatherObserved, id: plug}}
- {name: pressure, driver: dps310, pressure_oversampling: 1, address: 0x77, interval: 1s, shared: true, entity: {type: WeatherObserved, id: pressure}}
- {name: door, driver: contact, pin: GPIO6, entity: {type: DeviceMeasurement, id: door}}
- {name: meter, driver: pulse, pin: GPIO5, edge: both, interval: 1s, entity: {type: DeviceMeasurement, id: meter}}
`

// rounding is how far two ways to say one temperature may be apart, °C. What is
// set here are whole steps of the TMP105, which go through unchanged; the kernel
// rounds to thousandths.
const rounding = 0.001

func TestSabrelite(t *testing.T) {
	broker, port := listen(t)
	b := boot(t, "sabrelite", files(t, map[string]string{"gateway.yaml": fmt.Sprintf(gatewayYAML, port)})[0],
		packaged(t, "linux-armv6"),
		build(t, "arm", "bus.test", "../drivers/bus", "test", "-c", "-tags", "hil"))
	b.sh("i2ctransfer -y 1 w1@0x70 0x01") // the mux: plugged in
	b.sh("echo tmp105 0x48 > /sys/bus/i2c/devices/i2c-1/new_device")
	b.sh("echo dps310 0x77 > /sys/bus/i2c/devices/i2c-1/new_device")

	b.step("two goroutines on our bus never mix their data", func(t *testing.T) {
		t.Log(b.sh("./bus.test -test.v"))
	})

	b.step("an address that the kernel owns is refused", func(t *testing.T) {
		out, ok := b.try("./gateway read tmp102 --set variant=tmp105 --address 0x48")
		t.Log(out)
		if ok || !strings.Contains(out, "kernel's driver") || !strings.Contains(out, "shared") || strings.Contains(out, "\n") {
			t.Errorf("want one line that names the kernel's driver and `shared`")
		}
	})

	defer func() {
		if t.Failed() {
			t.Log(b.sh("cat /tmp/gateway.log"))
		}
	}()
	b.start("./gateway run --config gateway.yaml")

	b.step("temperatures arrive as set, and as the kernel's driver reads them", func(t *testing.T) {
		for _, c := range []float64{23.5, -7.25, 0, -0.0625, 99.9375, 0.0625, -55, 127.9375, 21} {
			b.heat("kernel", c)
			b.heat("own", 25-c)
			await(t, fmt.Sprintf("%v and %v °C", c, 25-c), func() bool {
				return near(broker.newest("kernel temperature"), c) && near(broker.newest("own temperature"), 25-c)
			})
			if kernel := b.number("/sys/bus/i2c/devices/1-0048/hwmon/hwmon*/temp1_input") / 1000; !near(broker.newest("kernel temperature"), kernel) {
				t.Errorf("%v °C arrived, the kernel's driver says %v", broker.newest("kernel temperature"), kernel)
			}
		}
	})

	b.step("the DPS310 arrives as the kernel's driver reads it", func(t *testing.T) {
		celsius := b.number("/sys/bus/i2c/devices/1-0077/iio:device*/in_temp_input") / 1000
		hectopascal := b.number("/sys/bus/i2c/devices/1-0077/iio:device*/in_pressure_input") * 10
		await(t, "pressure", func() bool { return broker.newest("pressure atmosphericPressure") != "" })
		for key, want := range map[string]float64{"temperature": celsius, "atmosphericPressure": hectopascal} {
			if got := broker.newest("pressure " + key); math.Abs(number(got)-want) > 0.02 {
				t.Errorf("%s: %s arrived, the kernel's driver says %v", key, got, want)
			}
		}
	})

	b.step("a contact arrives", func(t *testing.T) {
		for _, open := range []bool{true, false, true, false} {
			b.drive(6, open)
			await(t, fmt.Sprint("contact ", open), func() bool { return broker.newest("door numValue") == strconv.Itoa(map[bool]int{true: 1}[open]) })
		}
	})

	b.step("every edge is counted", func(t *testing.T) {
		const edges = 300
		before := number(broker.newest("meter numValue"))
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for i := range edges {
			<-tick.C
			b.drive(5, i%2 == 0)
		}
		await(t, "300 edges", func() bool { return number(broker.newest("meter numValue")) >= before+edges })
		time.Sleep(3 * time.Second) // more would come with the next readings
		if got := number(broker.newest("meter numValue")) - before; got != edges {
			t.Errorf("%v edges were counted of %v", got, edges)
		}
	})

	b.step("a chip that is pulled off is told, alone, and comes back", func(t *testing.T) {
		b.heat("plug", 11)
		await(t, "11 °C", func() bool { return near(broker.newest("plug temperature"), 11) })
		b.sh("i2ctransfer -y 1 w1@0x70 0x00")
		await(t, "the gateway to say that the chip is gone", func() bool { return b.sensors()["plug"].State == "gone" })
		count := broker.count("own temperature")
		await(t, "others to go on", func() bool { return broker.count("own temperature") >= count+3 })
		for name, s := range b.sensors() {
			if (s.State == "gone") != (name == "plug") {
				t.Errorf("%s is %s: %s", name, s.State, s.Why)
			}
		}
		b.heat("plug", 12)
		b.sh("i2ctransfer -y 1 w1@0x70 0x01")
		await(t, "12 °C", func() bool { return near(broker.newest("plug temperature"), 12) })
		log := b.sh("grep -E 'sensor (gone|back)' /tmp/gateway.log")
		t.Log(log)
		if strings.Count(log, "sensor gone") != 1 || strings.Count(log, "sensor back") != 1 || strings.Count(log, "plug") != 2 {
			t.Error("want one line that the plug is gone, and one that it is back")
		}
	})

	b.step("nothing arrives that was never set", func(t *testing.T) {
		for _, c := range broker.all("kernel temperature") {
			if !anyNear(c, 0, 23.5, -7.25, -0.0625, 99.9375, 0.0625, -55, 127.9375, 21) {
				t.Errorf("%s °C", c)
			}
		}
		for _, c := range broker.all("plug temperature") {
			if !anyNear(c, 0, 11, 12) {
				t.Errorf("plug: %s °C", c)
			}
		}
	})

	b.step("it ends when told to", func(t *testing.T) { b.stop() })
}

// A board that starts the gateway as its init would: how long the lab waits, after
// a power cut, for its first reading at the broker.
func TestStart(t *testing.T) {
	broker, port := listen(t)
	b := boot(t, "sabrelite", append(files(t, map[string]string{
		"gateway.yaml": fmt.Sprintf(gatewayYAML, port),
		"start":        "./gateway run --config gateway.yaml > /tmp/gateway.log 2>&1 &\n",
	}), packaged(t, "linux-armv6"))...)
	b.tellFirst(broker)
}

// The Debian package's own service, in its sandbox, on a kernel with a real bus and
// real lines: what is closed is closed, and the chips can be read all the same.
func TestService(t *testing.T) {
	broker, port := listen(t)
	if out, err := exec.Command("make", "-C", "..", "package").CombinedOutput(); err != nil {
		t.Fatalf("make package: %v\n%s", err, out)
	}
	debs, err := filepath.Glob("../build/gateway_*_armhf.deb")
	if err != nil || len(debs) != 1 {
		t.Fatalf("%v, %v", debs, err)
	}
	b := boot(t, "sabrelite", append(files(t, map[string]string{
		"gateway.yaml": strings.Replace(fmt.Sprintf(gatewayYAML, port), "log: {dir: /tmp/log}\n", "", 1),
		// As the package's postinst does it, once there is the group.
		"put": "cp gateway.yaml /debian/etc/gateway/\n" +
			"printf 'z /etc/gateway 0750 root gateway\\nz /etc/gateway/gateway.yaml 0640 root gateway\\n' > /debian/etc/tmpfiles.d/gateway.conf\n",
	}), debs[0])...)
	defer func() {
		if t.Failed() {
			t.Log(b.sh("journalctl -u gateway --no-pager | tail -n 40"))
		}
	}()

	b.step("it starts by itself", func(t *testing.T) {
		b.tellFirst(broker)
		b.heat("own", 23.5)
		await(t, "23.5 °C", func() bool { return near(broker.newest("own temperature"), 23.5) })
		for _, open := range []bool{true, false} {
			b.drive(6, open)
			await(t, fmt.Sprint("contact ", open), func() bool { return broker.newest("door numValue") == strconv.Itoa(map[bool]int{true: 1}[open]) })
		}
	})

	const main = "$(systemctl show -P MainPID gateway)"
	b.step("it has no rights", func(t *testing.T) {
		status := b.sh("cat /proc/" + main + "/status")
		for _, want := range []string{"CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
			if !strings.Contains(status, want) {
				t.Errorf("no %q in\n%s", want, status)
			}
		}
		if strings.Contains(status, "Uid:\t0\t") {
			t.Error("it runs as root")
		}
	})

	// A shell in the service's group of processes has its device policy and its limit
	// of memory, and nothing else of it: it is root.
	const inside = "sh -c 'echo $$ > /sys/fs/cgroup/system.slice/gateway.service/cgroup.procs; "
	b.step("it may use buses and lines, and no other device", func(t *testing.T) {
		for _, dev := range []string{"/dev/i2c-1", "/dev/gpiochip0", "/dev/null"} {
			if out, ok := b.try(inside + ": < " + dev + "'"); !ok {
				t.Errorf("%s: %s", dev, out)
			}
		}
		for _, dev := range []string{"/dev/kmsg", "/dev/ttymxc0", "/dev/watchdog"} {
			b.sh("test -c " + dev)
			if out, ok := b.try(inside + ": < " + dev + "'"); ok || !strings.Contains(out, "Operation not permitted") {
				t.Errorf("%s can be opened: %s", dev, out)
			}
		}
	})

	b.step("more memory than it may have ends it, and it comes back", func(t *testing.T) {
		before := b.sh("echo " + main)
		b.try(inside + "exec tail /dev/zero'") // grows until the kernel ends it
		await(t, "a new process", func() bool { now := b.sh("echo " + main); return now != "0" && now != before })
		// Its own limit's, not the whole board's.
		if out := b.sh("dmesg | sed -n 's/.*oom-kill:/oom-kill:/p'"); !strings.Contains(out, "oom_memcg=/system.slice/gateway.service") {
			t.Errorf("it was not its own limit that ended it:\n%s", out)
		}
		n := broker.count("own temperature")
		await(t, "readings again", func() bool { return broker.count("own temperature") > n })
	})
}

func TestRaspberryPi(t *testing.T) {
	yaml := filepath.Join(t.TempDir(), "gateway.yaml")
	if err := os.WriteFile(yaml, []byte(`
gateway: {id: hil}
broker: {url: "http://127.0.0.1:1026"}
log: {dir: /tmp/log}
clock: {hold: 0s} # a board has no time
sensors:
- {name: stuck, driver: tmp102, variant: tmp105, bus: i2c-1, address: 0x48, interval: 500ms}
- {name: other, driver: tmp102, variant: tmp105, bus: i2c-2, address: 0x4a, interval: 500ms}
`), 0o600); err != nil {
		t.Fatal(err)
	}
	b := boot(t, "raspi3b", yaml, packaged(t, "linux-arm64"))

	b.step("read measures once", func(t *testing.T) {
		for _, c := range []float64{23.5, -40, 125} {
			b.heat("kernel", c)
			out := b.sh("./gateway read tmp102 --set variant=tmp105 --bus i2c-1 --address 0x48")
			t.Log(out)
			fields := strings.Fields(out[strings.LastIndex(out, "temperature"):])
			if len(fields) != 3 || !near(fields[1], c) || fields[2] != "°C" {
				t.Errorf("want %v °C", c)
			}
		}
	})

	b.step("read says at once that nobody is there", func(t *testing.T) {
		begun := time.Now()
		out, ok := b.try("./gateway read tmp102 --set variant=tmp105 --bus i2c-1 --address 0x49")
		t.Logf("%s (after %v)", out, time.Since(begun).Round(time.Millisecond))
		if ok || strings.Contains(out, "\n") || !strings.Contains(out, "i2c-1(49)") || time.Since(begun) > 5*time.Second {
			t.Error("want one line that names the chip")
		}
	})

	b.step("a bus that hangs is told, alone, and comes back", func(t *testing.T) {
		b.start("./gateway run --config gateway.yaml")
		b.heat("kernel", 20)
		b.heat("other", 30)
		await(t, "both sensors", func() bool { s := b.sensors(); return s["stuck"].State == "ok" && s["other"].State == "ok" })
		// The controller is taken from its driver while the gateway holds the bus:
		// unbind waits, and each transaction on it blocks until the kernel gives up.
		b.sh("( (echo 3f804000.i2c > /sys/bus/platform/drivers/i2c-bcm2835/unbind) & )") // no job of this shell, which would tell of its end
		begun := time.Now()
		await(t, "the sensor on the hung bus to be told", func() bool { return b.sensors()["stuck"].State == "gone" })
		t.Logf("gone after %v: %s", time.Since(begun).Round(time.Millisecond), b.sensors()["stuck"].Why)
		for range 10 {
			if s := b.sensors()["other"]; s.State != "ok" || s.Age > 5 {
				t.Errorf("the other bus: %+v", s)
			}
			time.Sleep(300 * time.Millisecond)
		}
		if out := b.sh("./gateway status --dir /tmp/log --json"); strings.Contains(out, `"hung"`) {
			t.Errorf("the watchdog would take a hung bus for a hung loop: %s", out)
		}
	})
}

// packaged builds the program as the Debian package has it: for armhf that is
// ARMv6, which every Pi can run.
func packaged(t *testing.T, target string) string {
	t.Helper()
	if out, err := exec.Command("make", "-C", "..", target).CombinedOutput(); err != nil {
		t.Fatalf("make %s: %v\n%s", target, err, out)
	}
	program, err := os.ReadFile("../build/gateway-" + target)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "gateway")
	if err := os.WriteFile(file, program, 0o700); err != nil {
		t.Fatal(err)
	}
	return file
}

// build compiles a package for a board and returns the file.
func build(t *testing.T, goarch, name, pkg string, command ...string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	cmd := exec.Command("go", append(command, "-o", file, pkg)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+goarch, "GOARM=7")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return file
}

// files writes files for a board and returns their paths.
func files(t *testing.T, texts map[string]string) (paths []string) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range texts {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	return paths
}

// listen is a broker on the host, at a port that boards reach.
func listen(t *testing.T) (a *arrivals, port string) {
	t.Helper()
	a = &arrivals{values: map[string][]string{}}
	server := httptest.NewServer(sandbox.New(sandbox.Options{OnUpdate: a.put}))
	t.Cleanup(server.Close)
	_, port, _ = net.SplitHostPort(server.Listener.Addr().String())
	return a, port
}

// tellFirst waits for the first measured entity and tells how long after the start of
// the board's kernel it came.
func (b *board) tellFirst(broker *arrivals) {
	b.t.Helper()
	var at time.Time
	await(b.t, "the first reading", func() bool {
		broker.mu.Lock()
		defer broker.mu.Unlock()
		at = broker.first
		return !at.IsZero()
	})
	b.t.Logf("from the start of the kernel to the first delivered reading: %.1f s", b.kernel+at.Sub(b.up).Seconds())
}

// arrivals is what has come to the broker.
type arrivals struct {
	mu     sync.Mutex
	first  time.Time           // of a measured entity
	values map[string][]string // as JSON, by entity and attribute ("own temperature")
}

func (a *arrivals) put(u sandbox.Update) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if u.Type == "WeatherObserved" && a.first.IsZero() {
		a.first = time.Now()
	}
	for _, attr := range u.Attrs {
		key := u.ID[strings.LastIndexByte(u.ID, ':')+1:] + " " + attr.Name
		a.values[key] = append(a.values[key], attr.Value)
	}
}

func (a *arrivals) all(key string) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]string(nil), a.values[key]...)
}

func (a *arrivals) count(key string) int { return len(a.all(key)) }

// newest is the last value that came, "" if there is none.
func (a *arrivals) newest(key string) string {
	all := a.all(key)
	if len(all) == 0 {
		return ""
	}
	return all[len(all)-1]
}

// number is NaN for what is none, which compares unequal to everything.
func number(text string) float64 {
	x, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
	if err != nil {
		return math.NaN()
	}
	return x
}

func near(text string, want float64) bool { return math.Abs(number(text)-want) <= rounding }

func anyNear(text string, want ...float64) bool {
	for _, w := range want {
		if near(text, w) {
			return true
		}
	}
	return false
}

// await looks until something holds.
func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !holds(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited %v in vain for %s", patience, what)
		}
	}
}

// step is a part of a test that leaves the board to the next part.
func (b *board) step(name string, f func(*testing.T)) {
	whole := b.t
	whole.Run(name, func(t *testing.T) {
		b.t = t
		f(t)
	})
	b.t = whole
}

// number reads a file that holds one.
func (b *board) number(pattern string) float64 {
	b.t.Helper()
	return number(b.sh("cat " + pattern))
}

// start starts a gateway and waits until it is ready.
func (b *board) start(command string) {
	b.t.Helper()
	b.sh(command + " > /tmp/gateway.log 2>&1 & true")
	await(b.t, "the gateway to be ready", func() bool {
		out, _ := b.try("wget -q -O - http://127.0.0.1:8080/readyz")
		return out == "ready"
	})
}

// stop ends the gateway, which must succeed at that.
func (b *board) stop() {
	b.t.Helper()
	b.sh("kill $!; wait $!")
}

// sensor is how a sensor is doing, as the gateway tells it over HTTP.
type sensor struct {
	Name  string
	State string
	Why   string
	Age   float64 `json:"age_seconds"`
}

func (b *board) sensors() map[string]sensor {
	b.t.Helper()
	var answer struct{ Sensors []sensor }
	text := b.sh("wget -q -O - http://127.0.0.1:8080/api/v1/sensors")
	if err := json.Unmarshal([]byte(text), &answer); err != nil {
		b.t.Fatalf("%v in %s", err, text)
	}
	byName := map[string]sensor{}
	for _, s := range answer.Sensors {
		byName[s.Name] = s
	}
	return byName
}
