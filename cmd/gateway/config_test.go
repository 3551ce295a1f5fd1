package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const good = `gateway: {id: gw-1}
broker: {url: "http://localhost:1026"}
`

// Every fault is told with its line, what is wrong and what to write instead.
func TestConfigFaults(t *testing.T) {
	t.Setenv("GATEWAY_TEST_EMPTY", "")
	sensor := func(s string) string { return good + "sensors:\n" + s }
	t.Setenv("GATEWAY_TEST_KEY", "canary")
	for name, c := range map[string]struct {
		yaml string
		want []string // each in the message
	}{
		"wrong type":         {good + "log: {max_size: [1]}\n", []string{"x.yaml:3:17: log.max_size: want one value, got a list of 1"}},
		"wrong type: bool":   {sensor("  - {name: a, driver: bh1750, shared: 1}\n"), []string{"x.yaml:4:", "sensors[0].shared: want true or false"}},
		"wrong type: list":   {good + "sensors: 5\n", []string{"x.yaml:3:10: sensors: want a list"}},
		"hold negative":      {good + "clock: {hold: -1s}\n", []string{"x.yaml:3:15: clock.hold: -1s is outside 0s..720h"}},
		"wrong type: text":   {good + "live: hello\n", []string{`x.yaml:3:7: live: want keys and values`, `got "hello"`}},
		"null":               {good + "log:\n  dir:\n", []string{"x.yaml:4:", "log.dir: there is no value"}},
		"unknown key":        {good + "borker: {}\n", []string{`x.yaml:3:1: borker: unknown key: did you mean "broker"?`, "3 | borker: {}", "| ^"}},
		"unknown inner key":  {good + "log: {window: 1s, size: 5}\n", []string{"x.yaml:3:19: log.size: unknown key", "max_size"}},
		"unknown option":     {sensor("  - {name: a, driver: bh1750, mtregg: 5}\n"), []string{"sensors[0].mtregg: unknown key", `did you mean "mtreg"`}},
		"bad option":         {sensor("  - {name: a, driver: bh1750, mtreg: 5}\n"), []string{"x.yaml:4:38: sensors[0].mtreg: 5 is outside 31..254"}},
		"unknown driver":     {sensor("  - {name: a, driver: bmp1750}\n"), []string{"x.yaml:4:23: sensors[0].driver: unknown driver", `did you mean "bh1750"?`}},
		"no driver":          {sensor("  - {name: a}\n"), []string{"x.yaml:4:5: sensors[0].driver: there is no driver: write one of", "bme280"}},
		"address range":      {sensor("  - {name: a, driver: bh1750, address: 0x99}\n"), []string{"x.yaml:4:40: sensors[0].address: 0x99 is outside 0x08..0x77", "0x23"}},
		"not its address":    {sensor("  - {name: a, driver: bh1750, address: 0x50}\n"), []string{"0x50: a bh1750 answers at 0x23, 0x5c"}},
		"address text":       {sensor("  - {name: a, driver: bh1750, address: high}\n"), []string{`want a whole number from 0 to 65535, got "high"`}},
		"one name twice":     {sensor("  - {name: a, driver: bh1750}\n  - {name: a, driver: bh1750, address: 0x5c}\n"), []string{`x.yaml:5:12: sensors[1].name: "a" is the name of the sensor on line 4 already`}},
		"one place twice":    {sensor("  - {name: a, driver: bh1750}\n  - {name: b, driver: bh1750}\n"), []string{"x.yaml:5:5: sensors[1]: the sensor on line 4 is attached at i2c-1 address 0x23 already"}},
		"one pin twice":      {sensor("  - {name: a, driver: contact, pin: GPIO4}\n  - {name: b, driver: contact, pin: GPIO4}\n"), []string{"attached at GPIO4 already"}},
		"no pin":             {sensor("  - {name: a, driver: contact}\n"), []string{"sensors[0].pin: there is no pin"}},
		"pin for i2c":        {sensor("  - {name: a, driver: bh1750, pin: GPIO4}\n"), []string{"is attached to an I2C bus"}},
		"bus name":           {sensor("  - {name: a, driver: bh1750, bus: /dev/i2c-1}\n"), []string{"sensors[0].bus:", "want i2c-1"}},
		"interval zero":      {sensor("  - {name: a, driver: bh1750, interval: 0s}\n"), []string{"x.yaml:4:41: sensors[0].interval: 0s is outside 100ms..24h"}},
		"interval negative":  {sensor("  - {name: a, driver: bh1750, interval: -5s}\n"), []string{"-5s is outside"}},
		"interval no unit":   {sensor("  - {name: a, driver: bh1750, interval: 10}\n"), []string{`want a time with its unit, such as 500ms, 10s or 5m, got "10"`}},
		"no name":            {sensor("  - {driver: bh1750}\n"), []string{"sensors[0].name: the sensor needs a name"}},
		"long name":          {sensor("  - {name: " + strings.Repeat("x", 65) + ", driver: bh1750}\n"), []string{"sensors[0].name: want up to 64 characters"}},
		"long Arabic name":   {sensor("  - {name: " + strings.Repeat("ح", 40) + ", driver: bh1750}\n"), []string{"x.yaml:4:5: sensors[0]: "}},
		"model of nothing":   {sensor("  - {name: a, driver: bh1750, entity: {type: Nonsense}}\n"), []string{"Nonsense"}},
		"url scheme":         {"gateway: {id: a}\nbroker: {url: \"mqtt://x\"}\n", []string{"x.yaml:2:15: broker.url:", "want http:// or https://"}},
		"url nonsense":       {"gateway: {id: a}\nbroker: {url: \"http://[::1\"}\n", []string{"broker.url: not a URL"}},
		"url with password":  {"gateway: {id: a}\nbroker: {url: \"http://u:geheim@x\"}\n", []string{"a user or password does not belong in the URL"}},
		"secret file":        {"gateway: {id: a}\nbroker:\n  url: http://x\n  auth: {token_file: /nonexistent/token}\n", []string{"x.yaml:4:22: broker.auth.token_file: the secret's file cannot be read", "no such file"}},
		"secret variable":    {"gateway: {id: a}\nbroker:\n  url: http://x\n  auth: {token_env: GATEWAY_TEST_EMPTY}\n", []string{"x.yaml:4:21: broker.auth.token_env: the environment variable GATEWAY_TEST_EMPTY is empty"}},
		"tab":                {good + "log:\n\tdir: /x\n", []string{"x.yaml:4:1: a tab indents this line: YAML takes spaces only"}},
		"duplicate key":      {good + "broker: {url: http://y}\n", []string{"x.yaml:3:1: broker: the key is here a second time (first on line 2)"}},
		"sensors twice":      {sensor("  - {name: a, driver: bh1750}\n") + "sensors: []\n", []string{"x.yaml:5:1: sensors: the key is here a second time"}},
		"syntax":             {good + "log: {dir: /x\nlive: x\n", []string{"x.yaml:", "not YAML"}},
		"two documents":      {good + "---\n" + good, []string{"a second document begins here"}},
		"merge key":          {good + "log: &l {dir: /x}\nlive:\n  <<: *l\n", []string{"merge keys are not supported"}},
		"list at the top":    {"- a\n- b\n", []string{"x.yaml:1:1: want keys and values"}},
		"not UTF-8":          {good + "# \xff\xfe\n", []string{"not UTF-8"}},
		"id":                 {"gateway: {id: \"gw 1/<x>\"}\nbroker: {url: http://x}\n", []string{"x.yaml:1:15: gateway.id:", "such as gw-a101"}},
		"site":               {"gateway: {id: a, site: moon}\nbroker: {url: http://x}\n", []string{`"moon" is not one of indoor, outdoor`}},
		"latitude":           {"gateway: {id: a, location: {longitude: 33.0, latitude: -97.6}}\nbroker: {url: http://x}\n", []string{"-97.6 is outside -90..90"}},
		"service path":       {"gateway: {id: a}\nbroker: {url: http://x, service_path: lab}\n", []string{"broker.service_path:", "such as /settat/lab"}},
		"no broker's URL":    {"gateway: {id: a}\nbroker: {}\n", []string{"broker.url: there is no broker: write its URL, such as http://orion.campus.example:1026"}},
		"broker and uplinks": {good + "uplinks:\n  - {name: campus, url: http://y}\n", []string{"x.yaml:4:3: uplinks: there is a broker too: make it one of the uplinks"}},
		"uplink name":        {"gateway: {id: a}\nuplinks:\n  - {name: Campus 1, url: http://y}\n", []string{`x.yaml:3:12: uplinks[0].name: "Campus 1": want up to 32 lower-case letters`, "so keep it"}},
		"uplink twice":       {"gateway: {id: a}\nuplinks:\n  - {name: a, url: http://y}\n  - {name: a, url: http://z}\n", []string{`x.yaml:4:12: uplinks[1].name: "a" is the name of the uplink on line 3 already`}},
		"uplink null":        {"gateway: {id: a}\nuplinks:\n  -\n", []string{"uplinks[0]: there is no value"}},
		"batch":              {"broker: {url: http://x, batch: 501, lanes: 0, rate: 5}\n", []string{"broker.batch: 501 is outside 1..500", "broker.lanes: 0 is outside 1..8", "broker.rate: want at least 1KiB"}},
		"linger":             {"broker: {url: http://x, linger: 0s, latency: 2h, spread: 2m, history: some}\n", []string{"broker.linger: 0s is outside 1ms..1m", "broker.latency: 2h0m0s is outside", "broker.spread: 2m0s is outside 1s..1m", `"some" is not one of all, latest`}},
		"agent without key":  {"broker: {url: mqtt://x, api: iota-json}\n", []string{"broker.api_key_file: the IoT Agent's device group has an API key"}},
		"agent over http":    {"broker: {url: http://x, api: iota-json, api_key_env: GATEWAY_TEST_KEY, tenant: a}\n", []string{"want mqtt:// or mqtts://", "broker.tenant: an IoT Agent knows this by the API key"}},
		"agent half a login": {"broker: {url: mqtt://x, api: iota-json, api_key_env: GATEWAY_TEST_KEY, username: u}\n", []string{"username and password_file belong together"}},
		"client id twice":    {"gateway: {id: a}\nuplinks:\n  - {name: a, api: iota-json, url: mqtt://x, api_key_env: GATEWAY_TEST_KEY, client_id: one}\n  - {name: b, api: iota-json, url: mqtt://x, api_key_env: GATEWAY_TEST_KEY, client_id: one}\n", []string{"x.yaml:4:", "uplinks[1].client_id: the uplink a goes to the same broker under this id"}},
		"payload":            {"broker: {url: mqtt://x, api: iota-json, api_key_env: GATEWAY_TEST_KEY, max_payload: 5}\n", []string{"broker.max_payload: want 1000 to 10000000 bytes"}},
		"key inline":         {"broker: {url: mqtt://x, api: iota-json, api_key: geheim}\n", []string{"a secret is never written here"}},
		"key of no agent":    {"broker: {url: http://x, client_id: a}\n", []string{"broker.client_id: this belongs to `api: iota-json`: remove it"}},
		"listen":             {good + "live: {http: {listen: everywhere}}\n", []string{"live.http.listen:", "such as 127.0.0.1:8080"}},
	} {
		t.Run(name, func(t *testing.T) {
			err := faultsOf([]byte(c.yaml))
			if err == nil {
				t.Fatalf("accepted")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q is not in:\n%v", want, err)
				}
			}
			if strings.Contains(err.Error(), "geheim") {
				t.Errorf("the password is shown:\n%v", err)
			}
		})
	}
}

// All faults of a file come at once, in the order of its lines.
func TestConfigFaultsAllAtOnce(t *testing.T) {
	_, err := readConfig("x.yaml", []byte(`gateway: {id: "a b"}
broker: {url: ftp://x, api: ngsi-v3}
log: {window: 5}
sensors:
  - {name: a, driver: nonsense}
  - {name: a, driver: bh1750, interval: 1ms, address: 300}
`))
	f, ok := errors.AsType[*faults](err)
	if !ok {
		t.Fatalf("%v", err)
	}
	text := f.Error()
	if len(f.list) != 8 {
		t.Errorf("%d faults, want 8:\n%s", len(f.list), text)
	}
	for i := 1; i < len(f.list); i++ {
		if f.list[i].line < f.list[i-1].line {
			t.Errorf("line %d after line %d", f.list[i].line, f.list[i-1].line)
		}
	}
}

// A small file that unfolds into millions of values is refused quickly, whether
// or not the values are where something looks at them.
func TestConfigAliasBomb(t *testing.T) {
	var laughs strings.Builder
	laughs.WriteString("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n")
	for i := 1; i < 30; i++ {
		fmt.Fprintf(&laughs, "a%d: &a%d [%s*a%d]\n", i, i, strings.Repeat(fmt.Sprintf("*a%d, ", i-1), 9), i-1)
	}
	laughs.WriteString("sensors: *a29\n" + good)
	sensors := good + "sensors:\n  - &s\n    name: soil\n    driver: ads1115\n    curve: {points: [" + strings.Repeat("[0, 1], ", 999) + "[1, 2]]}\n" +
		strings.Repeat("  - *s\n", 1000)
	for name, c := range map[string]struct{ yaml, want string }{
		"lists of lists": {laughs.String(), "unknown key"},
		"sensors":        {sensors, "the aliases of this document unfold into more than 50000 values"},
	} {
		begin := time.Now()
		_, err := readConfig("x.yaml", []byte(c.yaml))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %.300v", name, err)
		}
		if d := time.Since(begin); d > 5*time.Second {
			t.Errorf("%s: took %v", name, d)
		}
	}
}

func TestConfigHugeFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "huge.yaml")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(100 << 20); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if _, err := loadConfig(file); err == nil || !strings.Contains(err.Error(), "huge.yaml:1:1: the file is larger than 1 MiB") {
		t.Errorf("%v", err)
	}
}

func TestConfigDefaults(t *testing.T) {
	t.Setenv("STATE_DIRECTORY", "/state")
	c, err := readConfig("x.yaml", []byte("broker: {url: http://x}\nsensors:\n  - {name: a, driver: bh1750}\n"))
	if err != nil {
		t.Fatal(err)
	}
	host, _ := os.Hostname()
	if c.Gateway.ID != host || c.Uplinks[0].API != "ngsi-v2" || c.Log.Dir != "/state/log" || c.Log.Window != time.Second || c.Live.HTTP.Listen != "127.0.0.1:8080" {
		t.Errorf("%+v", c)
	}
	s := c.Sensors[0]
	if s.Bus != "i2c-1" || s.Address != 0x23 || s.Interval != 10*time.Second || s.Site != "indoor" {
		t.Errorf("%+v", s)
	}
}

// A sensor's own place does not move the gateway.
func TestConfigLocation(t *testing.T) {
	c, err := readConfig("x.yaml", []byte(`gateway: {id: a, location: {longitude: 1, latitude: 2}}
broker: {url: http://x}
sensors:
  - {name: here, driver: bh1750}
  - {name: there, driver: bh1750, address: 0x5c, location: {longitude: 3, latitude: 4}}
`))
	if err != nil {
		t.Fatal(err)
	}
	if *c.Gateway.Location != (location{1, 2}) || *c.Sensors[0].Location != (location{1, 2}) || *c.Sensors[1].Location != (location{3, 4}) {
		t.Errorf("%v %v %v", *c.Gateway.Location, *c.Sensors[0].Location, *c.Sensors[1].Location)
	}
}

// The sample is accepted as it is, and with every example switched on.
func TestSample(t *testing.T) {
	c, err := readConfig("sample.yaml", []byte(sample()))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Sensors) != 1 {
		t.Errorf("%d sensors", len(c.Sensors))
	}
	head, examples, _ := strings.Cut(sample(), "not sent, only shown\n")
	var all strings.Builder
	all.WriteString(head + "not sent, only shown\n")
	bus := 1
	for line := range strings.Lines(examples) {
		if rest, ok := strings.CutPrefix(line, "  # - "); ok {
			line = "  - " + rest
		} else if rest, ok := strings.CutPrefix(line, "  #   "); ok {
			line = "    " + rest
		}
		if line == "    bus: i2c-1\n" { // a bus for each: their addresses are the same here and there
			bus++
			line = fmt.Sprintf("    bus: i2c-%d\n", bus)
		}
		all.WriteString(line)
	}
	text := all.String()
	c, err = readConfig("sample.yaml", []byte(text))
	if err != nil {
		t.Fatalf("with all examples: %v\n%s", err, text)
	}
	if len(c.Sensors) != 1+len(driverNames()) {
		t.Errorf("%d sensors, want one and one for each of %d drivers", len(c.Sensors), len(driverNames()))
	}
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte(sample()))
	f.Add([]byte("a: &a [*a]\nsensors: *a\n"))
	f.Add([]byte("sensors:\n  - &s {name: a, driver: bh1750}\n  - *s\n"))
	f.Add([]byte(placedGood + "contexts: {base: http://x, types: {D: http://y}}\nsensors:\n  - &s {name: a, driver: bh1750, entity: {type: D}, attributes: &a {illuminance: {name: x, unit: LUX, scale: 1, decimals: 1}, co2: , x: {skip: true}}}\n  - {name: b, driver: bme280, attributes: *a}\n"))
	f.Add([]byte("? [a]\n: b\n"))
	f.Fuzz(func(t *testing.T, src []byte) {
		c, err := readConfig("x.yaml", src)
		if (c == nil) == (err == nil) {
			t.Fatalf("%v, %v", c, err)
		}
		if err != nil && (err.Error() == "" || strings.Contains(err.Error(), "goroutine")) {
			t.Fatalf("%q", err)
		}
	})
}

// The configuration to begin with is good as it is, and with every example in it.
func TestStarter(t *testing.T) {
	t.Setenv("CREDENTIALS_DIRECTORY", t.TempDir())
	if err := os.WriteFile(handed("/etc/gateway/secrets/token"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := readConfig("starter.yaml", []byte(starter))
	if err != nil || len(c.Sensors) > 0 || len(c.Uplinks) > 0 {
		t.Errorf("%v, %+v", err, c)
	}
	var examples strings.Builder
	example := false
	for line := range strings.Lines(starter) {
		text, comment := strings.CutPrefix(line, "# ")
		key, _, _ := strings.Cut(text, ":")
		example = comment && (example && strings.HasPrefix(text, " ") || key == "gateway" || key == "broker" || key == "sensors")
		if example || !comment {
			line = text
		}
		examples.WriteString(line)
	}
	c, err = readConfig("starter.yaml", []byte(examples.String()))
	if err != nil || len(c.Sensors) != 2 || len(c.Uplinks) != 1 || c.Gateway.ID != "gw-a101" {
		t.Errorf("%v\n%s", err, examples.String())
	}
}
