package ngsi

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"net"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
)

// link is one connection to the broker, from CONNECT to its end. Each has a paho
// client of its own, so that no token, id or stored message of an earlier one can
// be taken for one of this; paho neither reconnects nor resends.
type link struct {
	client mqtt.Client
	wire   *wire
	sent   *atomic.Uint64 // the IOTA's
}

// connect is the present link, or a new one if it has ended. Its error is ready for
// the Forwarder.
func (s *IOTA) connect(ctx context.Context) (*link, error) {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if s.link != nil {
		if s.link.wire.why() == nil && s.link.client.IsConnectionOpen() {
			return s.link, nil
		}
		s.link.end()
		s.link = nil
	}
	l, err := s.open(ctx)
	if err != nil {
		return nil, s.failure(ctx, err)
	}
	s.link = l
	return l, nil
}

func (s *IOTA) open(ctx context.Context) (*link, error) {
	attempt, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	o := mqtt.NewClientOptions()
	o.Servers = []*url.URL{{Scheme: "tcp", Host: s.address}} // one try; the dialling is ours
	o.ClientID = s.cfg.ClientID
	o.ProtocolVersion = 4 // 3.1.1, and no second try with 3.1
	o.CleanSession, o.AutoReconnect, o.ConnectRetry = true, false, false
	o.Store = mqtt.NewMemoryStore()
	o.KeepAlive, o.PingTimeout = 30, 10*time.Second // s
	o.ConnectTimeout, o.WriteTimeout = connectTimeout, handTimeout
	if s.cfg.Credentials != nil {
		var err error
		if o.Username, o.Password, err = s.cfg.Credentials(); err != nil {
			return nil, credentialsError{err}
		}
	}
	// Both are set in paho's goroutine, before its token completes.
	var w *wire
	var dialed error
	o.CustomOpenConnectionFn = func(*url.URL, mqtt.ClientOptions) (net.Conn, error) {
		var conn net.Conn
		if conn, dialed = s.dialTLS(attempt); dialed != nil {
			return nil, dialed
		}
		w = newWire(conn)
		return w, nil
	}
	client := mqtt.NewClient(o)
	token := client.Connect()
	select {
	case <-token.Done():
	case <-attempt.Done():
		client.Disconnect(0) // also one that is about to be made, within connectTimeout
		return nil, context.DeadlineExceeded
	}
	switch err := token.Error(); {
	case dialed != nil:
		return nil, dialed
	case w.why() != nil: // paho closes it when it is refused, but a code that it does not know is no error to it
		client.Disconnect(0)
		if code := w.refused(); code != 0 {
			return nil, code
		}
		return nil, w.why()
	case err != nil:
		client.Disconnect(0)
		return nil, err
	}
	s.cfg.TLS.answered()
	return &link{client, w, &s.sent}, nil
}

func (s *IOTA) dialTLS(ctx context.Context) (net.Conn, error) {
	conn, err := s.dial(ctx, "tcp", s.address)
	if err != nil || s.secure == "" {
		return conn, err
	}
	config := s.cfg.TLS.Config().Clone()
	config.ServerName = s.secure
	secure := tls.Client(conn, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return secure, nil
}

// publish hands a message to paho, once the one before it is written: paho then takes
// it at once. On a link that ends at this moment it takes handTimeout, whatever ctx says.
func (l *link) publish(ctx context.Context, topic string, payload []byte) (*mqtt.PublishToken, error) {
	select {
	case l.wire.writing <- struct{}{}:
		l.sent.Add(uint64(len(topic) + len(payload)))
		return l.client.Publish(topic, 1, false, payload).(*mqtt.PublishToken), nil
	case <-l.wire.ended:
		return nil, errUnconfirmed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// confirmed waits until the broker has sent the PUBACK for t on this link. That t
// completes without an error does not say so: paho's tokens do that also when a
// connection is lost, and for other packets of the same id.
func (l *link) confirmed(ctx context.Context, t *mqtt.PublishToken, timeout time.Duration) error {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	err := errUnconfirmed
	select {
	case <-t.Done():
	case <-l.wire.ended:
	case <-timer.C:
		err = errSilent
	case <-ctx.Done():
		err = ctx.Err()
	}
	if l.wire.took(t.MessageID()) {
		return nil
	}
	return err
}

// end ends the link: no PUBACK counts from now on. It does not wait for paho.
func (l *link) end() {
	l.wire.Close()
	l.client.Disconnect(0)
}

// wire is the connection as paho sees it. It reads along: it knows which messages
// went out and which PUBACKs came in on it, and lets nothing through that is no MQTT
// or too large, since paho makes room for whatever a length announces.
type wire struct {
	net.Conn
	in *bufio.Reader // paho reads single bytes

	// The packet that is being read; only Read knows.
	stage, kind, size, shift, at int
	head                         [2]byte // of what follows the fixed header
	first                        bool

	ended   chan struct{} // closed when it can no longer be read
	writing chan struct{} // full from when a message is handed to paho until it is written

	mu   sync.Mutex
	err  error           // why it has ended; nil: it has not
	out  map[uint16]bool // messages under way, and whether their PUBACK has come
	code connectCode
}

func newWire(conn net.Conn) *wire {
	return &wire{Conn: conn, in: bufio.NewReaderSize(conn, 4096), first: true, ended: make(chan struct{}), writing: make(chan struct{}, 1), out: map[uint16]bool{}}
}

// The packets that a broker may send to a client that subscribes to nothing (some
// subscribe for it).
const (
	packetConnack  = 2
	packetPublish  = 3
	packetPuback   = 4
	packetPingresp = 13
)

func (w *wire) Read(b []byte) (int, error) {
	if err := w.why(); err != nil {
		return 0, err
	}
	n, err := w.in.Read(b)
	for i, c := range b[:n] {
		if odd := w.see(c); odd != nil {
			n, err = i, odd
			break
		}
	}
	if err != nil {
		w.fail(err)
	}
	return n, err
}

// see follows the packets byte by byte.
func (w *wire) see(c byte) error {
	switch w.stage {
	case 0: // type and flags
		w.kind = int(c >> 4)
		if w.first != (w.kind == packetConnack) {
			return fault("it does not begin with a CONNACK, or sends another")
		}
		w.first = false
		if !slices.Contains([]int{packetConnack, packetPublish, packetPuback, packetPingresp}, w.kind) {
			return fault("it sends what we have not asked for")
		}
		w.stage, w.size, w.shift = 1, 0, 0
		return nil
	case 1: // remaining length
		w.size |= int(c&0x7f) << w.shift
		if w.shift += 7; c&0x80 != 0 {
			if w.shift == 28 {
				return fault("a packet's length has no end")
			}
			return nil
		}
		want, fixed := map[int]int{packetConnack: 2, packetPuback: 2, packetPingresp: 0}[w.kind]
		switch {
		case fixed && w.size != want:
			return fault("a packet has a length that it cannot have")
		case w.size > maxInbound:
			return fault(fmt.Sprintf("it announces a packet of more than %d bytes", maxInbound))
		}
		w.stage, w.at = 2, 0
	default:
		if w.at < len(w.head) {
			w.head[w.at] = c
		}
		w.at++
	}
	if w.at == w.size {
		w.stage = 0
		w.packet()
	}
	return nil
}

func (w *wire) packet() {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch w.kind {
	case packetConnack:
		w.code = connectCode(w.head[1])
	case packetPuback:
		id := binary.BigEndian.Uint16(w.head[:])
		if _, ok := w.out[id]; ok && w.err == nil {
			w.out[id] = true
		}
	}
}

// Write writes one packet: paho writes each at once.
func (w *wire) Write(b []byte) (int, error) {
	if id, ok := publishID(b); ok {
		w.mu.Lock()
		w.out[id] = false
		w.mu.Unlock()
		defer func() {
			select {
			case <-w.writing:
			default: // not handed over by publish: there is no such message
			}
		}()
	}
	_ = w.Conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	return w.Conn.Write(b)
}

// SetWriteDeadline does nothing: Write sets its own. Paho's is that for handing over,
// and it takes it off while a ping may be being written.
func (w *wire) SetWriteDeadline(time.Time) error { return nil }

// publishID is the packet identifier of a PUBLISH of QoS 1.
func publishID(b []byte) (uint16, bool) {
	if len(b) == 0 || b[0]>>4 != packetPublish || b[0]>>1&3 != 1 {
		return 0, false
	}
	_, n := binary.Uvarint(b[1:]) // the remaining length is such a number
	if n <= 0 || len(b) < 1+n+2 {
		return 0, false
	}
	b = b[1+n:]
	topic := int(binary.BigEndian.Uint16(b))
	if len(b) < 2+topic+2 {
		return 0, false
	}
	return binary.BigEndian.Uint16(b[2+topic:]), true
}

// took reports whether the PUBACK for id has come, once.
func (w *wire) took(id uint16) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	yes := w.out[id]
	if yes {
		delete(w.out, id)
	}
	return yes
}

func (w *wire) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
		close(w.ended)
	}
}

// why is why it has ended; nil: it has not.
func (w *wire) why() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

func (w *wire) refused() connectCode {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.code
}

func (w *wire) Close() error {
	w.fail(net.ErrClosed)
	return w.Conn.Close()
}
