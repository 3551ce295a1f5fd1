package ngsi

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"campus-gateway/ngsi/sandbox"
)

// Each kind of broker lets us write, and afterwards has what it had before: nothing.
func TestTryChangesNothing(t *testing.T) {
	for name, c := range map[string]struct {
		api  string
		like sandbox.Options
	}{
		"orion": {"ngsi-v2", sandbox.Options{}}, "orion-ld": {"ngsi-ld", sandbox.Options{Like: sandbox.OrionLD}},
		"scorpio": {"scorpio", sandbox.Options{Like: sandbox.Scorpio}}, "stellio": {"stellio", sandbox.Options{Like: sandbox.Stellio}},
	} {
		t.Run(name, func(t *testing.T) {
			written := 0
			c.like.OnUpdate = func(sandbox.Update) { written++ }
			srv := httptest.NewServer(sandbox.New(c.like))
			defer srv.Close()
			s, err := New(Config{URL: srv.URL, API: c.api}, NewMapper("gw-1", nil))
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if said, err := s.Try(t.Context()); err != nil || !strings.Contains(said, "empty") {
				t.Errorf("%q, %v", said, err)
			}
			if written != 0 {
				t.Errorf("%d entities written", written)
			}
		})
	}
}

// What is no broker's own yes or no is an error that says what to look at.
func TestTryRefused(t *testing.T) {
	for name, c := range map[string]struct {
		api, kind, body string
		status          int
		want            string
	}{
		"token":     {"ngsi-v2", "text/plain", "", 401, "refuses our token"},
		"policy":    {"ngsi-v2", "text/plain", "", 403, "policy"},
		"login":     {"ngsi-v2", "text/html", "<html>", 200, "login page"},
		"elsewhere": {"ngsi-v2", "text/html", "", 302, "sends us elsewhere"},
		"not found": {"ngsi-v2", "text/plain", "", 404, "no NGSI API"},
		"tenant":    {"ngsi-ld", "application/problem+json", `{"type":"https://uri.etsi.org/ngsi-ld/errors/NonexistentTenant","title":"no such tenant"}`, 404, "no such tenant"},
		"proxy":     {"ngsi-v2", "text/plain", "bad", 400, "not an answer of an NGSI broker"},
	} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if b, _ := io.ReadAll(r.Body); strings.Contains(string(b), `"id"`) {
					t.Errorf("an entity was sent: %s", b)
				}
				w.Header().Set("Content-Type", c.kind)
				w.WriteHeader(c.status)
				_, _ = io.WriteString(w, c.body)
			}))
			defer srv.Close()
			s, err := New(Config{URL: srv.URL, API: c.api}, NewMapper("gw-1", nil))
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if said, err := s.Try(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%q, %v", said, err)
			}
		})
	}
}
