package ngsi

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// TLSConfig is the client's side of TLS to the servers of one uplink. Empty
// fields mean: as usual.
type TLSConfig struct {
	CAFile   string           // a private authority's certificates (PEM), trusted beside the system's
	CertFile string           // our own certificate (PEM), where the server asks for one
	KeyFile  string           // and its key (PEM)
	Pins     []string         // sha256/BASE64 of keys, of which the server's chain must have one, too
	Time     func() time.Time // for what is valid now; default time.Now
	Warn     func(error)      // is told that changed files cannot be used: those before go on
}

// TLS makes a tls.Config, and another one when the files have changed.
type TLS struct {
	cfg   TLSConfig
	asked atomic.Bool // for our certificate, by a server that has not answered since

	mu     sync.Mutex
	files  []os.FileInfo // as they were when last read; nil: not there
	config *tls.Config
}

// NewTLS reads the files.
func NewTLS(cfg TLSConfig) (*TLS, error) {
	if cfg.Warn == nil {
		cfg.Warn = func(error) {}
	}
	for _, pin := range cfg.Pins {
		if err := CheckPin(pin); err != nil {
			return nil, err
		}
	}
	t := &TLS{cfg: cfg}
	t.files = t.look() // before they are read: no change is missed
	var err error
	t.config, err = t.read()
	return t, err
}

// CheckPin refuses what is not a pin.
func CheckPin(pin string) error {
	hash, ok := strings.CutPrefix(pin, "sha256/")
	if b, err := base64.StdEncoding.DecodeString(hash); !ok || err != nil || len(b) != sha256.Size {
		return errors.New("want sha256/ and the 44 characters of a SHA-256 in base64; the error of a wrong pin shows the one seen")
	}
	return nil
}

// Config is for the next connection. It is the same as before as long as the
// files are: one that is verified by another must not be used again.
func (t *TLS) Config() *tls.Config {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.look()
	if slices.EqualFunc(now, t.files, sameFile) {
		return t.config
	}
	t.files = now
	c, err := t.read()
	if err != nil { // half of them written, perhaps: what follows is a change as well
		t.cfg.Warn(fmt.Errorf("changed files cannot be used, those before go on: %w", err))
		return t.config
	}
	t.config = c
	return c
}

// look is the state of the files.
func (t *TLS) look() []os.FileInfo {
	var files []os.FileInfo
	for _, name := range []string{t.cfg.CAFile, t.cfg.CertFile, t.cfg.KeyFile} {
		if name != "" {
			i, _ := os.Stat(name) // nil: not there
			files = append(files, i)
		}
	}
	return files
}

func sameFile(a, b os.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
}

func (t *TLS) read() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, Time: t.cfg.Time}
	if len(t.cfg.Pins) > 0 {
		c.VerifyConnection = t.verifyPin // after the verification of the chain
	}
	var own tls.Certificate // none
	if t.cfg.CertFile != "" || t.cfg.KeyFile != "" {
		pair, err := tls.LoadX509KeyPair(t.cfg.CertFile, t.cfg.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("read our certificate and its key: %w", err)
		}
		own = pair
	}
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		t.asked.Store(true)
		return &own, nil // whatever authorities it names: it was configured for this server
	}
	if t.cfg.CAFile == "" {
		return c, nil
	}
	f, err := os.Open(t.cfg.CAFile)
	if err != nil {
		return nil, fmt.Errorf("read the authority's certificates: %w", err)
	}
	defer f.Close()
	pem, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("read the authority's certificates: %w", err)
	}
	if c.RootCAs, err = x509.SystemCertPool(); err != nil {
		c.RootCAs = x509.NewCertPool()
	}
	if !c.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s: there is no certificate in it: want PEM, beginning with -----BEGIN CERTIFICATE-----", t.cfg.CAFile)
	}
	return c, nil
}

func (t *TLS) verifyPin(s tls.ConnectionState) error {
	for _, chain := range s.VerifiedChains {
		for _, c := range chain {
			if slices.Contains(t.cfg.Pins, pinOf(c)) {
				return nil
			}
		}
	}
	return &pinError{pinOf(s.PeerCertificates[0])}
}

func pinOf(c *x509.Certificate) string {
	hash := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return "sha256/" + base64.StdEncoding.EncodeToString(hash[:])
}

type pinError struct{ seen string }

func (e *pinError) Error() string {
	return fmt.Sprintf("its key is none of those pinned: it shows %s. If the server's administrator confirms this one, write it as pin", e.seen)
}

// answered tells that a server has taken the connection as it is.
func (t *TLS) answered() { t.asked.Store(false) }

func (t *TLS) now() time.Time {
	if t.cfg.Time != nil {
		return t.cfg.Time()
	}
	return time.Now()
}

// transport is for requests by t.
func (t *TLS) transport() http.RoundTripper {
	if t.look() == nil {
		return newTransport(t.config)
	}
	return &transport{tls: t}
}

// transport follows the files: a request goes over connections that were verified
// by them as they are now.
type transport struct {
	tls *TLS

	mu     sync.Mutex
	config *tls.Config
	by     *http.Transport
}

func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	t.mu.Lock()
	if c := t.tls.Config(); c != t.config {
		if t.by != nil {
			t.by.CloseIdleConnections() // and those in use as soon as they are idle
		}
		t.config, t.by = c, newTransport(c)
	}
	by := t.by
	t.mu.Unlock()
	return by.RoundTrip(r)
}

// CloseIdleConnections is what http.Client asks for.
func (t *transport) CloseIdleConnections() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.by != nil {
		t.by.CloseIdleConnections()
	}
}

// words says what is wrong in a TLS connection, and what to do; empty: it is
// not that. The same trouble has the same words all day.
func (t *TLS) words(err error) string {
	if e, ok := errors.AsType[*pinError](err); ok {
		return e.Error()
	}
	if e, ok := errors.AsType[x509.HostnameError](err); ok {
		return wrongName(e)
	}
	if e, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return e.Error() + ": write the authority's file as ca_file"
	}
	const day = "2006-01-02"
	now := t.now()
	e, invalid := errors.AsType[x509.CertificateInvalidError](err)
	switch {
	case invalid && e.Reason == x509.Expired && now.Before(e.Cert.NotBefore):
		return fmt.Sprintf("its certificate is not valid before %s, and here it is %s: is this machine's clock right?", e.Cert.NotBefore.UTC().Format(day), now.UTC().Format(day))
	case invalid && e.Reason == x509.Expired:
		return fmt.Sprintf("its certificate has expired on %s, and here it is %s: is this machine's clock right?", e.Cert.NotAfter.UTC().Format(day), now.UTC().Format(day))
	case errors.Is(err, http.ErrSchemeMismatch):
		return "this port speaks http without TLS: write http:// in the URL, or the port that speaks TLS"
	}
	// A server that refuses our certificate says so and closes at once: its word is
	// often lost.
	alert, ok := errors.AsType[*net.OpError](err)
	refuses := ok && alert.Op == "remote error" && (strings.Contains(alert.Err.Error(), "certificate") || strings.Contains(alert.Err.Error(), "handshake failure"))
	switch asked := t.asked.Load(); {
	case !refuses && (!asked || !cut(err)):
		return ""
	case t.cfg.CertFile != "":
		return "it refuses our certificate: is the one in cert_file expired, or of another authority?"
	default:
		return "it wants a certificate of ours: write cert_file and key_file"
	}
}

// wrongName names what was asked for and what the certificate is for.
func wrongName(e x509.HostnameError) string {
	names := slices.Clone(e.Certificate.DNSNames)
	for _, ip := range e.Certificate.IPAddresses {
		names = append(names, ip.String())
	}
	if len(names) > 5 {
		names = append(names[:5], "…")
	}
	if len(names) == 0 {
		return fmt.Sprintf("its certificate has no names (a CN alone does not count), so it is not for %s", e.Host)
	}
	return fmt.Sprintf("its certificate is for %s, not for %s: write one of its names in the URL", strings.Join(names, ", "), e.Host)
}
