package ngsi

import (
	"context"
	"net/http"
)

// Try asks whether we may write, and changes nothing: it sends an update of no
// entity on the way that readings take, with the same headers and token. Whoever
// guards the broker judges it like any other update; the broker itself then refuses
// the empty list (Orion 4.5: 400 "empty entities vector"; NGSI-LD 1.6, 5.6.8: an
// empty array is BadRequestData) or takes it. Both say yes, and said is how.
//
// It does not show whether a guard that reads the entities themselves lets ours pass.
func (s *Sink) Try(ctx context.Context) (said string, err error) {
	body := []byte(s.dialect.head + s.dialect.tail)
	a, err := s.post(ctx, Request{Method: http.MethodPost, URL: s.cfg.URL + s.dialect.path, Header: s.headers(http.MethodPost, "dataModel.Device"), Body: body})
	switch {
	case err != nil:
		return "", err
	case a.verdict == accepted, a.verdict == listed:
		return "an empty update was accepted", nil
	case a.verdict == refused:
		return "an empty update reached it: " + a.words, nil
	}
	return "", a.failure()
}

// Try asks the MQTT broker for a connection and ends it: whether it lets us in,
// not whether it lets us publish, which MQTT 3.1.1 has no answer for. It must not
// have the client id of an uplink at work: that would be thrown out.
func (s *IOTA) Try(ctx context.Context) error {
	_, err := s.connect(ctx)
	s.Close()
	return err
}
