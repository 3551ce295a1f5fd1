package ngsi

import (
	"bufio"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"
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

// A simple server closes after each answer without a word: that is no loss either.
func TestLineClosedEachTime(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				if r, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
					_, _ = io.Copy(io.Discard, r.Body)
					_, _ = io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
				}
			})
		}
	})
	m, rs := many(1)
	sink, err := New(Config{URL: "http://" + ln.Addr().String()}, m)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		if err := sink.Send(t.Context(), rs); err != nil {
			t.Fatalf("%d: %v", i, err)
		}
		time.Sleep(10 * time.Millisecond) // net/http sees that it is closed, or would write to it
	}
	sink.Close()
	ln.Close()
	serving.Wait()
}
