package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"campus-gateway"
	"campus-gateway/live"
	"campus-gateway/ngsi"

	"github.com/VictoriaMetrics/metrics"
	"go.yaml.in/yaml/v3"
)

// uplinkConfig is one way that readings take: to an NGSI broker, or over MQTT to an
// IoT Agent. `broker` is one, and `uplinks` a list of several.
type uplinkConfig struct {
	Name        string        `yaml:"name"` // of its place in the log; default for `broker`: broker
	URL         string        `yaml:"url"`
	API         string        `yaml:"api"` // one of apis
	Service     string        `yaml:"service"`
	ServicePath string        `yaml:"service_path"`
	Tenant      string        `yaml:"tenant"`
	FlowControl bool          `yaml:"flow_control"`
	Auth        authConfig    `yaml:"auth"`
	TLS         tlsConfig     `yaml:",inline"`
	Timeout     time.Duration `yaml:"timeout"`
	Agent       agentConfig   `yaml:",inline"`
	Send        sendConfig    `yaml:",inline"`

	absent string // a file is not there, says this: nothing can be sent before it is
}

// agentConfig is what only an IoT Agent wants.
type agentConfig struct {
	APIKeyFile   string   `yaml:"api_key_file"`
	APIKeyEnv    string   `yaml:"api_key_env"`
	ClientID     string   `yaml:"client_id"`
	MaxPayload   byteSize `yaml:"max_payload"` // of one message
	Username     string   `yaml:"username"`
	PasswordFile string   `yaml:"password_file"`
	PasswordEnv  string   `yaml:"password_env"`
}

// sendConfig is how readings are sent. Batch and lanes are tuned to what the broker
// can take, up to what is written; if both are, that is what they are.
type sendConfig struct {
	History string        `yaml:"history"` // all, or latest: a backlog is passed over
	Linger  time.Duration `yaml:"linger"`  // how long a first reading waits for company
	Latency time.Duration `yaml:"latency"` // that a request may have
	Batch   int           `yaml:"batch"`   // readings of a request, at most
	Lanes   int           `yaml:"lanes"`   // requests at a time while a backlog is drained, at most
	Rate    byteSize      `yaml:"rate"`    // bytes a second, at most
	Spread  time.Duration `yaml:"spread"`  // of the first try after a lost connection
}

const iotaJSON = "iota-json"

var apis = []string{"ngsi-v2", "ngsi-ld", "orion", "orion-ld", "scorpio", "stellio", iotaJSON}

// clientID is what the MQTT broker knows an uplink by: two that go to one broker under
// one id would throw each other out.
func (u *uplinkConfig) clientID(c *config) string {
	return cmp.Or(u.Agent.ClientID, "campus-gateway-"+c.Gateway.ID+"-"+u.Name)
}

// linked reports whether the uplink speaks of contexts.
func (u *uplinkConfig) linked() bool {
	return slices.Contains([]string{"ngsi-ld", "orion-ld", "scorpio", "stellio"}, u.API)
}

// uplinks checks `broker` and `uplinks`, and makes one list of them, with every
// default filled in.
func (d *decoder) uplinks(root *yaml.Node, c *config) {
	switch {
	case c.Broker == nil && len(c.Uplinks) == 0: // readings wait for the day there is one
		return
	case c.Broker != nil && len(c.Uplinks) > 0:
		d.addf(d.at(&c.Uplinks, root), "uplinks", "there is a broker too: make it one of the uplinks, with `name: broker`")
		return
	case c.Broker != nil:
		if c.Broker.Name == "" {
			c.Broker.Name = "broker"
		}
		d.uplink(d.at(c.Broker, root), "broker", c.Broker)
		c.Uplinks = []*uplinkConfig{c.Broker}
		return
	}
	lines := map[string]int{}
	for i, u := range c.Uplinks {
		path := fmt.Sprintf("uplinks[%d]", i)
		if u == nil {
			c.Uplinks[i] = &uplinkConfig{}
			continue // it has been told
		}
		n := d.at(&c.Uplinks[i], root)
		d.uplink(n, path, u)
		if first, twice := lines[u.Name]; twice && u.Name != "" {
			d.addf(d.at(&u.Name, n), path+".name", "%q is the name of the uplink on line %d already: each needs its own", u.Name, first)
		}
		lines[u.Name] = n.Line
		for _, other := range c.Uplinks[:i] {
			if other.API == iotaJSON && u.API == iotaJSON && other.URL == u.URL && other.clientID(c) == u.clientID(c) {
				d.addf(d.at(&u.Agent.ClientID, n), path+".client_id", "the uplink %s goes to the same broker under this id: each throws the other out; remove it here", other.Name)
			}
		}
	}
}

var (
	uplinkName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)
	lowerWord  = regexp.MustCompile(`^[a-z0-9_]{0,50}$`)
	levels     = regexp.MustCompile(`^/$|^(/[A-Za-z0-9_]{1,50}){1,10}$`)
	tenantName = regexp.MustCompile(`^[A-Za-z0-9_.-]{0,64}$`)
)

// uplink fills in the defaults of one, and checks it. n is where what is absent is told.
func (d *decoder) uplink(n *yaml.Node, path string, u *uplinkConfig) {
	unless(d, &u.API, "ngsi-v2")
	unless(d, &u.ServicePath, "/")
	unless(d, &u.Timeout, 30*time.Second)
	unless(d, &u.Auth.Header, "bearer")
	unless(d, &u.Send.History, "all")
	unless(d, &u.Send.Linger, 200*time.Millisecond)
	unless(d, &u.Send.Latency, 500*time.Millisecond)
	unless(d, &u.Send.Spread, time.Minute)

	if !uplinkName.MatchString(u.Name) {
		d.addf(d.at(&u.Name, n), path+".name", "%q: want up to 32 lower-case letters, digits and - inside, such as campus; it names the uplink's place in the log, so keep it", u.Name)
	}
	d.oneOf(&u.API, n, path+".api", apis...)
	d.url(n, path, u)
	if !lowerWord.MatchString(u.Service) {
		d.addf(d.at(&u.Service, n), path+".service", "%q: want up to 50 lower-case letters, digits and _", u.Service)
	}
	if !levels.MatchString(u.ServicePath) {
		d.addf(d.at(&u.ServicePath, n), path+".service_path", "%q: want / or up to ten levels of letters, digits and _, such as /settat/lab", u.ServicePath)
	}
	if !tenantName.MatchString(u.Tenant) {
		d.addf(d.at(&u.Tenant, n), path+".tenant", "%q: want letters, digits and _ . -", u.Tenant)
	}
	d.within(&u.Timeout, n, path+".timeout", time.Second, 10*time.Minute)
	d.within(&u.Send.Linger, n, path+".linger", time.Millisecond, time.Minute)
	d.within(&u.Send.Latency, n, path+".latency", 10*time.Millisecond, time.Minute)
	d.within(&u.Send.Spread, n, path+".spread", time.Second, time.Minute)
	d.oneOf(&u.Send.History, n, path+".history", "all", "latest")
	if v := u.Send.Batch; d.nodes[&u.Send.Batch] != nil && (v < 1 || v > 500) {
		d.addf(d.at(&u.Send.Batch, n), path+".batch", "%d is outside 1..500; without it the gateway finds what is best", v)
	}
	if v := u.Send.Lanes; d.nodes[&u.Send.Lanes] != nil && (v < 1 || v > 8) {
		d.addf(d.at(&u.Send.Lanes, n), path+".lanes", "%d is outside 1..8; without it the gateway finds what is best", v)
	}
	if d.nodes[&u.Send.Rate] != nil && u.Send.Rate < 1<<10 {
		d.addf(d.at(&u.Send.Rate, n), path+".rate", "want at least 1KiB, in a second; remove the key to have no limit")
	}
	before := len(d.list)
	defer func() {
		for _, x := range d.list[before:] {
			if x.absent {
				u.absent = cmp.Or(u.absent, x.path+": "+x.text)
			}
		}
	}()
	d.tls(n, path, &u.TLS)
	if u.API == iotaJSON {
		d.agent(n, path, u)
		return
	}
	d.auth(n, path+".auth", &u.Auth)
	for key, v := range map[string]any{"api_key_file": &u.Agent.APIKeyFile, "api_key_env": &u.Agent.APIKeyEnv, "client_id": &u.Agent.ClientID, "max_payload": &u.Agent.MaxPayload,
		"username": &u.Agent.Username, "password_file": &u.Agent.PasswordFile, "password_env": &u.Agent.PasswordEnv} {
		if v := d.nodes[v]; v != nil {
			d.addf(v, path+"."+key, "this belongs to `api: %s`: remove it; a broker's token is named under auth", iotaJSON)
		}
	}
}

// unless gives a field its default unless the file has it.
func unless[T any](d *decoder, field *T, value T) {
	if d.nodes[field] == nil {
		*field = value
	}
}

func (d *decoder) within(v *time.Duration, n *yaml.Node, path string, least, most time.Duration) {
	if *v < least || *v > most {
		d.addf(d.at(v, n), path, "%v is outside %v..%v", *v, least, most)
	}
}

// url checks an uplink's URL, and shows nothing of what may be a password in it.
func (d *decoder) url(n *yaml.Node, path string, u *uplinkConfig) {
	at, path := d.at(&u.URL, n), path+".url"
	schemes, example := []string{"http", "https"}, "http://orion.campus.example:1026"
	if u.API == iotaJSON {
		schemes, example = []string{"mqtt", "mqtts"}, "mqtt://mqtt.campus.example:1883"
	}
	v, err := url.Parse(u.URL)
	switch {
	case u.URL == "":
		d.addf(at, path, "there is no broker: write its URL, such as %s", example)
	case err != nil:
		d.addf(at, path, "not a URL: write it as %s", example)
		d.last().secret = strings.Contains(u.URL, "@")
	case v.User != nil:
		d.addf(at, path, "a user or password does not belong in the URL: write the name of a file with the secret, under auth or as password_file")
		d.last().secret = true
	case !slices.Contains(schemes, v.Scheme) || v.Hostname() == "":
		d.addf(at, path, "%q: want %s:// and a host, such as %s", u.URL, strings.Join(schemes, ":// or "), example)
	case v.RawQuery != "" || v.Fragment != "":
		d.addf(at, path, "%q: leave out what comes after ? or #", u.URL)
	}
}

// agent checks what only an IoT Agent wants, and that nothing is written that it does not.
func (d *decoder) agent(n *yaml.Node, path string, u *uplinkConfig) {
	d.need(n, path+".api_key_file", "the IoT Agent's device group has an API key: write the name of a file with it", u.Agent.APIKeyFile != "" || u.Agent.APIKeyEnv != "")
	d.secret(n, path, "api_key", &u.Agent.APIKeyFile, &u.Agent.APIKeyEnv, func(s ngsi.Secret) (string, error) {
		key, err := s.Token()
		if err == nil {
			err = ngsi.CheckAPIKey(key)
		}
		return key, err
	})
	d.secret(n, path, "password", &u.Agent.PasswordFile, &u.Agent.PasswordEnv, ngsi.Secret.Read)
	if v := u.Agent.MaxPayload; d.nodes[&u.Agent.MaxPayload] != nil && (v < 1000 || v > 10_000_000) {
		d.addf(d.at(&u.Agent.MaxPayload, n), path+".max_payload", "want 1000 to 10000000 bytes: no more than the MQTT broker takes")
	}
	if hasPassword := u.Agent.PasswordFile != "" || u.Agent.PasswordEnv != ""; hasPassword != (u.Agent.Username != "") {
		d.addf(n, path, "username and password_file belong together: write both, or none")
	}
	for key, v := range map[string]any{"service": &u.Service, "service_path": &u.ServicePath, "tenant": &u.Tenant, "auth": &u.Auth, "flow_control": &u.FlowControl} {
		if v := d.nodes[v]; v != nil {
			d.addf(v, path+"."+key, "an IoT Agent knows this by the API key: remove it")
		}
	}
}

// destinations says where readings go.
func destinations(c *config) string {
	switch len(c.Uplinks) {
	case 0:
		return "no broker"
	case 1:
		return "broker " + c.Uplinks[0].URL
	}
	var all []string
	for _, u := range c.Uplinks {
		all = append(all, u.Name+" "+u.URL)
	}
	return "uplinks " + strings.Join(all, ", ")
}

// broker is what an uplink sends to.
type broker interface {
	gateway.Sink
	Requests([]gateway.Reading) []ngsi.Request // that Send would make
	Close()
}

// newBroker is an uplink's broker, told of readings taken on that machine.
func newBroker(c *config, u *uplinkConfig, clock *gateway.Clock, log *slog.Logger, on ngsi.Host) (broker, error) {
	m := newMapper(c).On(on)
	log = log.With("uplink", u.Name)
	warn := func(text string) func(error) { return func(err error) { log.Warn(text, "why", err) } }
	// The gateway's clock: with the machine's in the past, no certificate would be valid yet.
	tls, err := u.TLS.client(clock.Now, warn("certificates"))
	if err != nil {
		return nil, err
	}
	if u.API == iotaJSON {
		key, err := ngsi.Secret{File: u.Agent.APIKeyFile, Env: u.Agent.APIKeyEnv}.Token()
		if err != nil {
			return nil, err
		}
		cfg := ngsi.IOTAConfig{URL: u.URL, APIKey: key, ClientID: u.clientID(c), TLS: tls, Timeout: u.Timeout, MaxPayload: int(u.Agent.MaxPayload)}
		if u.Agent.Username != "" {
			cfg.Credentials = func() (string, string, error) {
				password, err := ngsi.Secret{File: u.Agent.PasswordFile, Env: u.Agent.PasswordEnv}.Read()
				return u.Agent.Username, password, err
			}
		}
		return ngsi.NewIOTA(cfg, m)
	}
	auth, err := u.Auth.owner(c.Log.Dir, u.Name, tls, warn("the broker's token"))
	if err != nil {
		return nil, err
	}
	return ngsi.New(ngsi.Config{
		URL: u.URL, API: u.API,
		Service: u.Service, ServicePath: u.ServicePath, Tenant: u.Tenant, FlowControl: u.FlowControl,
		Auth: auth, AuthHeader: u.Auth.Header,
		Contexts: c.Contexts.urls(),
		TLS:      tls, Timeout: u.Timeout,
		Warn: warn("the description of a sensor is not at the broker; its readings are not affected"),
	}, m)
}

// uplink is one at work.
type uplink struct {
	*gateway.Forwarder
	name string
}

// newUplink forwards what waits in queue to sink.
func newUplink(u *uplinkConfig, queue gateway.Queue, sink gateway.Sink, p *parts) *uplink {
	f := &gateway.Forwarder{
		Queue: queue, Sink: sink, Dater: p.clock, Tuned: p.tuned.of(u.Name),
		Batch: u.Send.Batch, Lanes: u.Send.Lanes, Target: u.Send.Latency,
		Linger: u.Send.Linger, Rate: int(u.Send.Rate), Spread: u.Send.Spread, Latest: u.Send.History == "latest",
		Log: p.log.With("uplink", u.Name),
	}
	if u.Send.Batch != 0 && u.Send.Lanes != 0 {
		f.Target = -1
	}
	return &uplink{f, u.Name}
}

// writeMetrics writes the uplink's metrics.
func (u *uplink) writeMetrics(w io.Writer) {
	s := u.Stats()
	name := func(metric string) string { return fmt.Sprintf("gateway_uplink_%s{uplink=%q}", metric, u.name) }
	metrics.WriteGaugeUint64(w, name("waiting_readings"), uint64(u.Queue.Depth()))
	metrics.WriteCounterUint64(w, name("sent_readings_total"), s.Sent)
	metrics.WriteCounterUint64(w, name("rejected_readings_total"), s.Rejected)
	metrics.WriteCounterUint64(w, name("held_readings_total"), s.Held)
	metrics.WriteCounterUint64(w, name("skipped_readings_total"), s.Skipped)
	metrics.WriteCounterUint64(w, name("failures_total"), s.Failures)
	if m, ok := u.Sink.(gateway.Meter); ok {
		metrics.WriteCounterUint64(w, name("sent_bytes_total"), m.Bytes())
	}
	metrics.WriteGaugeUint64(w, name("up"), number(s.Down.IsZero()))
	metrics.WriteGaugeUint64(w, name("draining"), number(s.Draining))
	metrics.WriteGaugeUint64(w, name("batch_readings"), uint64(s.Batch))
	metrics.WriteGaugeUint64(w, name("lanes"), uint64(s.Lanes))
	metrics.WriteGaugeFloat64(w, name("latency_seconds"), s.Latency.Seconds())
	if !s.Last.IsZero() {
		metrics.WriteGaugeUint64(w, name("last_success_timestamp_seconds"), uint64(s.Last.Unix()))
	}
}

func number(b bool) uint64 { return map[bool]uint64{true: 1}[b] }

// live is the uplink as the live view shows it.
func (u *uplink) live() live.Uplink {
	s := u.Stats()
	l := live.Uplink{
		Name: u.name, To: u.Sink.String(), Waiting: u.Queue.Depth(), Draining: s.Draining, Down: s.Down, Why: s.Why,
		Sent: s.Sent, Rejected: s.Rejected, Batch: s.Batch, Lanes: s.Lanes, Latency: s.Latency,
	}
	if b, ok := u.Sink.(interface{ Broker() string }); ok {
		l.Broker = b.Broker()
	}
	return l
}

// tunings are what uplinks have found out about their brokers, by name. They are kept in
// a file beside the log, written when the gateway stops: the next start begins there.
type tunings struct {
	file  string
	known map[string]gateway.Tuned
}

const tunedName = "tuned.json"

// readTunings never fails: without them the gateway finds out again.
func readTunings(dir string) *tunings {
	t := &tunings{file: filepath.Join(dir, tunedName), known: map[string]gateway.Tuned{}}
	f, err := os.Open(t.file)
	if err != nil {
		return t
	}
	defer f.Close()
	var known map[string]gateway.Tuned
	if json.NewDecoder(io.LimitReader(f, 1<<16)).Decode(&known) == nil {
		for name, x := range known {
			if x.Batch >= 0 && x.Batch <= 500 && x.Lanes >= 0 && x.Lanes <= 8 {
				t.known[name] = x
			}
		}
	}
	return t
}

func (t *tunings) of(uplink string) gateway.Tuned { return t.known[uplink] }

// note takes over what uplinks that have ended have found out.
func (t *tunings) note(us []*uplink) {
	for _, u := range us {
		if s := u.Stats(); s.Sent > 0 {
			t.known[u.name] = s.Tuned
		}
	}
}

// write keeps them. It is no loss if a crash does not.
func (t *tunings) write() error {
	text, err := json.Marshal(t.known)
	if err != nil {
		return err
	}
	if old, err := os.ReadFile(t.file); err == nil && string(old) == string(text) || len(t.known) == 0 {
		return nil
	}
	return replaceFile(t.file, text)
}
