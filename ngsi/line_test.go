package ngsi

import (
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
)

// A proxy lets go of a connection after so many requests, and says so: that is no loss,
// over TLS as without.
func TestLineLetGo(t *testing.T) {
	for _, secure := range []bool{false, true} {
		var n atomic.Int64
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if n.Add(1)%3 == 0 {
				w.Header().Set("Connection", "close")
			}
			w.WriteHeader(http.StatusNoContent)
		}))
		s.EnableHTTP2 = true
		var side *TLS
		if secure {
			s.StartTLS()
			ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
			var err error
			if side, err = NewTLS(TLSConfig{CAFile: write(t, "ca.pem", string(ca))}); err != nil {
				t.Fatal(err)
			}
		} else {
			s.Start()
		}
		m, rs := many(1)
		sink, err := New(Config{URL: s.URL, TLS: side}, m)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			if err := sink.Send(t.Context(), rs); err != nil {
				t.Errorf("TLS %v, %d: %v", secure, i, err)
			}
		}
		sink.Close()
		s.Close()
	}
}
