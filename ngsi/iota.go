package ngsi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"campus-gateway"

	mqtt "github.com/eclipse/paho.mqtt.golang"
)

// IOTAConfig is how an IoT Agent for JSON is reached over MQTT. Zero values mean
// the defaults.
type IOTAConfig struct {
	URL    string // of the MQTT broker: mqtt://host:1883 or mqtts://host:8883
	APIKey string // of the agent's device group. Whoever has it can write: it is in no error and no String

	// ClientID is what the broker knows us by: stable, and of no other client, or the
	// two throw each other out. MQTT promises 23 characters; most brokers take more.
	// Default: campus-gateway-<gateway id>.
	ClientID string

	// Credentials is asked before each connection; nil: there are none.
	Credentials func() (user, password string, err error)

	TLS        *TLS          // of mqtts; default: NewTLS(TLSConfig{})
	Timeout    time.Duration // without any PUBACK; default 20 s
	MaxPayload int           // bytes of one message; default 100,000: brokers commonly stop at 128 KiB
}

// IOTA sends readings to an IoT Agent (JSON) through an MQTT broker, for sites
// that open nothing else. It is a gateway.Sink, and may be used by several
// goroutines; a device's readings belong to one of them at a time (Key).
//
// A sensor is a device of the agent, named by Key. Its readings are published to
// /json/<API key>/<device>/attrs at QoS 1, not retained: one as an object, several
// as an array of them (a multimeasure). Each has its TimeInstant and the
// attributes that the data models have for what it says (Mapper), so that the
// agent's entity is what the other uplinks write; a value that no model takes is
// named after its quantity, in that quantity's unit. Messages of one device go one
// after the other, by time.
//
// Sent is what the broker has confirmed, with a PUBACK that came over the same
// connection as the message. That is the broker's word, not the agent's, and MQTT
// 3.1.1 has none for no: the agent must subscribe at QoS 1 and without a clean
// session (IOTA_MQTT_QOS=1, IOTA_MQTT_CLEAN=false), or what comes while it is away is
// lost behind us; and a mosquitto confirms, and drops, what its access list denies or
// its message_size_limit forbids (2.0.11), so that must be no less than MaxPayload.
//
// Nobody can be asked what has arrived, so this is no gateway.Reconciler: a message of
// unknown fate is sent again, with the same TimeInstant, which in effect is the same
// measure.
type IOTA struct {
	cfg     IOTAConfig
	address string
	secure  string // the name in the broker's certificate; empty: no TLS
	mapper  *Mapper
	sent    atomic.Uint64 // bytes
	dial    func(ctx context.Context, network, address string) (net.Conn, error)

	turn chan struct{} // held while link is looked at or made
	link *link         // the present connection; nil: none yet

	mu     sync.Mutex
	limit  int                 // of a message: shrinks when large ones do not get through
	taken  map[string]struct{} // measures, confirmed in a Send that failed later: not sent again
	marked map[string]bool     // devices whose newest measure has a timeUncertain
}

var _ gateway.Sink = (*IOTA)(nil)

const (
	connectTimeout = 10 * time.Second // of a connection, to the CONNACK
	writeTimeout   = 10 * time.Second // of a message into the kernel
	handTimeout    = time.Second      // of a message to paho, which has nothing else to do
	ackTimeout     = 20 * time.Second // default of IOTAConfig.Timeout

	defaultPayload = 100_000
	leastPayload   = 16 << 10 // what a guess at the broker's limit never goes below
	maxFlying      = 16       // messages of a Send that wait for their PUBACK; their bytes: one full message
	maxInbound     = 256 << 10
	maxTaken       = 20_000 // remembered measures; beyond, some are sent again
)

// liveness finds an idle link dead within 25 s: a NAT or a broker's host that is
// gone says nothing. One that is in use is found by Timeout.
var liveness = net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 3}

var (
	keyPattern    = regexp.MustCompile(`^[!-~]{1,128}$`)
	clientPattern = regexp.MustCompile(`^[!-~]{0,256}$`)
)

// CheckAPIKey refuses a key that cannot stand in a topic. It does not show it.
func CheckAPIKey(key string) error {
	if !keyPattern.MatchString(key) || strings.ContainsAny(key, "/+#") {
		return errors.New("this API key cannot stand in an MQTT topic: want 1 to 128 printable characters, without / + # and spaces")
	}
	return nil
}

// NewIOTA is a Sink for what m maps. It connects in Send.
func NewIOTA(cfg IOTAConfig, m *Mapper) (*IOTA, error) {
	u, err := url.Parse(cfg.URL)
	switch {
	case err != nil || u.Hostname() == "" || u.Scheme != "mqtt" && u.Scheme != "mqtts":
		return nil, errors.New("broker: this is not its URL: want mqtt://host:1883 or mqtts://host:8883")
	case u.User != nil:
		return nil, errors.New("broker: a user or password does not belong in the URL")
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return nil, errors.New("broker: leave out what comes after the host and the port in the URL")
	case CheckAPIKey(cfg.APIKey) != nil:
		return nil, fmt.Errorf("broker: %w", CheckAPIKey(cfg.APIKey))
	case !clientPattern.MatchString(cfg.ClientID):
		return nil, fmt.Errorf("broker: client id %q: want up to 256 printable characters without spaces", cfg.ClientID)
	case cfg.MaxPayload != 0 && (cfg.MaxPayload < 1000 || cfg.MaxPayload > 10_000_000):
		return nil, fmt.Errorf("broker: messages of %d bytes: want 1,000 to 10,000,000", cfg.MaxPayload)
	case len(m.gateway) > maxGateway:
		return nil, fmt.Errorf("gateway: the id takes %d characters in a device id, %d at most: write a shorter one", len(m.gateway), maxGateway)
	}
	port := map[string]string{"mqtt": "1883", "mqtts": "8883"}[u.Scheme]
	s := &IOTA{cfg: cfg, mapper: m, address: net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), port)),
		turn: make(chan struct{}, 1), taken: map[string]struct{}{}, marked: map[string]bool{},
		dial: (&net.Dialer{KeepAliveConfig: liveness}).DialContext}
	s.cfg.URL = u.Scheme + "://" + s.address
	s.cfg.ClientID = cmp.Or(cfg.ClientID, "campus-gateway-"+m.gateway)
	s.cfg.Timeout = cmp.Or(cfg.Timeout, ackTimeout)
	s.cfg.MaxPayload = cmp.Or(cfg.MaxPayload, defaultPayload)
	s.limit = s.cfg.MaxPayload
	if u.Scheme == "mqtts" {
		s.secure = u.Hostname()
	}
	if s.cfg.TLS == nil {
		if s.cfg.TLS, err = NewTLS(TLSConfig{}); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *IOTA) String() string { return "iota-json " + s.cfg.URL }

// Key is the id that a sensor has as a device of the agent: <gateway>:<sensor>,
// each escaped by IDEscape, so letters, digits and - _ . ~ with one colon between.
// All of these may stand in a level of an MQTT topic (which / + # part or match),
// in an id at the agent and in an entity id made of it (where Orion refuses
// < > " ' = ; ( ) and the agent's URLs & ? /). IDUnescape of each part is the way back.
func (s *IOTA) Key(sensor string) string { return s.mapper.gateway + ":" + IDEscape(sensor) }

// Requests are the messages that Send would publish; the API key is not in them.
func (s *IOTA) Requests(rs []gateway.Reading) []Request {
	b, _ := s.batch(rs)
	var requests []Request
	for _, m := range b.messages {
		requests = append(requests, Request{Method: "PUBLISH", URL: s.cfg.URL + "/json/(API key)/" + m.device + "/attrs", Body: m.payload})
	}
	return requests
}

// Bytes is how many bytes were sent, but for headers: gateway.Meter.
func (s *IOTA) Bytes() uint64 { return s.sent.Load() }

// Close ends the connection, if there is one. A Send after it makes a new one.
func (s *IOTA) Close() {
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	if s.link != nil {
		s.link.client.Disconnect(250) // ms: tells the broker that this end is meant
		s.link.end()
		s.link = nil
	}
}

// Send takes rs, oldest first, to the broker: gateway.Sink. What an earlier Send
// that failed had got confirmed is not sent again.
func (s *IOTA) Send(ctx context.Context, rs []gateway.Reading) error {
	b, rejected := s.batch(rs)
	if len(b.messages) > 0 {
		if err := s.deliver(ctx, b.messages); err != nil {
			return err
		}
	}
	s.settle(b)
	if len(rejected) > 0 {
		return &gateway.RejectError{Rejected: rejected}
	}
	return nil
}

// measure is a reading as the agent takes it.
type measure struct {
	key  string // the device and body: it says the same thing as another with this key
	body []byte
}

// message is one PUBLISH: measures of one device, by time.
type message struct {
	device   string
	measures []measure
	payload  []byte
	token    *mqtt.PublishToken // once it is under way
}

// batch is what a Send comes to.
type batch struct {
	messages []*message
	keys     []string        // of all its measures, those already taken as well
	marked   map[string]bool // as IOTA.marked, once all are taken
}

// batch plans a Send. Of each device the k-th message stands before any device's
// next one, so that they can fly side by side.
func (s *IOTA) batch(rs []gateway.Reading) (b batch, rejected []gateway.Rejection) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b.marked = map[string]bool{}
	var devices []string
	byDevice := map[string][]int{}
	for i, r := range rs {
		if err := check(r); err != nil {
			rejected = append(rejected, gateway.Rejection{Index: i, Reason: err.Error()})
			continue
		}
		d := s.Key(r.Sensor)
		if byDevice[d] == nil {
			devices = append(devices, d)
		}
		byDevice[d] = append(byDevice[d], i)
	}
	var rounds [][]*message
	for _, d := range devices {
		indexes := byDevice[d]
		slices.SortStableFunc(indexes, func(i, j int) int { return rs[i].At.Wall.Compare(rs[j].At.Wall) })
		var ms []measure
		for _, i := range indexes {
			marked, known := b.marked[d]
			if !known {
				marked = s.marked[d]
			}
			body, uncertain := s.mapper.appendMeasure(nil, rs[i], marked)
			switch {
			case body == nil:
				continue
			case len(body) > s.cfg.MaxPayload:
				rejected = append(rejected, gateway.Rejection{Index: i,
					Reason: fmt.Sprintf("not sent: it takes %d bytes, and a message %d at most: write a larger max_payload", len(body), s.cfg.MaxPayload)})
				continue
			}
			b.marked[d] = uncertain
			m := measure{key: d + " " + string(body), body: body}
			b.keys = append(b.keys, m.key)
			if _, done := s.taken[m.key]; !done {
				ms = append(ms, m)
			}
		}
		for k := 0; len(ms) > 0; k++ {
			n := fitMeasures(ms, s.limit)
			if k == len(rounds) {
				rounds = append(rounds, nil)
			}
			rounds[k] = append(rounds[k], &message{device: d, measures: ms[:n], payload: payload(ms[:n])})
			ms = ms[n:]
		}
	}
	b.messages = slices.Concat(rounds...)
	slices.SortFunc(rejected, func(a, b gateway.Rejection) int { return a.Index - b.Index })
	return b, rejected
}

// fitMeasures is how many of ms go into one message: at least one.
func fitMeasures(ms []measure, limit int) int {
	size := len("[]")
	for n, m := range ms {
		size += len(m.body) + 1
		if n > 0 && size > limit {
			return n
		}
	}
	return len(ms)
}

func payload(ms []measure) []byte {
	if len(ms) == 1 {
		return ms[0].body
	}
	var out []byte
	for _, m := range ms {
		out = append(append(out, ','), m.body...)
	}
	out[0] = '['
	return append(out, ']')
}

// appendMeasure appends r as the agent takes it: an object of names and bare values.
// A reading whose time is uncertain has an attribute timeUncertain as the other
// uplinks note it, and the first certain one after it (marked) an interval of no
// length, since the agent can take nothing away. A reading of no value is nil.
func (m *Mapper) appendMeasure(dst []byte, r gateway.Reading, marked bool) (body []byte, uncertain bool) {
	var attrs []Attr
	values := 0
	put := func(a Attr) bool {
		free := !slices.ContainsFunc(attrs, func(b Attr) bool { return a.Name == b.Name })
		if free {
			attrs = append(attrs, a)
		}
		return free
	}
	interval := ""
	for _, e := range m.Entities(r) {
		interval = e.Uncertain
		switch e.Type {
		case measurementType:
			name := ""
			for _, a := range e.Attrs {
				switch a.Name {
				case "measurementType":
					name = a.Text
				case "numValue", "textValue":
					// The model's own attribute may be of this name, but in another unit and
					// within bounds that the value has missed.
					if a.Name = name; m.homed(r.Sensor, name) {
						a.Name += "Measurement"
					}
					if put(a) {
						values++
					}
				case "controlledProperty", "unit": // of one value, not of the sensor
				default:
					put(a)
				}
			}
		case deviceType: // what the sensor has said of itself, without what is known of it
			for _, a := range e.Attrs {
				if !a.At.IsZero() && a.Kind != Time && put(a) {
					values++
				}
			}
		default:
			for _, a := range e.Attrs {
				put(a)
			}
			values++
		}
	}
	if values == 0 {
		return nil, false
	}
	dst = append(dst, `{"TimeInstant":`...)
	dst = appendTime(dst, r.At.Wall)
	if uncertain = interval != ""; !uncertain && marked {
		at := r.At.Wall.UTC().Format(timeForm)
		interval = at + "/" + at
	}
	if interval != "" {
		attrs = append(attrs, Attr{Name: "timeUncertain", Kind: Text, Text: interval})
	}
	for i := range attrs {
		dst = append(dst, ',')
		dst = appendString(dst, attrs[i].Name)
		dst = append(dst, ':')
		dst = appendValue(dst, &attrs[i])
	}
	return append(dst, '}'), uncertain
}

// homed reports whether the model of that sensor, or the Device, has an attribute of
// that name.
func (m *Mapper) homed(sensor, name string) bool {
	known := []*model{models[deviceType]}
	if s := m.things[sensor]; s != nil {
		known = append(known, s.model)
	}
	for _, md := range known {
		for _, h := range md.homes {
			if h.attr == name {
				return true
			}
		}
	}
	return false
}

// deliver sends ms in their order and waits until each is confirmed, several at a
// time, of one device one at a time. What was confirmed before it fails is kept in
// mind.
func (s *IOTA) deliver(ctx context.Context, ms []*message) error {
	l, err := s.connect(ctx)
	if err != nil {
		return err
	}
	var landed, flying []*message
	bytes := 0
	for len(ms) > 0 || len(flying) > 0 {
		if len(ms) > 0 && (len(flying) == 0 || len(flying) < maxFlying && bytes+len(ms[0].payload) <= s.cfg.MaxPayload &&
			!slices.ContainsFunc(flying, func(m *message) bool { return m.device == ms[0].device })) {
			m := ms[0]
			if m.token, err = l.publish(ctx, "/json/"+s.cfg.APIKey+"/"+m.device+"/attrs", m.payload); err == nil {
				flying, ms = append(flying, m), ms[1:]
				bytes += len(m.payload)
				continue
			}
		} else {
			m := flying[0]
			if err = l.confirmed(ctx, m.token, s.cfg.Timeout); err == nil {
				landed, flying = append(landed, m), flying[1:]
				bytes -= len(m.payload)
				continue
			}
		}
		if odd, ok := errors.AsType[fault](l.wire.why()); ok {
			err = odd
		}
		l.end() // nothing that comes later may be taken for an answer to this
		for _, m := range flying {
			switch {
			case l.wire.took(m.token.MessageID()):
				landed = append(landed, m)
			case ctx.Err() == nil:
				s.shrink(len(m.payload))
			}
		}
		s.keep(landed)
		return s.failure(ctx, err)
	}
	return nil
}

// keep remembers what was confirmed in a Send that failed.
func (s *IOTA) keep(landed []*message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.taken) > maxTaken {
		clear(s.taken)
	}
	for _, m := range landed {
		for _, g := range m.measures {
			s.taken[g.key] = struct{}{}
		}
	}
}

// settle forgets what was remembered for b, which is through.
func (s *IOTA) settle(b batch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range b.keys {
		delete(s.taken, k)
	}
	maps.Copy(s.marked, b.marked)
	maps.DeleteFunc(s.marked, func(_ string, marked bool) bool { return !marked })
}

// shrink is for a message of that size that was never confirmed: in MQTT 3.1.1 a
// broker that finds it too large just closes the connection. It is a guess, so not
// below a size that every broker takes and that costs little.
func (s *IOTA) shrink(size int) {
	if size <= leastPayload {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limit = min(s.limit, max(size/2, leastPayload))
}

// connectCode is a CONNACK's.
type connectCode byte

// refusals are the codes of MQTT 3.1.1, section 3.2.2.3.
var refusals = map[connectCode]string{
	1: "it does not speak MQTT 3.1.1",
	2: "it refuses our client id: is it too long for this broker? Write a shorter client_id",
	3: "the broker is not ready",
	4: "the broker refuses our user name or password: check its username and password_file",
	5: "the broker does not let us in: check its username and password_file, and what the broker allows this user and client id",
}

func (r connectCode) Error() string {
	return cmp.Or(refusals[r], fmt.Sprintf("it refuses us with code %d", byte(r)))
}

// fault is an answer that no MQTT broker gives.
type fault string

func (f fault) Error() string { return string(f) }

// credentialsError is that there is no user name and password to be had.
type credentialsError struct{ error }

func (e credentialsError) Unwrap() error { return e.error }

var (
	errSilent      = errors.New("nothing is confirmed (no PUBACK): is the network up, and the broker well?")
	errUnconfirmed = errors.New("the connection was closed before all was confirmed: is the broker well, and no other client of our client id there?")
)

// failure is err for the Forwarder. The same trouble has the same words.
func (s *IOTA) failure(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	a := answer{cause: err}
	refused, isRefusal := errors.AsType[connectCode](err)
	odd, isOdd := errors.AsType[fault](err)
	_, isCredentials := errors.AsType[credentialsError](err)
	switch {
	case isCredentials:
		a.words = fmt.Sprintf("no user name and password for %s: %v", s.cfg.URL, err)
	case isRefusal:
		a.words = fmt.Sprintf("%s answered: %s", s.cfg.URL, refused)
	case isOdd:
		a.words = fmt.Sprintf("%s does not answer as an MQTT broker does: %s. Check its url", s.cfg.URL, odd)
	case errors.Is(err, errSilent) || errors.Is(err, errUnconfirmed):
		a.words, a.lost = fmt.Sprintf("no answer from %s: %v", s.cfg.URL, err), true
	default:
		a = noAnswer(s.cfg.URL, s.cfg.TLS, err)
	}
	return a.failure()
}
