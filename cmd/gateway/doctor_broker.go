package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"campus-gateway"
	"campus-gateway/ngsi"
)

// How long one step towards a broker may take. All together have checkLimit.
const (
	quickStep = 1500 * time.Millisecond // name, connection, TLS
	slowStep  = 2 * time.Second         // an answer of the broker or the token server
)

// certificateEnds is how long before its end a certificate is warned of.
const certificateEnds = 14 * 24 * time.Hour

func checkNoBroker(_ context.Context, p *patient) []finding {
	if p.c == nil {
		return []finding{skipped("broker", "which one, the configuration does not tell")}
	}
	return []finding{skipped("broker", "none is configured: readings wait in the log")}
}

// visit is the way to one broker, step by step.
type visit struct {
	*patient
	u       *uplinkConfig
	at      *url.URL
	address string // host and port
	tls     *ngsi.TLS
	found   []finding
}

// checkBroker goes to a broker step by step, up to an update that changes nothing. What
// comes after a step that fails is not tried.
func checkBroker(ctx context.Context, p *patient, u *uplinkConfig) []finding {
	at, err := url.Parse(u.URL)
	if err != nil { // the configuration has been checked
		return []finding{fail("broker", "", "%v", err)}
	}
	port := map[string]string{"http": "80", "https": "443", "mqtt": "1883", "mqtts": "8883"}[at.Scheme]
	if at.Port() != "" {
		port = at.Port()
	}
	v := &visit{patient: p, u: u, at: at, address: net.JoinHostPort(at.Hostname(), port)}
	if v.tls, err = u.TLS.client(p.now, func(error) {}); err != nil {
		return []finding{fail("TLS", "", "%v", err)}
	}
	type step struct {
		name string
		take func(context.Context) (ok bool)
		most time.Duration
	}
	steps := []step{{"name", v.name, quickStep}, {"connection", v.connection, quickStep}}
	if at.Scheme == "https" || at.Scheme == "mqtts" {
		steps = append(steps, step{"TLS", v.secure, quickStep})
	}
	if via, err := p.proxy(&http.Request{URL: at}); err == nil && via != nil && u.API != iotaJSON {
		v.found = append(v.found, ok("proxy", "the way goes through %s (HTTP_PROXY or HTTPS_PROXY): name, connection and certificate are its matter", via.Host))
		steps = nil
	}
	if u.API == iotaJSON {
		steps = append(steps, step{"MQTT", v.mqtt, slowStep})
	} else {
		steps = append(steps, step{"token", v.token, slowStep}, step{"broker", v.broker, 3 * slowStep})
	}
	for i, s := range steps {
		ctx, cancel := context.WithTimeout(ctx, s.most)
		passed := s.take(ctx)
		cancel()
		if !passed {
			for _, later := range steps[i+1:] {
				v.found = append(v.found, skipped(later.name, "not tried: first the %s", s.name))
			}
			break
		}
	}
	if d, told := p.daemon.uplinks[u.Name]; told && !d.Down.IsZero() {
		v.found = append(v.found, warn("daemon", "journalctl -u gateway -n 50 --no-pager", "the daemon has had no answer for %v, %d readings wait; it says: %s", p.now().Sub(d.Down).Round(time.Second), d.Waiting, d.Why))
	}
	return v.found
}

func (v *visit) add(f finding) (passed bool) {
	v.found = append(v.found, f)
	return f.Status != isFailure
}

// name resolves the host's name.
func (v *visit) name(ctx context.Context) bool {
	host := v.at.Hostname()
	if net.ParseIP(host) != nil {
		return true
	}
	all, err := v.resolve(ctx, host)
	switch {
	case ctx.Err() != nil:
		return v.add(fail("name", "getent hosts "+host+"; cat /etc/resolv.conf; ip route", "no name server has answered in %v: is the network up?", quickStep))
	case err != nil:
		why := err.Error()
		if e, isDNS := errors.AsType[*net.DNSError](err); isDNS && e.IsNotFound {
			why = "no such host: is it written right?"
		}
		return v.add(fail("name", "getent hosts "+host+"; cat /etc/resolv.conf; ip route", "%s cannot be resolved: %s", host, why))
	}
	return v.add(ok("name", "%s is %s", host, strings.Join(all[:min(3, len(all))], ", ")))
}

// connection opens one and closes it.
func (v *visit) connection(ctx context.Context) bool {
	begun := time.Now()
	conn, err := v.dial(ctx, "tcp", v.address)
	if err != nil {
		mend := "nc -zv " + v.at.Hostname() + " " + v.address[strings.LastIndex(v.address, ":")+1:]
		op, isOp := errors.AsType[*net.OpError](err)
		switch {
		case ctx.Err() != nil:
			return v.add(fail("connection", mend, "no answer from %s in %v: is a firewall in between, or the machine off?", v.address, quickStep))
		case errors.Is(err, syscall.ECONNREFUSED):
			return v.add(fail("connection", mend, "%s refuses: the machine is there, and nothing listens on this port. Is the broker running, and the port right?", v.address))
		case isOp:
			err = op.Err // without our own port
		}
		return v.add(fail("connection", "ip route get "+v.at.Hostname(), "no way to %s: %v", v.address, err))
	}
	conn.Close()
	return v.add(ok("connection", "%s, in %d ms", v.address, time.Since(begun).Milliseconds()))
}

// secure is the handshake, with the configured authority, certificate and pins.
func (v *visit) secure(ctx context.Context) bool {
	show := fmt.Sprintf("openssl s_client -connect %s -servername %s </dev/null | openssl x509 -noout -subject -issuer -dates", v.address, v.at.Hostname())
	conn, err := v.dial(ctx, "tcp", v.address)
	if err != nil {
		return v.add(fail("TLS", "", "%v", err))
	}
	defer conn.Close()
	config := v.tls.Config().Clone()
	config.ServerName = v.at.Hostname()
	c := tls.Client(conn, config)
	if err := c.HandshakeContext(ctx); err != nil {
		invalid, isInvalid := errors.AsType[x509.CertificateInvalidError](err)
		_, unknown := errors.AsType[x509.UnknownAuthorityError](err)
		_, otherName := errors.AsType[x509.HostnameError](err)
		_, plain := errors.AsType[tls.RecordHeaderError](err)
		now := v.now().UTC()
		switch {
		case isInvalid && invalid.Reason == x509.Expired && now.Before(invalid.Cert.NotBefore):
			why := "this machine's clock is in the past"
			if v.clockRight(ctx) {
				why = "though this machine's clock is right"
			}
			return v.add(fail("TLS", "timedatectl", "the certificate is not valid before %s, and it is %s here: %s", invalid.Cert.NotBefore.UTC().Format(time.DateOnly), now.Format(time.DateOnly), why))
		case isInvalid && invalid.Reason == x509.Expired:
			return v.add(fail("TLS", show, "the certificate has ended on %s; it is %s here: the broker's needs a new one", invalid.Cert.NotAfter.UTC().Format(time.DateOnly), now.Format(time.DateOnly)))
		case unknown:
			return v.add(fail("TLS", show, "the certificate is of an authority that is not known here: write its file as ca_file"))
		case otherName:
			return v.add(fail("TLS", show, "the certificate is of another host: %v", err))
		case plain:
			return v.add(fail("TLS", "curl -v http://"+v.address+"/version", "it does not speak TLS there: is the URL to begin with http:// (mqtt://)?"))
		case ctx.Err() != nil:
			return v.add(fail("TLS", show, "the handshake has not ended in %v", quickStep))
		}
		return v.add(fail("TLS", show, "%v", err))
	}
	leaf := c.ConnectionState().PeerCertificates[0]
	left := leaf.NotAfter.Sub(v.now())
	if left < certificateEnds {
		return v.add(warn("TLS", show, "the certificate ends on %s, in %d days", leaf.NotAfter.UTC().Format(time.DateOnly), int(left.Hours()/24)))
	}
	return v.add(ok("TLS", "the certificate is good until %s", leaf.NotAfter.UTC().Format(time.DateOnly)))
}

func (p *patient) clockRight(ctx context.Context) bool {
	for _, s := range p.synced {
		if s.ask(ctx) == nil {
			return true
		}
	}
	return false
}

// token gets the token as the daemon would. A refresh token is good for one use, and
// the daemon needs it: it is left alone.
func (v *visit) token(ctx context.Context) bool {
	a := v.u.Auth
	if o := a.OAuth2; o != nil && o.Grant == ngsi.RefreshToken {
		v.add(skipped("token", "a refresh token is used once, and the daemon needs it: its own words tell more (`gateway status`)"))
		return true
	}
	owner, err := a.owner(v.c.Log.Dir, v.u.Name, v.tls, func(error) {})
	switch {
	case err != nil:
		return v.add(fail("token", "", "%v", err))
	case owner == nil:
		return v.add(ok("token", "none is configured"))
	}
	defer owner.Close()
	_, err = owner.Token(ctx)
	switch {
	case err != nil && ctx.Err() != nil:
		return v.add(fail("token", "curl -v "+tokenURL(a), "the token server has not answered in %v", slowStep))
	case err != nil:
		return v.add(fail("token", "sudo ls -l /etc/gateway/secrets", "%v", err))
	}
	return v.add(ok("token", "there is %s", owner))
}

func tokenURL(a authConfig) string {
	if a.OAuth2 == nil {
		return ""
	}
	return a.OAuth2.TokenURL
}

// broker asks what it is and what time it has, and tries an update that changes nothing.
func (v *visit) broker(ctx context.Context) bool {
	u := *v.u
	if o := u.Auth.OAuth2; o != nil && o.Grant == ngsi.RefreshToken {
		return v.add(skipped("broker", "not asked: it would take the refresh token"))
	}
	// The machine's clock is not the daemon's, which may know better; a certificate is
	// held to it here, and an error tells of it.
	b, err := newBroker(v.c, &u, gateway.NewClock(), quiet, ngsi.Host{})
	if err != nil {
		return v.add(fail("broker", "", "%v", err))
	}
	defer b.Close()
	s := b.(*ngsi.Sink) // not iota-json
	const most = slowStep
	asking, cancel := context.WithTimeout(ctx, most)
	err = s.Ask(asking)
	cancel()
	if err != nil {
		return v.add(v.silent("broker", err))
	}
	v.add(ok("broker", "it is %s", s.Broker()))
	asking, cancel = context.WithTimeout(ctx, most)
	theirs, _, err := s.Date(asking)
	cancel()
	if off := theirs.Sub(v.now()).Round(time.Second); err == nil && off.Abs() > time.Minute {
		v.add(warn("its clock", "timedatectl", "the broker's clock is %v off this machine's: one of the two is wrong", off))
	}
	asking, cancel = context.WithTimeout(ctx, most)
	said, err := s.Try(asking)
	cancel()
	if err != nil {
		return v.add(v.silent("write", err))
	}
	to := fmt.Sprintf("service %q, path %q", u.Service, u.ServicePath)
	if u.linked() {
		to = fmt.Sprintf("tenant %q", u.Tenant)
	}
	return v.add(ok("write", "allowed (%s): %s", to, said))
}

// silent is a step whose answer was no, or none.
func (v *visit) silent(name string, err error) finding {
	show := "curl -v " + strings.TrimSuffix(v.u.URL, "/") + "/version"
	if v.u.linked() {
		show = "curl -v '" + strings.TrimSuffix(v.u.URL, "/") + "/ngsi-ld/v1/types?limit=1'"
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return fail(name, show, "connected, but no answer in time: is the broker, or its database, well?")
	}
	return fail(name, show, "%v", err)
}

// mqtt connects with the configured user. The daemon's client id would throw the
// daemon out: this has its own.
func (v *visit) mqtt(ctx context.Context) bool {
	u := *v.u
	u.Agent.ClientID = u.clientID(v.c) + "-doctor"
	b, err := newBroker(v.c, &u, gateway.NewClock(), quiet, ngsi.Host{})
	if err != nil {
		return v.add(fail("MQTT", "", "%v", err))
	}
	s := b.(*ngsi.IOTA)
	switch err := s.Try(ctx); {
	case err != nil && ctx.Err() != nil:
		return v.add(fail("MQTT", "mosquitto_pub -d -h "+v.at.Hostname()+" -t test -n", "connected, but no MQTT answer in %v", slowStep))
	case err != nil:
		return v.add(fail("MQTT", "mosquitto_pub -d -h "+v.at.Hostname()+" -t test -n", "%v", err))
	}
	return v.add(ok("MQTT", "it lets us in; whether it lets us publish, MQTT does not tell"))
}
