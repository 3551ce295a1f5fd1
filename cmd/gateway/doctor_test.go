//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"campus-gateway/drivers"
	"campus-gateway/drivers/sim"
	"campus-gateway/ngsi/sandbox"

	"periph.io/x/conn/v3/i2c"
	"periph.io/x/conn/v3/physic"
)

// clinic is a patient in good health, of which each test takes something away.
type clinic struct {
	t *testing.T
	*computer
	dir    string // beside the root
	config string
	unit   map[string]string
	broker *httptest.Server
	wire   *wires
}

var noon = time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)

func newClinic(t *testing.T) *clinic {
	dir := t.TempDir()
	board := simulated{sim.NewBoard(sim.NewRoom(noon, 60))}
	c := &clinic{t: t, dir: dir, wire: &wires{board: board, Host: board}}
	c.computer = &computer{
		root: filepath.Join(dir, "root"), os: "linux", uid: 1000, now: func() time.Time { return noon }, limit: checkLimit,
		command: func(_ context.Context, name string, args ...string) (string, error) {
			switch {
			case name == "systemctl" && args[0] == "show":
				var b strings.Builder
				for k, v := range c.unit {
					fmt.Fprintf(&b, "%s=%s\n", k, v)
				}
				return b.String(), nil
			case name == "dpkg":
				return "??5?????? c /etc/gateway/gateway.yaml\n", errors.New("exit status 2")
			}
			return "inactive\ninactive\ninactive\ninactive\ninactive\n", errors.New("exit status 3")
		},
		open:    func(string) error { return nil },
		space:   func(string) (int64, int64, error) { return 20 << 30, 28 << 30, nil },
		write:   func(context.Context, string) (float64, time.Duration, error) { return 20, 5 * time.Millisecond, nil },
		host:    func() (drivers.Host, func()) { return c.wire, func() {} },
		synced:  []clockSource{{"systemd-timesyncd", func(context.Context) error { return nil }}},
		zone:    func(string) (*time.Location, error) { return time.FixedZone("+00", 0), nil },
		resolve: func(context.Context, string) ([]string, error) { return []string{"192.0.2.7"}, nil },
		dial:    (&net.Dialer{}).DialContext,
		proxy:   func(*http.Request) (*url.URL, error) { return nil, nil },
	}
	c.unit = map[string]string{"LoadState": "loaded", "ActiveState": "inactive", "SubState": "dead", "UnitFileState": "enabled", "ExecMainStatus": "0", "Result": "success", "NRestarts": "0"}
	for name, text := range map[string]string{
		"/etc/os-release":                                             "PRETTY_NAME=\"Debian GNU/Linux 13 (trixie)\"\n",
		"/proc/device-tree/model":                                     "Raspberry Pi 4 Model B Rev 1.4\x00",
		"/usr/lib/systemd/system/gateway.service":                     "[Service]\n",
		"/etc/systemd/system/multi-user.target.wants/gateway.service": "",
		"/etc/passwd":                                                 "root:x:0:0::/root:/bin/sh\ngateway:x:990:990::/var/lib/gateway:/usr/sbin/nologin\n",
		"/etc/group":                                                  fmt.Sprintf("root:x:999999:\ni2c:x:%d:\ngpio:x:99998:\nspi:x:99997:\n", os.Getgid()),
		"/etc/timezone":                                               "Africa/Casablanca\n",
		"/usr/lib/systemd/systemd-journald":                           "",
		"/usr/lib/systemd/systemd-timesyncd":                          "",
		"/usr/lib/systemd/journald.conf.d/40-rpi-volatile-storage.conf": "[Journal]\nStorage=volatile\n",
		"/etc/systemd/journald.conf.d/99-gateway.conf":                  "[Journal]\nStorage=persistent\n",
		"/usr/lib/udev/rules.d/60-gateway.rules":                        "",
		"/usr/bin/raspi-config":                                         "",
		"/boot/firmware/config.txt":                                     "dtparam=i2c_arm=on\n",
		"/boot/firmware/cmdline.txt":                                    "root=/dev/mmcblk0p2 rootwait\n",
		"/proc/cmdline":                                                 "root=/dev/mmcblk0p2 rootwait\n",
		"/proc/self/mountinfo":                                          "25 1 179:2 / / rw,noatime shared:1 - ext4 /dev/mmcblk0p2 rw\n26 25 0:20 / /run rw shared:2 - tmpfs tmpfs rw\nnonsense\n",
		"/sys/fs/cgroup/cgroup.controllers":                             "cpuset cpu io memory pids\n",
		"/sys/bus/w1/devices/28-0123":                                   "",
		"/sys/class/hwmon/hwmon1/name":                                  "rpi_volt\n",
		"/sys/class/hwmon/hwmon1/in0_lcrit_alarm":                       "0\n",
		"/sys/devices/platform/soc/soc:firmware/get_throttled":          "0\n",
		"/sys/block/mmcblk0/device/life_time":                           "0x01 0x02\n",
		"/sys/block/mmcblk0/device/pre_eol_info":                        "0x01\n",
		"/sys/fs/ext4/mmcblk0p2/errors_count":                           "0\n",
		"/dev/i2c-1":                                                    "",
		"/etc/gateway/secrets/token":                                    "geheim\n",
	} {
		c.file(name, text)
	}
	c.mode("/dev/i2c-1", 0o660)
	c.mode("/etc/gateway/secrets", 0o700)
	c.broker = httptest.NewServer(dated(sandbox.New(sandbox.Options{})))
	t.Cleanup(c.broker.Close)
	c.config = fmt.Sprintf("gateway: {id: gw-1, location: {longitude: -7.6, latitude: 33}}\nbroker: {url: %q}\nlog: {dir: %q}\nlive: {http: {listen: off}}\nsensors:\n  - {name: climate, driver: bme280}\n", c.broker.URL, c.log())
	return c
}

// neverAnswer leaves a client waiting until it goes.
func neverAnswer(_ http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body) // until then nobody sees that the client goes
	<-r.Context().Done()
}

// dated makes a broker tell the time of the clinic.
func dated(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", noon.Format(http.TimeFormat))
		h.ServeHTTP(w, r)
	})
}

func (c *clinic) log() string { return filepath.Join(c.dir, "log") }

func (c *clinic) file(name, text string) {
	c.t.Helper()
	path := c.path(name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
		c.t.Fatal(err)
	}
}

func (c *clinic) mode(name string, m fs.FileMode) {
	c.t.Helper()
	if err := os.Chmod(c.path(name), m); err != nil {
		c.t.Fatal(err)
	}
}

func (c *clinic) gone(names ...string) {
	c.t.Helper()
	for _, n := range names {
		if err := os.RemoveAll(c.path(n)); err != nil {
			c.t.Fatal(err)
		}
	}
}

func (c *clinic) link(to, name string) {
	c.t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(c.path(name)), 0o755), os.Symlink(to, c.path(name))); err != nil {
		c.t.Fatal(err)
	}
}

// set replaces a part of the configuration, which must be there.
func (c *clinic) set(old, text string) {
	c.t.Helper()
	if !strings.Contains(c.config, old) {
		c.t.Fatalf("%q is not in the configuration", old)
	}
	c.config = strings.ReplaceAll(c.config, old, text)
}

// daemon is one that answers at the log's socket.
func (c *clinic) daemon(s logState) {
	c.t.Helper()
	s.Daemon = true
	c.answers(filepath.Join(c.log(), socketName), func(w http.ResponseWriter, _ *http.Request) { _ = writeJSON(w, s) })
}

func (c *clinic) answers(socket string, h http.HandlerFunc) {
	c.t.Helper()
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		c.t.Fatal(err)
	}
	ln, err := net.Listen("unix", socket)
	if err != nil {
		c.t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	c.t.Cleanup(func() { srv.Close() })
	go srv.Serve(ln)
}

// public is a daemon that answers everybody on the machine.
func (c *clinic) public(status string) {
	c.answers(c.path("/run/gateway/status.sock"), func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/status" {
			fmt.Fprint(w, status)
		}
	})
}

// view is a daemon's live view.
func (c *clinic) view(sensors, uplinks string) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/api/v1/uplinks" {
			fmt.Fprintf(w, `{"gateway":"gw-1","uplinks":[%s]}`, uplinks)
			return
		}
		fmt.Fprintf(w, `{"gateway":"gw-1","sensors":[%s]}`, sensors)
	}))
	c.t.Cleanup(srv.Close)
	c.set("listen: off", "listen: "+srv.Listener.Addr().String())
}

// to sends the gateway to another broker.
func (c *clinic) to(h http.HandlerFunc) {
	srv := httptest.NewServer(h)
	c.t.Cleanup(srv.Close)
	c.set(c.broker.URL, srv.URL)
}

// secure puts the broker behind a certificate.
func (c *clinic) secure(from, until time.Time, hosts ...string) (ca string) {
	c.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		c.t.Fatal(err)
	}
	x := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "broker"}, NotBefore: from, NotAfter: until, IsCA: true, BasicConstraintsValid: true}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			x.IPAddresses = append(x.IPAddresses, ip)
		} else {
			x.DNSNames = append(x.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, x, x, &key.PublicKey, key)
	if err != nil {
		c.t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(c.broker.Config.Handler)
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	srv.Config.ErrorLog = nil
	srv.StartTLS()
	c.t.Cleanup(srv.Close)
	ca = filepath.Join(c.dir, "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		c.t.Fatal(err)
	}
	c.set(fmt.Sprintf("{url: %q}", c.broker.URL), fmt.Sprintf("{url: %q, ca_file: %q}", srv.URL, ca))
	return ca
}

// mqtt answers to each connection with a code, or with nothing that is MQTT.
func (c *clinic) mqtt(answer []byte) {
	c.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				b := make([]byte, 500)
				n, _ := conn.Read(b)
				if bytes.Contains(b[:n], []byte("campus-gateway-gw-1-broker")) && !bytes.Contains(b[:n], []byte("campus-gateway-gw-1-broker-doctor")) {
					c.t.Error("doctor has taken the daemon's client id")
				}
				_, _ = conn.Write(answer)
				_, _ = conn.Read(b) // until it goes
			}()
		}
	}()
	key := filepath.Join(c.dir, "key")
	if err := os.WriteFile(key, []byte("geheim"), 0o600); err != nil {
		c.t.Fatal(err)
	}
	c.set(fmt.Sprintf("{url: %q}", c.broker.URL), fmt.Sprintf("{url: \"mqtt://%s\", api: iota-json, api_key_file: %q}", ln.Addr(), key))
}

func (c *clinic) examine() *report {
	c.t.Helper()
	file := filepath.Join(c.dir, "gateway.yaml")
	if err := os.WriteFile(file, []byte(c.config), 0o600); err != nil {
		c.t.Fatal(err)
	}
	return examine(c.t.Context(), c.computer, file)
}

// wires are a host whose I2C bus can be broken. It counts what is done on it.
type wires struct {
	board simulated
	drivers.Host
	err   error                   // of each transaction
	chip  func(w, r []byte) error // in the place of the board
	opens int
}

func (w *wires) I2C(name string) (i2c.BusCloser, error) {
	w.opens++
	b, err := w.board.I2C(name)
	if w.err == nil && w.chip == nil {
		return b, err
	}
	return &brokenBus{b, w}, nil
}

type brokenBus struct {
	i2c.BusCloser
	*wires
}

func (b *brokenBus) String() string                  { return "i2c-1" }
func (b *brokenBus) SetSpeed(physic.Frequency) error { return nil }
func (b *brokenBus) Tx(_ uint16, w, r []byte) error {
	if b.chip != nil {
		return b.chip(w, r)
	}
	return b.err
}

func TestDoctorHealthy(t *testing.T) {
	c := newClinic(t)
	c.unit["ActiveState"], c.unit["StatusText"] = "active", "1 sensors, 3 waiting"
	c.daemon(logState{Dir: c.log(), Durable: "durable", Waiting: 3, Files: 1, Bytes: 4 << 20})
	c.view(`{"name":"climate","state":"ok"}`, `{"name":"broker"}`)
	r := c.examine()
	for _, f := range r.Findings {
		if f.Status != isOK {
			t.Errorf("%+v", f)
		}
	}
	if r.Status != isOK || r.err() != nil || r.Machine != "Raspberry Pi 4 Model B Rev 1.4, Debian GNU/Linux 13 (trixie)" {
		t.Errorf("%+v", r)
	}
	if c.wire.opens > 0 {
		t.Error("doctor has been on a bus that the daemon uses")
	}
	var b bytes.Buffer
	if err := r.print(&b); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(b.String()) {
		if utf8.RuneCountInString(strings.TrimRight(line, "\n")) > 80 && len(strings.Fields(line)) > 3 {
			t.Errorf("wider than 80 columns: %s", line)
		}
	}
	if !strings.Contains(b.String(), "\nAll is well: 0 failures, 0 warnings, ") {
		t.Errorf("%s", &b)
	}
}

// diagnoses has for every trouble that doctor knows a machine that has it.
var diagnoses = []struct {
	name  string
	spoil func(*clinic)
	check string
	is    string
	why   string // is in it
	mend  string // is in it
}{
	// Configuration.
	{"faulty configuration", func(c *clinic) { c.set("bme280", "bme820") }, "configuration", isFailure, `unknown driver "bme820": did you mean "bme280"?`, "gateway check"},
	{"token not there", func(c *clinic) { c.set("broker: {", "broker: {auth: {token_file: /nonexistent}, ") }, "configuration", isFailure, "token_file: the secret's file cannot be read", "gateway check"},
	{"no configuration", func(c *clinic) { c.config = "" }, "configuration", isFailure, "there is no such file", "gateway init | sudo tee "},
	{"a folder", func(c *clinic) { c.config = "folder" }, "configuration", isFailure, "this is a folder", ""},
	{"configuration not for us", func(c *clinic) {
		c.set("{url:", "{auth: {token_file: /secret-of-root/token}, url:")
		c.denied("/secret-of-root/token")
	}, "configuration", isSkipped, "is not for this user: `sudo gateway doctor` sees it", ""},
	{"a secret for everybody", func(c *clinic) {
		file := filepath.Join(c.t.TempDir(), "token")
		if err := errors.Join(os.WriteFile(file, []byte("geheim"), 0o600), os.Chmod(file, 0o644)); err != nil {
			c.t.Fatal(err)
		}
		c.set("broker: {", fmt.Sprintf("broker: {auth: {token_file: %q}, ", file))
	}, "secrets", isWarning, "everybody on this machine may read", "sudo chmod o= "},
	{"no folder of secrets", func(c *clinic) { c.gone("/etc/gateway/secrets") }, "secrets", isFailure, "243/CREDENTIALS", "sudo install -d -m 0700 /etc/gateway/secrets"},
	{"open folder of secrets", func(c *clinic) { c.mode("/etc/gateway/secrets", 0o755) }, "secrets", isWarning, "may be looked into by others", "sudo chmod 0700 /etc/gateway/secrets"},
	{"open secret", func(c *clinic) { c.mode("/etc/gateway/secrets/token", 0o644) }, "secrets", isWarning, "others may read /etc/gateway/secrets/token", "sudo chmod 0600 /etc/gateway/secrets/token"},

	{"configuration refused", func(c *clinic) { c.public(`{"gateway":"gw-1","configuration_refused":"x.yaml:2: no"}`) }, "in use", isWarning, "runs on the last configuration that worked; it refused this one: x.yaml:2: no", "gateway check"},

	// Service.
	{"task hangs", func(c *clinic) { c.public(`{"gateway":"gw-1","hung":["uplink campus"]}`) }, "running", isFailure, "does not turn: uplink campus", "restart gateway"},
	{"masked", func(c *clinic) { c.link("/dev/null", ownUnit) }, "unit", isFailure, "masked", "sudo systemctl unmask gateway"},
	{"not installed", func(c *clinic) { c.gone("/usr/lib/systemd/system/gateway.service") }, "unit", isWarning, "not installed", "sudo gateway install"},
	{"run by hand", func(c *clinic) {
		c.gone("/usr/lib/systemd/system/gateway.service")
		c.daemon(logState{Durable: "durable"})
	}, "unit", isWarning, "not as a service", "sudo gateway install"},
	{"shadowed", func(c *clinic) { c.file(ownUnit, "[Service]\n") }, "unit", isWarning, "shadows the package's", "sudo rm /etc/systemd/system/gateway.service"},
	{"disabled", func(c *clinic) { c.unit["UnitFileState"] = "disabled" }, "enabled", isWarning, "does not start with the machine", "sudo systemctl enable gateway"},
	{"disabled, no systemd", func(c *clinic) {
		c.unit = nil
		c.gone("/etc/systemd/system/multi-user.target.wants/gateway.service")
	}, "enabled", isWarning, "does not start with the machine", "sudo systemctl enable gateway"},
	{"unit changed", func(c *clinic) { c.unit["NeedDaemonReload"] = "yes" }, "reload", isWarning, "changed since systemd read it", "sudo systemctl daemon-reload"},
	{"hangs", func(c *clinic) {
		c.answers(filepath.Join(c.log(), socketName), neverAnswer)
	}, "running", isFailure, "does not answer", "sudo systemctl restart gateway"},
	{"keeps ending", func(c *clinic) { c.unit["ActiveState"], c.unit["NRestarts"] = "active", "7" }, "running", isWarning, "restarted 7 times", "journalctl -u gateway"},
	{"stopped", func(*clinic) {}, "running", isWarning, "stopped", "sudo systemctl start gateway"},
	{"fails", func(c *clinic) {
		c.unit["ActiveState"], c.unit["ExecMainStatus"], c.unit["Result"] = "failed", "1", "exit-code"
	}, "running", isFailure, "it ended with exit-code, status 1", "journalctl -u gateway"},
	{"fails for its configuration", func(c *clinic) { c.unit["ActiveState"], c.unit["ExecMainStatus"] = "failed", "78" }, "running", isFailure, "its configuration is refused", "gateway check"},
	{"fails for its group", func(c *clinic) {
		c.unit["ActiveState"], c.unit["SubState"], c.unit["ExecMainStatus"] = "activating", "auto-restart", "216"
	}, "running", isFailure, "one of its groups is missing", "sudo groupadd --system --force"},
	{"no systemd, no daemon", func(c *clinic) { c.unit = nil }, "running", isSkipped, "systemd does not answer", ""},
	{"package changed", func(c *clinic) {
		c.command = func(context.Context, string, ...string) (string, error) {
			return "??5??????   /usr/bin/gateway\n??5?????? c /etc/gateway/gateway.yaml\n", nil
		}
	}, "package", isWarning, "not as the package brought them: /usr/bin/gateway", "--reinstall ./gateway_"},
	{"no groups", func(c *clinic) { c.file("/etc/group", "root:x:0:\nspi:x:7:\n") }, "groups", isFailure, "missing: i2c, gpio: the service", "for g in i2c gpio; do sudo groupadd"},
	{"no groups, no service", func(c *clinic) {
		c.gone("/usr/lib/systemd/system/gateway.service")
		c.file("/etc/group", "root:x:0:\n")
	}, "groups", isWarning, "missing: i2c, gpio, spi, who", "for g in i2c gpio spi; do sudo groupadd"},
	{"no user", func(c *clinic) { c.file("/etc/passwd", "root:x:0:0::/root:/bin/sh\n") }, "groups", isFailure, "217/USER", "sudo useradd"},

	// Hardware.
	{"I2C off, Raspberry Pi OS", func(c *clinic) { c.gone("/dev/i2c-1") }, "i2c-1", isFailure, "I2C is switched off", "sudo raspi-config nonint do_i2c 0"},
	{"I2C off, plain Debian", func(c *clinic) {
		c.gone("/dev/i2c-1", "/usr/bin/raspi-config")
		c.file("/boot/firmware/config.txt", "# dtparam=i2c_arm=on\n")
	}, "i2c-1", isFailure, "I2C is switched off", "echo 'dtparam=i2c_arm=on' | sudo tee -a /boot/firmware/config.txt && sudo reboot"},
	{"I2C on, not yet", func(c *clinic) { c.gone("/dev/i2c-1", "/usr/bin/raspi-config") }, "i2c-1", isFailure, "not yet at work", "sudo reboot"},
	{"no module", func(c *clinic) {
		c.gone("/dev/i2c-1")
		c.file("/sys/bus/i2c/devices/i2c-1/name", "bcm2835")
	}, "i2c-1", isFailure, "module i2c-dev is not loaded", "sudo modprobe i2c-dev"},
	{"no Pi", func(c *clinic) {
		c.gone("/dev/i2c-1", "/usr/bin/raspi-config", "/boot")
		c.file("/dev/i2c-4", "")
	}, "i2c-1", isFailure, "those here: i2c-4", "sudo modprobe i2c-dev"},
	{"other bus", func(c *clinic) { c.set("driver: bme280", "driver: bme280, bus: i2c-3") }, "i2c-3", isFailure, "those here: i2c-1. A further one", "ls /dev/i2c-*"},
	{"I2C off, no configuration", func(c *clinic) {
		c.config = ""
		c.gone("/dev/i2c-1")
	}, "i2c-1", isWarning, "I2C is switched off", "sudo raspi-config nonint do_i2c 0"},
	{"wrong group", func(c *clinic) {
		c.file("/etc/group", fmt.Sprintf("root:x:%d:\ni2c:x:99999:\ngpio:x:1:\nspi:x:2:\n", os.Getgid()))
	}, "i2c-1", isFailure, "belongs to the group root", "sudo udevadm trigger --subsystem-match=i2c-dev"},
	{"no rule", func(c *clinic) {
		c.gone("/usr/lib/udev/rules.d/60-gateway.rules")
		c.mode("/dev/i2c-1", 0o600)
	}, "i2c-1", isFailure, "may not use it", "/etc/udev/rules.d/61-gateway-local.rules"},
	{"not in the group", func(c *clinic) { c.open = func(string) error { return fs.ErrPermission } }, "i2c-1", isWarning, "this user may not", "sudo usermod -aG i2c $USER"},
	{"device broken", func(c *clinic) { c.open = func(string) error { return syscall.EIO } }, "i2c-1", isFailure, "input/output error", "sudo dmesg"},
	{"chip silent", func(c *clinic) { c.wire.err = syscall.EREMOTEIO }, "climate", isFailure, "the chip is silent: nothing answers at i2c-1 address 0x76", "sudo i2cdetect -y 1"},
	{"other chip", func(c *clinic) {
		c.wire.chip = func(w, r []byte) error {
			for i := range r {
				r[i] = 0x58
			}
			return nil
		}
	}, "climate", isFailure, "another chip answers here: this is a BMP280", "gateway read bmp280 --bus i2c-1 --address 0x76"},
	{"third chip", func(c *clinic) { c.wire.chip = func(w, r []byte) error { return nil } }, "climate", isFailure, "another chip answers here: its id is 00", "gateway read bme280"},
	{"bus stuck", func(c *clinic) {
		c.wire.err = syscall.ETIMEDOUT
		c.set("sensors:\n", "sensors:\n  - {name: light, driver: bh1750}\n")
	}, "i2c-1", isFailure, "the bus is stuck", "sudo poweroff"},
	{"chip hangs", func(c *clinic) { c.wire.err = syscall.ETIMEDOUT }, "climate", isFailure, "no answer in time at i2c-1 address 0x76", "sudo dmesg"},
	{"kernel's driver", func(c *clinic) { c.link("../../../bus/i2c/drivers/bme280_i2c", "/sys/bus/i2c/devices/1-0076/driver") }, "climate", isFailure,
		"the kernel's driver bme280_i2c has taken i2c-1 address 0x76", "echo 1-0076 | sudo tee /sys/bus/i2c/drivers/bme280_i2c/unbind"},
	{"daemon says gone", func(c *clinic) { c.view(`{"name":"climate","state":"gone","why":"no chip"}`, "") }, "climate", isFailure, "the daemon says: no chip", "gateway read bme280"},
	{"daemon says gone, to everybody", func(c *clinic) {
		c.public(`{"gateway":"gw-1","sensors":[{"name":"climate","state":"gone","why":"no chip"}]}`)
	}, "climate", isFailure, "the daemon says: no chip", "gateway read bme280"},
	{"daemon has another configuration", func(c *clinic) { c.view(`{"name":"other","state":"ok"}`, "") }, "climate", isWarning, "does not know this sensor", "sudo systemctl reload gateway"},
	{"daemon without a view", func(c *clinic) { c.daemon(logState{Durable: "durable"}) }, "climate", isSkipped, "shows it to nobody", ""},
	{"no GPIO", func(c *clinic) { c.set("sensors:\n", "sensors:\n  - {name: door, driver: contact, pin: GPIO17}\n") }, "GPIO", isFailure, "there is no /dev/gpiochip*", "dmesg"},
	{"GPIO not ours", func(c *clinic) {
		c.set("sensors:\n", "sensors:\n  - {name: door, driver: contact, pin: GPIO17}\n")
		c.file("/dev/gpiochip0", "")
	}, "gpiochip0", isFailure, "the service, which has the group gpio, may not use it", "--subsystem-match=gpio"},
	{"simulated I2C", func(c *clinic) {
		c.gone("/dev/i2c-1")
		c.view(`{"name":"climate","state":"ok"}`, "")
	}, "i2c-1", isSkipped, "the daemon simulates its sensors", ""},
	{"simulated GPIO", func(c *clinic) {
		c.set("sensors:\n", "sensors:\n  - {name: door, driver: contact, pin: GPIO17}\n")
		c.view(`{"name":"door","state":"ok"}`, "")
	}, "GPIO", isSkipped, "the daemon simulates its sensors", ""},
	{"no bus, says the daemon", func(c *clinic) {
		c.gone("/dev/i2c-1")
		c.view(`{"name":"climate","state":"gone","why":"no bus"}`, "")
	}, "climate", isSkipped, "there is no such bus, see below", ""},
	{"1-Wire not yet", func(c *clinic) {
		c.gone("/sys/bus/w1")
		c.file("/boot/firmware/config.txt", "dtoverlay=w1-gpio\n")
	}, "1-Wire", isWarning, "not yet at work", "sudo reboot"},
	{"1-Wire off", func(c *clinic) { c.gone("/sys/bus/w1") }, "1-Wire", isSkipped, "off", ""},
	{"undervoltage", func(c *clinic) { c.file("/sys/class/hwmon/hwmon1/in0_lcrit_alarm", "1\n") }, "power", isFailure, "undervoltage now", "vcgencmd get_throttled"},
	{"undervoltage, firmware", func(c *clinic) {
		c.file("/sys/devices/platform/soc/soc:firmware/get_throttled", "50005\n")
	}, "power", isFailure, "undervoltage now", "vcgencmd get_throttled"},
	{"undervoltage before", func(c *clinic) {
		c.file("/sys/devices/platform/soc/soc:firmware/get_throttled", "0x50000\n")
	}, "power", isWarning, "undervoltage since the machine started", "vcgencmd get_throttled"},
	{"too hot", func(c *clinic) { c.file("/sys/devices/platform/soc/soc:firmware/get_throttled", "8\n") }, "power", isWarning, "too hot", "vcgencmd measure_temp"},
	{"no voltage", func(c *clinic) { c.gone("/sys/class/hwmon", "/sys/devices") }, "power", isSkipped, "does not tell", ""},
	{"no memory cgroup", func(c *clinic) { c.file("/sys/fs/cgroup/cgroup.controllers", "cpu io pids\n") }, "memory cgroup", isWarning, "MemoryMax= of the unit does nothing", "sudo sed -i '1s/$/ cgroup_enable=memory/' /boot/firmware/cmdline.txt && sudo reboot"},
	{"memory cgroup not yet", func(c *clinic) {
		c.file("/sys/fs/cgroup/cgroup.controllers", "cpu\n")
		c.file("/boot/firmware/cmdline.txt", "rootwait cgroup_enable=memory\n")
	}, "memory cgroup", isWarning, "not yet at work", "sudo reboot"},
	{"no memory cgroup in the kernel", func(c *clinic) {
		c.file("/sys/fs/cgroup/cgroup.controllers", "cpu\n")
		c.file("/proc/cmdline", "rootwait cgroup_enable=memory\n")
	}, "memory cgroup", isWarning, "although the kernel was asked", "full-upgrade"},
	{"cgroup v1", func(c *clinic) { c.gone("/sys/fs/cgroup") }, "memory cgroup", isSkipped, "no cgroup v2", ""},

	// Time.
	{"clock not set", func(c *clinic) { c.unsynced() }, "clock", isWarning, "no NTP service runs", "sudo timedatectl set-ntp true"},
	{"no NTP service", func(c *clinic) {
		c.unsynced()
		c.gone("/usr/lib/systemd/systemd-timesyncd")
	}, "clock", isWarning, "no NTP service runs", "sudo apt-get install -y systemd-timesyncd"},
	{"NTP blocked", func(c *clinic) {
		c.unsynced()
		c.command = func(context.Context, string, ...string) (string, error) { return "active\ninactive\n", nil }
	}, "clock", isWarning, "systemd-timesyncd runs, but has reached no server", "timedatectl timesync-status"},
	{"chrony blocked", func(c *clinic) {
		c.unsynced()
		c.command = func(context.Context, string, ...string) (string, error) { return "inactive\nactive\n", nil }
	}, "clock", isWarning, "chrony runs", "chronyc tracking"},
	{"clock in the past", func(c *clinic) {
		c.unsynced()
		c.now = func() time.Time { return noon.AddDate(-3, 0, 0) }
	}, "clock", isFailure, "it shows 2023-11-26 12:00 UTC, which is past", "timedatectl"},
	{"old zone data", func(c *clinic) {
		c.zone = func(string) (*time.Location, error) { return time.FixedZone("+01", 3600), nil }
	}, "time zone", isWarning, "Morocco is on UTC+0 since 2026-09-20, this machine says UTC+1", "install -y tzdata"},
	{"old zone data by link", func(c *clinic) {
		c.link("/usr/share/zoneinfo/Africa/El_Aaiun", "/etc/localtime")
		c.zone = func(string) (*time.Location, error) { return time.FixedZone("+01", 3600), nil }
	}, "time zone", isWarning, "Africa/El_Aaiun", "install -y tzdata"},
	{"no zone data", func(c *clinic) {
		c.zone = func(string) (*time.Location, error) { return nil, errors.New("unknown time zone Africa/Casablanca") }
	}, "time zone", isWarning, "unknown time zone", "install -y tzdata"},

	// Card.
	{"overlay", func(c *clinic) {
		c.file("/proc/self/mountinfo", "25 1 0:19 / / rw shared:1 - overlay overlayroot rw\n")
	}, "place", isFailure, "is on an overlay", "sudo raspi-config nonint do_overlayfs 1"},
	{"memory disk", func(c *clinic) {
		c.file("/proc/self/mountinfo", "25 1 179:2 / / rw - ext4 /dev/mmcblk0p2 rw\n26 25 0:20 / "+c.dir+" rw - tmpfs tmpfs rw\n")
	}, "place", isFailure, "is in memory (tmpfs", "findmnt"},
	{"read-only", func(c *clinic) {
		c.file("/proc/self/mountinfo", "25 1 179:2 / / rw - ext4 /dev/mmcblk0p2 ro,errors=remount-ro\n")
	}, "place", isFailure, "is read-only", "sudo mount -o remount,rw /"},
	{"no mountinfo", func(c *clinic) { c.gone("/proc/self") }, "place", isSkipped, "the kernel does not say", ""},
	{"full", func(c *clinic) { c.space = func(string) (int64, int64, error) { return 100 << 20, 8 << 30, nil } }, "space", isFailure, "100 of 8192 MiB are free, and the log leaves 200", "sudo apt-get clean"},
	{"nearly full", func(c *clinic) { c.space = func(string) (int64, int64, error) { return 300 << 20, 8 << 30, nil } }, "space", isWarning, "cannot grow to its 256 MiB", "sudo apt-get clean"},
	{"space not told", func(c *clinic) { c.space = func(string) (int64, int64, error) { return 0, 0, fs.ErrPermission } }, "space", isSkipped, "permission denied", ""},
	{"worn out", func(c *clinic) { c.file("/sys/block/mmcblk0/device/life_time", "0x03 0x0b\n") }, "card", isFailure, "mmcblk0 is worn out", "gateway buffer export"},
	{"reserve used", func(c *clinic) { c.file("/sys/block/mmcblk0/device/pre_eol_info", "0x03\n") }, "card", isFailure, "worn out", "gateway buffer export"},
	{"nearly worn out", func(c *clinic) { c.file("/sys/block/mmcblk0/device/life_time", "0x09 0x01\n") }, "card", isWarning, "nearly worn out (90 %", "gateway buffer export"},
	{"file system errors", func(c *clinic) { c.file("/sys/fs/ext4/mmcblk0p2/errors_count", "3\n") }, "card", isWarning, "3 errors on the file system of mmcblk0p2", "dmesg"},
	{"no card", func(c *clinic) { c.gone("/sys/block", "/sys/fs/ext4") }, "card", isSkipped, "does not tell", ""},
	{"slow", func(c *clinic) {
		c.write = func(context.Context, string) (float64, time.Duration, error) { return 5, 60 * time.Millisecond, nil }
	}, "speed", isWarning, "60.0 ms: slow", "sudo fstrim"},
	{"stalls", func(c *clinic) {
		c.write = func(context.Context, string) (float64, time.Duration, error) { return 0.4, 300 * time.Millisecond, nil }
	}, "speed", isWarning, "the card stalls", "sudo fstrim"},
	{"cannot be written", func(c *clinic) {
		c.write = func(context.Context, string) (float64, time.Duration, error) { return 0, 0, syscall.EROFS }
	}, "speed", isFailure, "read-only file system", "dmesg"},
	{"may not be written", func(c *clinic) {
		c.write = func(context.Context, string) (float64, time.Duration, error) { return 0, 0, fs.ErrPermission }
	}, "speed", isSkipped, "`sudo gateway doctor` tries it", ""},
	{"no room to try", func(c *clinic) { c.space = func(string) (int64, int64, error) { return 1 << 20, 8 << 30, nil } }, "speed", isSkipped, "too little room", ""},
	{"volatile journal", func(c *clinic) { c.gone("/etc/systemd/journald.conf.d") }, "journal", isWarning, "Storage=volatile in /usr/lib/systemd/journald.conf.d/40-rpi-volatile-storage.conf", "99-gateway.conf"},
	{"journal without a folder", func(c *clinic) { c.gone("/etc/systemd/journald.conf.d", "/usr/lib/systemd/journald.conf.d") }, "journal", isWarning, "/var/log/journal is missing", "99-gateway.conf"},
	{"no journald", func(c *clinic) { c.gone("/usr/lib/systemd/systemd-journald") }, "journal", isSkipped, "no systemd-journald", ""},

	// Log.
	{"log hangs", func(c *clinic) {
		c.answers(filepath.Join(c.log(), socketName), neverAnswer)
	}, "daemon", isFailure, "does not answer at", "sudo systemctl restart gateway"},
	{"log answers nonsense", func(c *clinic) {
		c.answers(filepath.Join(c.log(), socketName), func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no stat today", 500) })
	}, "readings", isWarning, "no stat today", "sudo gateway buffer stat"},
	{"other log", func(c *clinic) { c.view(`{"name":"climate","state":"ok"}`, "") }, "readings", isWarning, "is the log of this configuration another one?", "restart gateway"},
	{"log is a file", func(c *clinic) {
		if err := os.WriteFile(c.log(), nil, 0o600); err != nil {
			c.t.Fatal(err)
		}
	}, "damage", isWarning, "0 bytes are too few", "sudo gateway buffer repair"},
	{"not durable", func(c *clinic) { c.daemon(logState{Durable: "not durable, on tmpfs"}) }, "durable", isFailure, "what waits is lost at a power cut", "df -h"},
	{"damaged", func(c *clinic) {
		c.daemon(logState{Durable: "durable", Damaged: []damageRow{{"/x/7.db.damaged", "checksum", 5, 2}}})
	}, "damage", isWarning, "1 damaged files, the first: /x/7.db.damaged: checksum; 5 readings salvaged, 2 lost", "sudo gateway buffer repair"},
	{"dropped", func(c *clinic) {
		c.daemon(logState{Durable: "durable", Dropped: map[string]map[string]uint64{"full": {"a": 2, "b": 3}}})
	}, "dropped", isWarning, "5 readings were dropped since start (full)", "buffer stat"},
	{"rejected", func(c *clinic) { c.daemon(logState{Durable: "durable", Rejected: 4}) }, "rejected", isWarning, "4 readings were refused by the broker", "sudo gateway buffer rejects"},
	{"refused", func(c *clinic) { c.daemon(logState{Durable: "durable", Refused: 4}) }, "refused", isWarning, "4 readings found no room", "buffer stat"},
	{"log full", func(c *clinic) { c.daemon(logState{Durable: "durable", Bytes: 250 << 20}) }, "size", isWarning, "250 of 256 MiB are full: the oldest readings go next", "buffer stat"},

	// Broker.
	{"no such name", func(c *clinic) {
		c.set(c.broker.URL, "http://orion.example:1026")
		c.resolve = func(context.Context, string) ([]string, error) { return nil, &net.DNSError{IsNotFound: true} }
	}, "name", isFailure, "orion.example cannot be resolved: no such host: is it written right?", "getent hosts orion.example"},
	{"no name server", func(c *clinic) {
		c.set(c.broker.URL, "http://orion.example:1026")
		c.resolve = func(ctx context.Context, _ string) ([]string, error) { <-ctx.Done(); return nil, ctx.Err() }
	}, "name", isFailure, "no name server has answered", "resolv.conf"},
	{"refused connection", func(c *clinic) { c.set(c.broker.URL, "http://"+freeAddress(c.t)) }, "connection", isFailure, "nothing listens on this port", "nc -zv 127.0.0.1"},
	{"no way", func(c *clinic) {
		c.dial = func(context.Context, string, string) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Err: syscall.ENETUNREACH}
		}
	}, "connection", isFailure, "network is unreachable", "ip route get"},
	{"firewall", func(c *clinic) {
		c.dial = func(ctx context.Context, _, _ string) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }
	}, "connection", isFailure, "is a firewall in between", "nc -zv"},
	{"connection lost before TLS", func(c *clinic) {
		c.secure(noon.AddDate(-1, 0, 0), noon.AddDate(1, 0, 0), "127.0.0.1")
		dial, n := c.dial, 0
		c.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			if n++; n > 1 {
				return nil, syscall.ECONNREFUSED
			}
			return dial(ctx, network, address)
		}
	}, "TLS", isFailure, "connection refused", ""},
	{"certificate ended", func(c *clinic) { c.secure(noon.AddDate(-2, 0, 0), noon.AddDate(-1, 0, 0), "127.0.0.1") }, "TLS", isFailure, "has ended on 2025-11-26", "openssl s_client"},
	{"certificate ends", func(c *clinic) { c.secure(noon.AddDate(-2, 0, 0), noon.AddDate(0, 0, 13), "127.0.0.1") }, "TLS", isWarning, "ends on 2026-12-09, in 13 days", "openssl s_client"},
	{"certificate not yet valid, wrong clock", func(c *clinic) {
		c.unsynced()
		c.secure(noon.AddDate(0, 0, 1), noon.AddDate(1, 0, 0), "127.0.0.1")
	}, "TLS", isFailure, "not valid before 2026-11-27, and it is 2026-11-26 here: this machine's clock is in the past", "timedatectl"},
	{"certificate not yet valid, right clock", func(c *clinic) { c.secure(noon.AddDate(0, 0, 1), noon.AddDate(1, 0, 0), "127.0.0.1") }, "TLS", isFailure, "though this machine's clock is right", "timedatectl"},
	{"certificate of another host", func(c *clinic) { c.secure(noon.AddDate(-1, 0, 0), noon.AddDate(1, 0, 0), "other.example") }, "TLS", isFailure, "of another host", "openssl s_client"},
	{"unknown authority", func(c *clinic) {
		ca := c.secure(noon.AddDate(-1, 0, 0), noon.AddDate(1, 0, 0), "127.0.0.1")
		c.set(fmt.Sprintf(", ca_file: %q", ca), "")
	}, "TLS", isFailure, "an authority that is not known here", "openssl s_client"},
	{"wrong pin", func(c *clinic) {
		c.secure(noon.AddDate(-1, 0, 0), noon.AddDate(1, 0, 0), "127.0.0.1")
		c.set("ca_file:", `pin: ["sha256/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="], ca_file:`)
	}, "TLS", isFailure, "sha256/", "openssl s_client"},
	{"no TLS there", func(c *clinic) { c.set("http://127", "https://127") }, "TLS", isFailure, "it does not speak TLS there", "curl -v http://"},
	{"TLS hangs", func(c *clinic) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			c.t.Fatal(err)
		}
		c.t.Cleanup(func() { ln.Close() })
		c.set(c.broker.URL, "https://"+ln.Addr().String())
	}, "TLS", isFailure, "the handshake has not ended", "openssl s_client"},
	{"token gone", func(c *clinic) {
		c.tokenServer(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) })
	}, "token", isFailure, "401", "ls -l /etc/gateway/secrets"},
	{"token server hangs", func(c *clinic) {
		c.tokenServer(neverAnswer)
	}, "token", isFailure, "the token server has not answered", "curl -v http://"},
	{"no broker", func(c *clinic) {
		c.to(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	}, "broker", isFailure, "502", "curl -v http://"},
	{"broker hangs", func(c *clinic) {
		c.to(neverAnswer)
	}, "broker", isFailure, "connected, but no answer in time", "/version"},
	{"may not write", func(c *clinic) {
		c.to(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				w.WriteHeader(http.StatusForbidden)
				return
			}
			fmt.Fprint(w, `{"orion":{"version":"4.1.0"}}`)
		})
	}, "write", isFailure, "This client may not write there", "curl -v"},
	{"tenant is not there", func(c *clinic) {
		c.set("broker: {", "broker: {api: ngsi-ld, tenant: nobody, ")
		c.to(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/problem+json")
			if r.Method == http.MethodPost && r.Header.Get("NGSILD-Tenant") == "nobody" {
				w.WriteHeader(http.StatusNotFound)
				fmt.Fprint(w, `{"type":"https://uri.etsi.org/ngsi-ld/errors/NonexistentTenant","title":"no such tenant"}`)
			}
		})
	}, "write", isFailure, "no such tenant", "types?limit=1"},
	{"clocks differ", func(c *clinic) {
		c.to(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Date", noon.Add(time.Hour).Format(http.TimeFormat))
			fmt.Fprint(w, `{"orion":{"version":"4.1.0"}}`)
		})
	}, "its clock", isWarning, "the broker's clock is 1h0m", "timedatectl"},
	{"daemon has no answer", func(c *clinic) {
		c.view(`{"name":"climate","state":"ok"}`, `{"name":"broker","waiting_readings":120,"down_since":"2026-11-26T11:56:00Z","why":"connection refused"}`)
	}, "daemon", isWarning, "no answer for 4m0s, 120 readings wait; it says: connection refused", "journalctl"},
	{"MQTT password", func(c *clinic) { c.mqtt([]byte{0x20, 2, 0, 5}) }, "MQTT", isFailure, "answered", "mosquitto_pub"},
	{"no MQTT", func(c *clinic) { c.mqtt([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")) }, "MQTT", isFailure, "does not answer as an MQTT broker does", "mosquitto_pub"},
	{"MQTT hangs", func(c *clinic) { c.mqtt(nil) }, "MQTT", isFailure, "no MQTT answer", "mosquitto_pub"},
	{"refresh token", func(c *clinic) {
		c.tokenServer(func(http.ResponseWriter, *http.Request) { c.t.Error("doctor has used up the refresh token") })
		c.set("client_secret_file:", fmt.Sprintf("grant: refresh-token, refresh_token_file: %q, client_secret_file:", filepath.Join(c.dir, "secret")))
	}, "token", isSkipped, "used once", ""},
	{"proxy", func(c *clinic) {
		c.proxy = func(*http.Request) (*url.URL, error) { return url.Parse("http://u:geheim@proxy.example:3128") }
	}, "proxy", isOK, "through proxy.example:3128 ", ""},
	{"hangs in the kernel", func(c *clinic) {
		c.limit = time.Second
		c.write = func(context.Context, string) (float64, time.Duration, error) { select {} }
	}, "speed", isWarning, "whatever is looked at here hangs", ""},
}

func (c *clinic) unsynced() {
	c.synced[0].ask = func(context.Context) error { return errors.New("not yet") }
}

// denied makes the error of a secret that is not for this user; root may read all.
func (c *clinic) denied(name string) {
	if os.Getuid() == 0 {
		c.t.Skip("root may read everything")
	}
	dir := filepath.Join(c.dir, "denied")
	if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, "token"), []byte("geheim"), 0), os.Chmod(dir, 0)); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = os.Chmod(dir, 0o700) })
	c.set(name, filepath.Join(dir, "token"))
}

func (c *clinic) tokenServer(h http.HandlerFunc) {
	srv := httptest.NewServer(h)
	c.t.Cleanup(srv.Close)
	secret := filepath.Join(c.dir, "secret")
	if err := os.WriteFile(secret, []byte("geheim"), 0o600); err != nil {
		c.t.Fatal(err)
	}
	c.set("broker: {", fmt.Sprintf("broker: {auth: {oauth2: {token_url: %q, client_id: gw, client_secret_file: %q}}, ", srv.URL+"/token", secret))
}

// Every trouble is found, and every sentence that doctor can say of a trouble is said
// in one of them.
func TestDoctor(t *testing.T) {
	said := make(chan []finding, len(diagnoses))
	var all sync.WaitGroup // many at a time: they wait more than they work
	room := make(chan struct{}, 20)
	for _, d := range diagnoses {
		room <- struct{}{}
		all.Go(func() {
			defer func() { <-room }()
			t.Run(d.name, func(t *testing.T) {
				c := newClinic(t)
				d.spoil(c)
				begun := time.Now()
				var r *report
				switch c.config {
				case "":
					r = examine(t.Context(), c.computer, filepath.Join(c.dir, "none.yaml"))
				case "folder":
					r = examine(t.Context(), c.computer, c.dir)
				default:
					r = c.examine()
				}
				said <- r.Findings
				if took := time.Since(begun); took > 10*time.Second {
					t.Errorf("it took %v", took)
				}
				if !slices.ContainsFunc(r.Findings, func(f finding) bool {
					return f.Check == d.check && f.Status == d.is && strings.Contains(f.Why, d.why) && strings.Contains(f.Mend, d.mend)
				}) {
					t.Errorf("not found: %s %s %q, mend %q; found:", d.is, d.check, d.why, d.mend)
					for _, f := range r.Findings {
						t.Errorf("%+v", f)
					}
				}
				if text := fmt.Sprint(r.Findings); strings.Contains(text, "geheim") {
					t.Errorf("a secret is shown:\n%s", text)
				}
				want := map[string]int{isWarning: 1, isFailure: 2}[r.Status]
				if err, isStatus := errors.AsType[statusError](r.err()); isStatus && err.status != want || !isStatus && want != 0 {
					t.Errorf("%s, and %v", r.Status, r.err())
				}
			})
		})
	}
	all.Wait()
	close(said)
	var sentences []string
	for found := range said {
		for _, f := range found {
			sentences = append(sentences, f.Status+f.Check+"\x00"+f.Mend+"\x00"+f.Why)
		}
	}
	sayings := 0
	for at, p := range troubles(t) {
		sayings++
		if !slices.ContainsFunc(sentences, p.MatchString) {
			t.Errorf("%s: no machine here has this trouble: %s", at, p)
		}
	}
	if sayings < 60 {
		t.Errorf("only %d sentences were found in the source", sayings)
	}
}

// troubles are the sentences of all calls of warn and fail, as patterns.
func troubles(t *testing.T) map[string]*regexp.Regexp {
	t.Helper()
	list := map[string]*regexp.Regexp{}
	files := token.NewFileSet()
	for _, name := range []string{"doctor.go", "doctor_machine.go", "doctor_broker.go"} {
		f, err := parser.ParseFile(files, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) < 3 {
				return true
			}
			id, ok := call.Fun.(*ast.Ident)
			text, isText := call.Args[2].(*ast.BasicLit)
			if !ok || !isText || id.Name != "warn" && id.Name != "fail" {
				return true
			}
			format, err := strconv.Unquote(text.Value)
			if err != nil {
				t.Fatal(err)
			}
			check := `[^\x00]*`
			if lit, ok := call.Args[0].(*ast.BasicLit); ok {
				check, _ = strconv.Unquote(lit.Value)
			}
			pattern := regexp.MustCompile(`%[-+#.0-9]*[a-z]`).ReplaceAllString(strings.ReplaceAll(format, "%%", "\x01"), "\x02")
			pattern = strings.ReplaceAll(regexp.QuoteMeta(pattern), "\x02", `(?s:.*)`)
			list[files.Position(call.Pos()).String()] = regexp.MustCompile(`^` + id.Name + check + `\x00[^\x00]*\x00` + strings.ReplaceAll(pattern, "\x01", "%") + `$`)
			return true
		})
	}
	return list
}

// Whatever the system's files and programs say, no check breaks on it.
func FuzzDoctorFiles(f *testing.F) {
	f.Add("25 1 179:2 / / rw - ext4 /dev/root rw\nStorage=none\nActiveState=failed\n0x50005")
	f.Add(" - \n=\n:::\n??5?????? c /x\n0xffffffffffffffffff")
	f.Add("PRETTY_NAME=\x1b[2J\na b c d e f - g h\n\x00\xff")
	f.Fuzz(func(t *testing.T, text string) {
		root := t.TempDir()
		m := &computer{root: root, os: "linux", now: func() time.Time { return noon },
			command: func(context.Context, string, ...string) (string, error) { return text, nil },
			zone:    func(string) (*time.Location, error) { return time.UTC, nil }}
		for _, name := range []string{"/proc/self/mountinfo", "/etc/systemd/journald.conf", "/usr/lib/systemd/systemd-journald", "/etc/group", "/etc/passwd", "/etc/timezone", "/usr/lib/systemd/system/gateway.service",
			"/sys/fs/cgroup/cgroup.controllers", "/proc/cmdline", "/sys/devices/platform/soc/soc:firmware/get_throttled", "/sys/class/hwmon/hwmon0/name", "/sys/block/mmcblk0/device/life_time",
			"/sys/block/mmcblk0/device/pre_eol_info", "/sys/fs/ext4/sda/errors_count", "/etc/os-release", "/boot/firmware/config.txt"} {
			if err := errors.Join(os.MkdirAll(filepath.Dir(m.path(name)), 0o755), os.WriteFile(m.path(name), []byte(text), 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		p := &patient{computer: m}
		r := &report{Machine: m.describe()}
		for _, look := range []func(context.Context, *patient) []finding{checkService, checkGroups, checkI2C, checkOneWire, checkPower, checkCgroup, checkClock, checkZones, checkPlace, checkHealth, checkJournal} {
			r.Findings = append(r.Findings, look(t.Context(), p)...)
		}
		var b bytes.Buffer
		if err := r.print(&b); err != nil || len(r.Findings) < 11 || strings.ContainsAny(b.String(), "\x00\x1b") {
			t.Errorf("%d findings, %v: %q", len(r.Findings), err, &b)
		}
	})
}

// No daemon, and a view that is another gateway's: the sensors are opened, once each.
func TestDoctorOpens(t *testing.T) {
	c := newClinic(t)
	c.view(`{"name":"climate","state":"ok"}`, "")
	c.set("id: gw-1", "id: gw-2")
	r := c.examine()
	if i := slices.IndexFunc(r.Findings, func(f finding) bool { return f.Check == "climate" }); i < 0 || r.Findings[i].Why != "bme280 at i2c-1 address 0x76 answers" || c.wire.opens != 1 {
		t.Errorf("%d opens: %+v", c.wire.opens, r.Findings)
	}
}

// A daemon that is known of in any way is not disturbed.
func TestDoctorLeavesTheBusAlone(t *testing.T) {
	for name, runs := range map[string]func(*clinic){
		"log's socket": func(c *clinic) { c.daemon(logState{Durable: "durable"}) },
		"live view":    func(c *clinic) { c.view("", "") },
		"systemd":      func(c *clinic) { c.unit["ActiveState"] = "active" },
		"starting":     func(c *clinic) { c.unit["ActiveState"] = "activating" },
		"status socket": func(c *clinic) {
			c.answers(c.path("/run/gateway/status.sock"), func(http.ResponseWriter, *http.Request) {})
		},
		"hanging": func(c *clinic) {
			c.answers(filepath.Join(c.log(), socketName), neverAnswer)
		},
		"unclear answer": func(c *clinic) {
			c.answers(filepath.Join(c.log(), socketName), func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newClinic(t)
			runs(c)
			if c.examine(); c.wire.opens > 0 {
				t.Error("the bus was opened")
			}
		})
	}
}

// Every step towards an NGSI-LD broker and an MQTT broker that are well.
func TestDoctorBrokers(t *testing.T) {
	t.Run("ngsi-ld over TLS", func(t *testing.T) {
		c := newClinic(t)
		c.broker.Config.Handler = sandbox.New(sandbox.Options{Like: sandbox.OrionLD})
		// Its certificate is held to the gateway's clock when it is asked.
		c.now = time.Now
		c.secure(time.Now().AddDate(-1, 0, 0), time.Now().AddDate(1, 0, 0), "127.0.0.1")
		c.set("broker: {", "broker: {api: ngsi-ld, ")
		var steps []string
		for _, f := range c.examine().Findings {
			if f.Group == "Broker" {
				steps = append(steps, f.Status+" "+f.Check)
			}
		}
		if got := strings.Join(steps, ", "); got != "ok connection, ok TLS, ok token, ok broker, ok write" {
			t.Error(got)
		}
	})
	t.Run("MQTT", func(t *testing.T) {
		c := newClinic(t)
		c.mqtt([]byte{0x20, 2, 0, 0})
		if r := c.examine(); !slices.ContainsFunc(r.Findings, func(f finding) bool { return f.Check == "MQTT" && f.Status == isOK }) {
			t.Errorf("%+v", r.Findings)
		}
	})
}

// On other systems configuration, log and broker are looked at, and nothing else.
func TestDoctorElsewhere(t *testing.T) {
	c := newClinic(t)
	c.os = "darwin"
	groups := map[string]bool{}
	for _, f := range c.examine().Findings {
		groups[f.Group] = true
	}
	if got := strings.Join(sortedKeys(groups), " "); got != "Broker Configuration Log Machine" {
		t.Error(got)
	}
}

func TestWriteSpeed(t *testing.T) {
	dir := t.TempDir()
	rate, flush, err := writeSpeed(t.Context(), dir)
	if err != nil || rate <= 0 || flush <= 0 {
		t.Errorf("%v MB/s, %v, %v", rate, flush, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%v is left, %v", left, err)
	}
	if _, _, err := writeSpeed(t.Context(), filepath.Join(dir, "gone")); err == nil {
		t.Error("no error for a folder that is not there")
	}
}

// The command itself, on this machine: whatever is found, it is JSON, and the status
// is that of the worst.
func TestDoctorCommand(t *testing.T) {
	status, out, stderr := command(t, "doctor", "--json", "--config", filepath.Join(t.TempDir(), "none.yaml"))
	var r report
	if err := json.Unmarshal([]byte(out), &r); err != nil || status != 2 || r.Status != isFailure || len(r.Findings) < 4 || !strings.HasPrefix(stderr, "gateway: doctor: ") {
		t.Errorf("%v, status %d, %s\n%s", err, status, stderr, out)
	}
	if status, out, _ := command(t, "doctor", "--config", filepath.Join(t.TempDir(), "none.yaml")); status != 2 || !strings.Contains(out, "\nConfiguration\n  fail     configuration  ") {
		t.Errorf("status %d\n%s", status, out)
	}
}

func TestWrap(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", ""}, {"one two", "one two"}, {"one two three", "one two\n  three"}, {"a\x1b[2Jb", "a [2Jb"},
		{"unbreakable-word-that-is-long x", "unbreakable-word-that-is-long\n  x"}, {"head\n  3 | x: y\n    |  ^", "head\n    3 | x: y\n      |  ^"},
	} {
		if got := wrap(c.text, 2, 12); got != c.want {
			t.Errorf("%q: %q, want %q", c.text, got, c.want)
		}
	}
}
