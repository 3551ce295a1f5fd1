package ngsi

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"campus-gateway"
)

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

var serial atomic.Int64

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(serial.Add(1)), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-20 * 365 * 24 * time.Hour), NotAfter: time.Now().Add(20 * 365 * 24 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return &authority{c, key}
}

func (a *authority) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}))
}

// issue makes a certificate for names, valid from and to so much from now, and its key.
func (a *authority) issue(t *testing.T, from, to time.Duration, names ...string) (certPEM, keyPEM string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(serial.Add(1)), Subject: pkix.Name{CommonName: "leaf"},
		NotBefore: time.Now().Add(from), NotAfter: time.Now().Add(to),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			c.DNSNames = append(c.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
}

func (a *authority) pair(t *testing.T, from, to time.Duration, names ...string) *tls.Certificate {
	t.Helper()
	c, k := a.issue(t, from, to, names...)
	pair, err := tls.X509KeyPair([]byte(c), []byte(k))
	if err != nil {
		t.Fatal(err)
	}
	return &pair
}

// secured is a broker behind TLS, whose certificate and wishes can change.
type secured struct {
	*httptest.Server
	shows    atomic.Pointer[tls.Certificate]
	clients  atomic.Pointer[x509.CertPool] // whose certificates it wants; nil: none
	requests atomic.Int32
	conns    atomic.Int32
	serials  chan *big.Int
}

func newSecured(t *testing.T, shows *tls.Certificate) *secured {
	t.Helper()
	s := &secured{serials: make(chan *big.Int, 100)}
	s.shows.Store(shows)
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		s.requests.Add(1)
		if len(r.TLS.PeerCertificates) > 0 {
			s.serials <- r.TLS.PeerCertificates[0].SerialNumber
		}
		w.WriteHeader(204)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			s.conns.Add(1)
		}
	}
	s.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		c := &tls.Config{Certificates: []tls.Certificate{*s.shows.Load()}, NextProtos: []string{"h2", "http/1.1"}}
		if pool := s.clients.Load(); pool != nil {
			c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, pool
		}
		return c, nil
	}}
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// uplink is a Sink to s, and one try of it.
func (s *secured) uplink(t *testing.T, c TLSConfig) func() error {
	t.Helper()
	tls, err := NewTLS(c)
	if err != nil {
		t.Fatal(err)
	}
	m, rs := many(1)
	sink, err := New(Config{URL: s.URL, TLS: tls}, m)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sink.Close)
	return func() error { return sink.Send(t.Context(), rs) }
}

// kept checks that the readings are kept, and why.
func kept(t *testing.T, err error, words string) {
	t.Helper()
	if _, ok := errors.AsType[*gateway.RetryError](err); !ok || !regexp.MustCompile(words).MatchString(err.Error()) {
		t.Errorf("%v, want %s", err, words)
	}
}

const year = 365 * 24 * time.Hour

// What is wrong with a server's certificate is said so that it can be mended; no
// byte of a request goes there; and when it is mended all goes on.
func TestD10ServerCertificate(t *testing.T) {
	ca, other := newAuthority(t, "campus"), newAuthority(t, "other")
	good := ca.pair(t, -time.Hour, year, "127.0.0.1")
	file := write(t, "ca.pem", ca.pem())
	for name, c := range map[string]struct {
		shows *tls.Certificate
		words string
	}{
		"expired":       {ca.pair(t, -2*year, -year, "127.0.0.1"), `its certificate has expired on \d{4}-\d\d-\d\d, and here it is \d{4}-\d\d-\d\d: is this machine's clock right\?$`},
		"not yet valid": {ca.pair(t, year, 2*year, "127.0.0.1"), `its certificate is not valid before \d{4}-\d\d-\d\d, and here it is .* clock right\?$`},
		"wrong name":    {ca.pair(t, -time.Hour, year, "orion.campus.test", "10.0.0.1"), `its certificate is for orion\.campus\.test, 10\.0\.0\.1, not for 127\.0\.0\.1: write one of its names`},
		"no names":      {ca.pair(t, -time.Hour, year), `has no names .* not for 127\.0\.0\.1`},
		"another's":     {other.pair(t, -time.Hour, year, "127.0.0.1"), `unknown authority.*: write the authority's file as ca_file`},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSecured(t, c.shows)
			try := s.uplink(t, TLSConfig{CAFile: file})
			err := try()
			kept(t, err, c.words)
			if again := try(); again.Error() != err.Error() {
				t.Errorf("other words: %v", again)
			}
			if s.requests.Load() != 0 {
				t.Error("a request was sent")
			}
			s.shows.Store(good)
			if err := try(); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("clock", func(t *testing.T) { // the gateway's own, not the machine's
		s := newSecured(t, good)
		kept(t, s.uplink(t, TLSConfig{CAFile: file, Time: func() time.Time { return time.Now().Add(-10 * year) }})(), "not valid before")
		kept(t, s.uplink(t, TLSConfig{CAFile: file, Time: func() time.Time { return time.Now().Add(10 * year) }})(), "has expired on")
	})
	t.Run("old TLS", func(t *testing.T) {
		s := newSecured(t, good)
		ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{*good}, MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10})
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				_ = c.(*tls.Conn).Handshake()
				c.Close()
			}
		}()
		s.URL = "https://" + ln.Addr().String()
		kept(t, s.uplink(t, TLSConfig{CAFile: file})(), "protocol version")
	})
	t.Run("no TLS", func(t *testing.T) {
		s := newSecured(t, good)
		plain := httptest.NewServer(http.NotFoundHandler())
		defer plain.Close()
		s.URL = "https" + strings.TrimPrefix(plain.URL, "http")
		kept(t, s.uplink(t, TLSConfig{CAFile: file})(), "this port speaks http without TLS: write http://")
	})
}

// The authority's file is exchanged on disk: what it no longer trusts is not used,
// not even over a connection that is there; what it trusts now is. No restart.
func TestD10RotatedCA(t *testing.T) {
	old, next := newAuthority(t, "old"), newAuthority(t, "next")
	file := write(t, "ca.pem", old.pem())
	s := newSecured(t, old.pair(t, -time.Hour, year, "127.0.0.1"))
	var warned []error
	try := s.uplink(t, TLSConfig{CAFile: file, Warn: func(err error) { warned = append(warned, err) }})
	for range 3 {
		if err := try(); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.conns.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
	replace(t, file, next.pem())
	kept(t, try(), "unknown authority")
	s.shows.Store(next.pair(t, -time.Hour, year, "127.0.0.1"))
	if err := try(); err != nil {
		t.Error(err)
	}
	// Both in one file, as in a changeover.
	replace(t, file, next.pem()+old.pem())
	s.shows.Store(old.pair(t, -time.Hour, year, "127.0.0.1"))
	if err := try(); err != nil {
		t.Error(err)
	}
	// A file that is broken or gone for a while ends nothing, and is told once.
	for _, text := range []string{"half of a", ""} {
		if text == "" {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		} else {
			replace(t, file, text)
		}
		before := len(warned)
		for range 3 {
			if err := try(); err != nil {
				t.Error(err)
			}
		}
		if len(warned) != before+1 {
			t.Errorf("warned %v", warned[before:])
		}
	}
	write(t, file, next.pem())
	kept(t, try(), "unknown authority")
}

// replace puts another file in a file's place.
func replace(t *testing.T, file, text string) {
	t.Helper()
	write(t, file+".new", text)
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

// A client's certificate is shown, and the one that replaces it on disk from then
// on; a pair that is half exchanged changes nothing.
func TestD10ClientCertificate(t *testing.T) {
	ca := newAuthority(t, "campus")
	s := newSecured(t, ca.pair(t, -time.Hour, year, "127.0.0.1"))
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	s.clients.Store(pool)
	caFile := write(t, "ca.pem", ca.pem())
	kept(t, s.uplink(t, TLSConfig{CAFile: caFile})(), "it wants a certificate of ours: write cert_file and key_file")
	cert, key := ca.issue(t, -2*time.Hour, -time.Hour)
	certFile, keyFile := write(t, "cert.pem", cert), write(t, "key.pem", key)
	warned := 0
	try := s.uplink(t, TLSConfig{CAFile: caFile, CertFile: certFile, KeyFile: keyFile, Warn: func(error) { warned++ }})
	kept(t, try(), "it refuses our certificate: is the one in cert_file expired")
	cert, key = ca.issue(t, -time.Hour, year)
	replace(t, certFile, cert)
	kept(t, try(), "it refuses our certificate")
	if warned != 1 {
		t.Errorf("%d warnings of a pair that does not fit", warned)
	}
	replace(t, keyFile, key)
	if err := try(); err != nil {
		t.Fatal(err)
	}
	first := <-s.serials
	cert, key = ca.issue(t, -time.Hour, year)
	replace(t, keyFile, key)
	replace(t, certFile, cert)
	for len(s.serials) > 0 {
		<-s.serials
	}
	if err := try(); err != nil {
		t.Fatal(err)
	}
	if second := <-s.serials; first.Cmp(second) == 0 {
		t.Error("the old certificate is shown")
	}
	// A broker that has taken the certificate and then goes away has not refused it.
	side, err := NewTLS(TLSConfig{CAFile: caFile, CertFile: certFile, KeyFile: keyFile})
	if err != nil {
		t.Fatal(err)
	}
	m, rs := many(1)
	sink, err := New(Config{URL: s.URL, TLS: side}, m)
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	if err := sink.Send(t.Context(), rs); err != nil || side.words(io.EOF) != "" {
		t.Errorf("%v, %s", err, side.words(io.EOF))
	}
	rogue, rogueKey := newAuthority(t, "rogue").issue(t, -time.Hour, year)
	replace(t, keyFile, rogueKey)
	replace(t, certFile, rogue)
	kept(t, try(), "certificate of ours|refuses our certificate")
}

// A pin is held to in addition: of the leaf, or of an authority above it. It never
// makes a certificate good that is not.
func TestD10Pin(t *testing.T) {
	ca := newAuthority(t, "campus")
	shows := ca.pair(t, -time.Hour, year, "127.0.0.1")
	leaf, err := x509.ParseCertificate(shows.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	s := newSecured(t, shows)
	file := write(t, "ca.pem", ca.pem())
	none := "sha256/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
	for _, pins := range [][]string{nil, {pinOf(leaf)}, {pinOf(ca.cert)}, {none, pinOf(leaf)}} {
		if err := s.uplink(t, TLSConfig{CAFile: file, Pins: pins})(); err != nil {
			t.Errorf("%v: %v", pins, err)
		}
	}
	before := s.requests.Load()
	kept(t, s.uplink(t, TLSConfig{CAFile: file, Pins: []string{none}})(), regexp.QuoteMeta("it shows "+pinOf(leaf)+"."))
	kept(t, s.uplink(t, TLSConfig{Pins: []string{pinOf(leaf)}})(), "unknown authority")
	kept(t, s.uplink(t, TLSConfig{CAFile: file, Pins: []string{pinOf(leaf)}, Time: func() time.Time { return time.Now().Add(10 * year) }})(), "has expired")
	if s.requests.Load() != before {
		t.Error("a request was sent")
	}
	for _, pin := range []string{"", "sha256/", "sha1/AAAA", pinOf(leaf)[:40], strings.ToUpper(pinOf(leaf)), "sha256//" + pinOf(leaf)[7:]} {
		if _, err := NewTLS(TLSConfig{Pins: []string{pin}}); err == nil {
			t.Errorf("%q is taken for a pin", pin)
		}
	}
}

// The token server is reached by the same rules, and its troubles are told alike.
func TestD10TokenServer(t *testing.T) {
	ca := newAuthority(t, "campus")
	file := write(t, "ca.pem", newAuthority(t, "other").pem())
	k := &keyrock{}
	srv := httptest.NewUnstartedServer(k)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{*ca.pair(t, -time.Hour, year, "127.0.0.1")}}
	srv.StartTLS()
	defer srv.Close()
	side, err := NewTLS(TLSConfig{CAFile: file})
	if err != nil {
		t.Fatal(err)
	}
	a, err := NewAuth(AuthConfig{TLS: side, OAuth2: &OAuth2{TokenURL: srv.URL, ClientID: "gw-1", ClientSecret: Secret{File: write(t, "s", canarySecret)}}})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	_, err = a.Token(t.Context())
	if err == nil || !strings.Contains(err.Error(), "write the authority's file as ca_file") || k.times() != 0 {
		t.Errorf("%v", err)
	}
	noCanary(t, err)
	replace(t, file, ca.pem())
	a.mu.Lock()
	a.next = time.Time{}
	a.mu.Unlock()
	must(t, a)
}

func TestNewTLS(t *testing.T) {
	ca := newAuthority(t, "campus")
	cert, key := ca.issue(t, -time.Hour, year)
	_, otherKey := ca.issue(t, -time.Hour, year)
	dir := t.TempDir()
	put := func(name, text string) string { return write(t, filepath.Join(dir, name), text) }
	empty := put("empty.pem", "hello")
	for _, c := range []struct {
		config TLSConfig
		want   string
	}{
		{TLSConfig{}, ""},
		{TLSConfig{CAFile: put("ca.pem", ca.pem()), CertFile: put("cert.pem", cert), KeyFile: put("key.pem", key)}, ""},
		{TLSConfig{CAFile: empty}, "there is no certificate in it"},
		{TLSConfig{CAFile: empty + ".none"}, "no such file"},
		{TLSConfig{CertFile: put("cert.pem", cert), KeyFile: put("other.pem", otherKey)}, "private key does not match"},
		{TLSConfig{CertFile: put("cert.pem", cert)}, "read our certificate and its key"},
	} {
		got, err := NewTLS(c.config)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c.config, err)
		}
		if err == nil && (got.Config().MinVersion != tls.VersionTLS12 || got.Config().InsecureSkipVerify) {
			t.Error("it is not careful")
		}
	}
}
