package ngsi

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"
)

// line is the connections to the servers of one transport. Where the other side closes
// one that nothing goes over, net/http makes another without a word: right where a
// server lets go of idle ones, but all gateways of a campus would be back in the same
// second after its broker has restarted. So a connection that is closed sooner than
// one was idle before and went on is a loss, and the next one is not made: who sends
// is told, and waits as after any lost connection.
type line struct {
	dial func(ctx context.Context, network, address string) (net.Conn, error)

	mu   sync.Mutex
	idle time.Duration // the longest after which a connection was still good
	lost time.Time     // when one was; zero: none since the last was to be made
}

var errLost = errors.New("the connection was lost: has it been restarted?")

const (
	// longestLoss is how long a loss counts: who sends more seldom is out of step.
	longestLoss = time.Minute
	// handshakes is how many answers say nothing of how long a connection may be idle:
	// those of TLS, and the first of a server that closes after each.
	handshakes = 3
)

func (l *line) connect(ctx context.Context, network, address string) (net.Conn, error) {
	l.mu.Lock()
	lost := !l.lost.IsZero() && time.Since(l.lost) < longestLoss
	l.lost = time.Time{}
	l.mu.Unlock()
	if lost {
		return nil, errLost
	}
	c, err := l.dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &watched{Conn: c, line: l, wrote: time.Now()}, nil
}

// watched is a connection of a line, which guards it.
type watched struct {
	net.Conn
	line    *line
	wrote   time.Time     // when it was last written to
	idle    time.Duration // so long it was not, before
	pending bool          // nothing has come since
	answers int           // that have come
	closed  bool          // by us
}

func (c *watched) Write(b []byte) (int, error) {
	c.line.mu.Lock()
	now := time.Now()
	if !c.pending && c.answers >= handshakes { // a request's first
		c.idle = now.Sub(c.wrote)
	}
	c.wrote, c.pending = now, true
	c.line.mu.Unlock()
	return c.Conn.Write(b)
}

func (c *watched) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.line.mu.Lock()
	defer c.line.mu.Unlock()
	if n > 0 && c.pending {
		c.line.idle = max(c.line.idle, c.idle)
		c.pending = false
		c.answers++
	}
	if err != nil && !c.pending && !c.closed && time.Since(c.wrote) < c.line.idle {
		c.line.lost = time.Now()
	}
	return n, err
}

func (c *watched) Close() error {
	c.line.mu.Lock()
	c.closed = true
	c.line.mu.Unlock()
	return c.Conn.Close()
}
