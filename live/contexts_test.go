package live

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/fstest"
)

// TestContexts: a broker gets an @context under whatever name it calls this
// machine by, and nothing else.
func TestContexts(t *testing.T) {
	s := &Server{Board: &Board{}, Log: slog.New(slog.DiscardHandler), Contexts: fstest.MapFS{
		"dataModel.Weather.jsonld": {Data: []byte(`{"@context":{}}`)}, "README.md": {Data: []byte("licence")},
	}}
	get := func(s *Server, method, path string) *http.Response {
		r := httptest.NewRequest(method, path, nil)
		r.Host = "gw-a101.campus.example"
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, r)
		return w.Result()
	}
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		a := get(s, method, "/contexts/dataModel.Weather.jsonld")
		body, err := io.ReadAll(a.Body)
		if err != nil || a.StatusCode != http.StatusOK || a.Header.Get("Content-Type") != "application/ld+json" ||
			!strings.HasPrefix(a.Header.Get("Cache-Control"), "public, max-age=") || method == http.MethodGet && string(body) != `{"@context":{}}` {
			t.Errorf("%s: %v, %v, %q, %v", method, a.Status, a.Header, body, err)
		}
	}
	for path, want := range map[string]int{
		"/contexts/":                              http.StatusNotFound,
		"/contexts/README.md":                     http.StatusNotFound,
		"/contexts/dataModel.Nothing.jsonld":      http.StatusNotFound,
		"/contexts/..%2fdataModel.Weather.jsonld": http.StatusNotFound,
		"/contexts/x/../../api/v1/sensors":        http.StatusTemporaryRedirect,
		"/api/v1/sensors":                         http.StatusMisdirectedRequest,
		"/metrics":                                http.StatusMisdirectedRequest,
	} {
		if a := get(s, http.MethodGet, path); a.StatusCode != want {
			t.Errorf("%s: %v, want %d", path, a.Status, want)
		}
	}
	if a := get(s, http.MethodPost, "/contexts/dataModel.Weather.jsonld"); a.StatusCode != http.StatusMethodNotAllowed {
		t.Error(a.Status)
	}
	if a := get(&Server{Board: &Board{}}, http.MethodGet, "/contexts/dataModel.Weather.jsonld"); a.StatusCode != http.StatusNotFound {
		t.Error(a.Status)
	}
}
