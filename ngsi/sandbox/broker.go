// Package sandbox is a small NGSI broker that keeps everything in memory: for
// the demo and for tests, never for production. Nothing in it survives a
// restart, it asks nobody for a token, and its subscriptions send requests
// wherever they are told to: let it listen on loopback only.
//
// Its NGSIv2 answers are those of a real Orion 4.7.0 on the part that the
// gateway uses: what is accepted, what is refused and in which words. A test
// holds them to recorded exchanges (testdata). What a request asks for beyond
// that part is refused with 501 and a plain sentence, not ignored.
//
// NGSI-LD follows ETSI GS CIM 009 (1.8.1) on the same part. It does not expand
// names: an entity is kept with the short names it was sent with, beside the URL
// of its @context, so a query finds it whatever context the query names; a real
// broker would not. The two APIs have separate stores: an entity written through
// one is not seen through the other. It can be told to be like one of the brokers of
// NGSI-LD, as far as their sources and issues tell: none of their answers is recorded.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// forDemo is what the broker says of itself in every answer.
const forDemo = "sandbox broker of the campus gateway, for demo and test only"

// Options are the limits of a Broker and its ties to the world outside. The zero
// value of each field means the default.
type Options struct {
	Now              func() time.Time // default time.Now
	MaxBody          int64            // of a request, in bytes; default 1048576, as Orion's
	MaxEntities      int              // of all tenants together; default 10000
	MaxBytes         int              // kept in entities and subscriptions, about, and as much in the history; default 64 MiB
	MaxSubscriptions int              // of all tenants together; default 100
	MaxQueue         int              // notifications waiting; beyond it the oldest is dropped and counted; default 1000
	MaxConns         int              // open connections in Serve; further ones are closed without an answer; default 1020, as Orion's
	Client           *http.Client     // sends notifications; default: 5 s, no redirects, no proxy
	OnUpdate         func(Update)     // is told of every entity written, one call at a time; must not write to the broker

	// Like is OrionLD, Scorpio or Stellio: then the sandbox says at the same addresses
	// that it is that broker, and does what that does otherwise than the specification
	// has it, as far as the gateway meets it. Default: Orion, and plain NGSI-LD.
	Like      string
	NoHistory bool // no temporal API, as Orion-LD without -troe
}

// Update says that one entity was created or changed. A write that repeats what
// was there is one as well.
type Update struct {
	API         string // "ngsi-v2" or "ngsi-ld"
	Tenant      string // "" is the default tenant
	ServicePath string // "" in NGSI-LD
	ID, Type    string
	Attrs       []Attr // those in the request, in its order
	At          time.Time
}

// Attr is one written attribute of an Update.
type Attr struct {
	Name  string
	Value string // as JSON text
	Unit  string // unitCode, "" if there is none
	Time  string // TimeInstant (NGSIv2) or observedAt (NGSI-LD), "" if there is none
}

// Stats counts what the broker holds and has done.
type Stats struct {
	Entities, Subscriptions int
	Updates                 uint64 // entities written
	Queued                  int    // notifications waiting
	Sent, Failed, Dropped   uint64 // notifications
}

// Broker is the broker. It is an http.Handler; Serve gives it a safe server
// around it, and Run must run for notifications to be delivered. All methods may
// be called concurrently.
type Broker struct {
	opts    Options
	started time.Time

	hook sync.Mutex // orders calls of OnUpdate

	mu      sync.Mutex // guards all below
	tenants map[string]*tenant
	stats   Stats
	bytes   int // in entities and subscriptions
	queue   queue
	wake    chan struct{} // one token: the queue is not empty

	pastEntities int      // with a history
	pastBytes    int      // in it
	pastQueue    []*track // of each instance in it, in the order in which they came
}

// tenant is the world of one Fiware-Service or NGSILD-Tenant. It is made by the
// first write.
type tenant struct {
	entities []*entity // in order of creation
	byID     map[string][]*entity
	ld       []*ldEntity // in order of creation
	ldByID   map[string]*ldEntity
	past     map[string]*ldHistory // by id
	pastIDs  []string              // in order of creation
	subs     []*subscription
}

// New returns an empty broker.
func New(opts Options) *Broker {
	defaults := func(p *int, n int) {
		if *p <= 0 {
			*p = n
		}
	}
	defaults(&opts.MaxEntities, 10000)
	defaults(&opts.MaxBytes, 64<<20)
	defaults(&opts.MaxSubscriptions, 100)
	defaults(&opts.MaxQueue, 1000)
	defaults(&opts.MaxConns, 1020)
	if opts.MaxBody <= 0 {
		opts.MaxBody = 1048576
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Client == nil {
		opts.Client = &http.Client{
			Timeout:       5 * time.Second,
			Transport:     &http.Transport{MaxIdleConns: 10, IdleConnTimeout: 10 * time.Second},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	return &Broker{
		opts: opts, started: opts.Now(),
		tenants: map[string]*tenant{}, wake: make(chan struct{}, 1),
	}
}

// Stats returns the counters.
func (b *Broker) Stats() Stats {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.stats
	s.Queued = len(b.queue.waiting)
	return s
}

// ServeHTTP answers one request of either API.
func (b *Broker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Server", forDemo)
	parts := splitPath(r.URL.EscapedPath())
	if b.serveSelf(w, r, parts) {
		return
	}
	if len(parts) > 0 && parts[0] == "ngsi-ld" {
		b.serveLD(w, r, parts[1:])
		return
	}
	b.serveV2(w, r, parts)
}

// Serve answers on ln until ctx ends, then closes it and the connections, and
// returns nil. It bounds how long a client may take and how many there may be.
func (b *Broker) Serve(ctx context.Context, ln net.Listener) error {
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	srv := &http.Server{
		Handler:           b,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    60 << 10, // 70 kB is refused, as by Orion
		ConnState: func(c net.Conn, s http.ConnState) {
			mu.Lock()
			defer mu.Unlock()
			switch s {
			case http.StateNew:
				if len(open) >= b.opts.MaxConns {
					c.Close()
					return
				}
				open[c] = true
			case http.StateClosed, http.StateHijacked:
				delete(open, c)
			}
		},
	}
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(closed)
		srv.Close()
	})
	err := srv.Serve(ln)
	if !stop() {
		<-closed
	}
	if ctx.Err() != nil && errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("sandbox: serve %s: %w", ln.Addr(), err)
}

// splitPath cuts a path at its slashes; empty parts do not count, as in Orion.
func splitPath(escaped string) []string {
	var parts []string
	for part := range strings.SplitSeq(escaped, "/") {
		if part != "" {
			parts = append(parts, unescape(part))
		}
	}
	return parts
}

// tenantName checks and folds the name of a tenant. why is empty if it is good.
func tenantName(name string) (folded, why string) {
	if len(name) > 50 {
		return "", "bad length - a tenant name can be max 50 characters long"
	}
	for _, c := range []byte(name) {
		if !isWordByte(c) {
			return "", "bad character in tenant name - only underscore and alphanumeric characters are allowed"
		}
	}
	return strings.ToLower(name), ""
}

func isWordByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_'
}

// tenant returns the tenant for writing, made if need be. Called with mu held.
func (b *Broker) tenant(name string) *tenant {
	t := b.tenants[name]
	if t == nil {
		t = &tenant{byID: map[string][]*entity{}, ldByID: map[string]*ldEntity{}, past: map[string]*ldHistory{}}
		b.tenants[name] = t
	}
	return t
}

// look returns the tenant for reading, which may be empty. Called with mu held.
func (b *Broker) look(name string) *tenant {
	if t := b.tenants[name]; t != nil {
		return t
	}
	return &tenant{}
}

// maxAttrs bounds the attributes of an entity: a change copies them all.
const maxAttrs = 1000

var tooManyAttrs = fmt.Sprintf("the sandbox takes at most %d attributes in an entity", maxAttrs)

// full says why the broker takes nothing more, or "". Called with mu held.
func (b *Broker) full(newEntities, newBytes int) string {
	if b.stats.Entities+newEntities > b.opts.MaxEntities {
		return fmt.Sprintf("the sandbox is full: it holds at most %d entities", b.opts.MaxEntities)
	}
	if newBytes > 0 && b.bytes+newBytes > b.opts.MaxBytes {
		return fmt.Sprintf("the sandbox is full: it holds at most %d bytes", b.opts.MaxBytes)
	}
	return ""
}

// tell hands updates to the hook. Called without mu.
func (b *Broker) tell(updates []Update) {
	if b.opts.OnUpdate == nil || len(updates) == 0 {
		return
	}
	b.hook.Lock()
	defer b.hook.Unlock()
	for _, u := range updates {
		b.opts.OnUpdate(u)
	}
}

// answer writes one response. A nil body is an empty one.
func answer(w http.ResponseWriter, status int, contentType string, body []byte) {
	if body != nil {
		w.Header().Set("Content-Type", contentType)
	}
	if status != http.StatusNoContent {
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	}
	w.WriteHeader(status)
	w.Write(body)
}

// page is the part of a list that was asked for.
func page[T any](all []T, offset, limit int) []T {
	if offset >= len(all) {
		return nil
	}
	return all[offset:min(len(all), offset+limit)]
}
