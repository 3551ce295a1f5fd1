package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func subscribe(t *testing.T, b *Broker, body string) (path string) {
	t.Helper()
	w := do(b, "POST", "/v2/subscriptions", body)
	if w.Code != 201 {
		t.Fatal(w.Body)
	}
	return w.Header().Get("Location")
}

func put(b *Broker, id, attrs string, option ...string) {
	target := "/v2/op/update"
	if len(option) > 0 && option[0] != "" {
		target += "?options=" + option[0]
	}
	if w := do(b, "POST", target, `{"actionType":"append","entities":[{"id":"`+id+`","type":"Room",`+attrs+`}]}`); w.Code != 204 {
		panic(w.Body.String())
	}
}

// A real subscriber over real HTTP gets what it asked for and nothing else.
func TestNotifications(t *testing.T) {
	b, _ := start(t, Options{})
	sub := newSubscriber(t)
	subscribe(t, b, `{"description":"d","subject":{"entities":[{"idPattern":"^r","type":"Room"}],`+
		`"condition":{"attrs":["t"],"expression":{"q":"t>20"},"notifyOnMetadataChange":false}},`+
		`"notification":{"http":{"url":"`+sub.URL+`"},"attrs":["t","h"],"attrsFormat":"keyValues"}}`)
	for _, step := range []struct {
		id, attrs, options string
		want               string
	}{
		{"r1", `"t":{"value":21},"h":{"value":40},"x":{"value":1}`, "", `{"id":"r1","type":"Room","t":21,"h":40}`},
		{"r1", `"t":{"value":21}`, "", ""},                              // nothing changed
		{"r1", `"h":{"value":41}`, "", ""},                              // not watched
		{"r1", `"t":{"value":21,"metadata":{"m":{"value":1}}}`, "", ""}, // metadata only
		{"r1", `"t":{"value":19}`, "", ""},                              // q
		{"s1", `"t":{"value":25}`, "", ""},                              // other entity
		{"r1", `"t":{"value":22}`, "", `{"id":"r1","type":"Room","t":22,"h":41}`},
		{"r1", `"t":{"value":22}`, "forcedUpdate", `{"id":"r1","type":"Room","t":22,"h":41}`},
	} {
		put(b, step.id, step.attrs, step.options)
		got, headers, _ := sub.take(t, b)
		if step.want == "" {
			if len(got) > 0 {
				t.Errorf("%s %s: notified %v", step.id, step.attrs, got)
			}
			continue
		}
		var n struct{ Data []json.RawMessage }
		if len(got) != 1 || json.Unmarshal([]byte(got[0]), &n) != nil || len(n.Data) != 1 || string(n.Data[0]) != step.want {
			t.Errorf("%s %s: notified %v, want %s", step.id, step.attrs, got, step.want)
			continue
		}
		if f := headers[0].Get("Ngsiv2-Attrsformat"); f != "keyValues" {
			t.Errorf("format %q", f)
		}
	}
}

func TestSubscriptionCalls(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	b := New(Options{Now: func() time.Time { return now }})
	path := subscribe(t, b, `{"subject":{"entities":[{"id":"r","type":"Room"}]},"notification":{"http":{"url":"http://127.0.0.1:9/"},"exceptAttrs":["h"]},"throttling":60,"expires":"2026-01-02T00:00:00Z"}`)
	queued := func() int { return b.Stats().Queued }
	put(b, "r", `"t":{"value":1}`)
	put(b, "r", `"t":{"value":2}`) // throttled
	if queued() != 1 {
		t.Errorf("%d notifications, want 1: throttling", queued())
	}
	now = now.Add(time.Minute)
	put(b, "r", `"t":{"value":3},"h":{"value":1}`)
	if queued() != 2 || strings.Contains(string(b.queue.waiting[1].body), `"h"`) {
		t.Errorf("%d notifications, last %s", queued(), b.queue.waiting[queued()-1].body)
	}
	if w := do(b, "PATCH", path, `{"status":"inactive","throttling":0}`); w.Code != 204 {
		t.Error(w.Body)
	}
	put(b, "r", `"t":{"value":4}`)
	if queued() != 2 {
		t.Error("an inactive subscription was set off")
	}
	do(b, "PATCH", path, `{"status":"active","notification":{"onlyChangedAttrs":true,"exceptAttrs":[]}}`)
	put(b, "r", `"t":{"value":4},"h":{"value":2}`)
	if queued() != 3 || strings.Contains(string(b.queue.waiting[2].body), `"t"`) {
		t.Errorf("%d notifications: only what changed was asked for", queued())
	}
	now = now.Add(24 * time.Hour)
	put(b, "r", `"t":{"value":5}`)
	if w := do(b, "GET", path, ""); queued() != 3 || !strings.Contains(w.Body.String(), `"status":"expired"`) {
		t.Errorf("expired: %d notifications, %s", queued(), w.Body)
	}
	for _, bad := range []string{
		`{}`, `{"subject":{"entities":[]},"notification":{}}`, `{"subject":{"entities":[{"idPattern":"("}]},"notification":{"http":{"url":"http://x"}}}`,
		`{"subject":{"entities":[{"id":"a"}]},"notification":{"http":{"url":"file:///etc/passwd"}}}`,
		`{"subject":{"entities":[{"id":"a"}]},"notification":{"httpCustom":{"url":"http://x"}}}`,
		`{"subject":{"entities":[{"id":"a"}]},"notification":{"http":{"url":"http://x"},"attrsFormat":"xml"}}`,
		`{"subject":{"entities":[{"id":"a"}],"condition":{"expression":{"georel":"near"}}},"notification":{"http":{"url":"http://x"}}}`,
		`{"subject":7,"notification":{"http":{"url":"http://x"}}}`,
	} {
		if w := do(b, "POST", "/v2/subscriptions", bad); w.Code != 400 && w.Code != 501 {
			t.Errorf("%s: %d", bad, w.Code)
		}
	}
	if w := do(b, "GET", "/v2/subscriptions", "", "Fiware-Service: other"); w.Body.String() != "[]" {
		t.Errorf("another tenant sees %s", w.Body)
	}
	if w := do(b, "DELETE", path, ""); w.Code != 204 {
		t.Error(w.Body)
	}
	want(t, b, "GET "+path, 404, `{"error":"NotFound","description":"The requested subscription has not been found. Check id"}`)
	sound(t, b)
}

// roundTrip is a transport made of a function.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func quiet(f roundTrip) *http.Client { return &http.Client{Transport: f, Timeout: 5 * time.Second} }

// A subscriber that never answers holds up neither updates nor, for longer than
// the client's timeout, the next notification; what does not fit in the queue is
// dropped from its old end and counted.
func TestDeadSubscriber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var arrived []string
		b := New(Options{MaxQueue: 3, Client: quiet(func(r *http.Request) (*http.Response, error) {
			if r.URL.Host == "dead" {
				<-r.Context().Done()
				return nil, r.Context().Err()
			}
			body, _ := io.ReadAll(r.Body)
			arrived = append(arrived, string(body[slices.Index(body, ':'):])[28:])
			return &http.Response{StatusCode: 200, Body: http.NoBody}, nil
		})})
		ctx, cancel := context.WithCancel(t.Context())
		stopped := make(chan error, 1)
		go func() { stopped <- b.Run(ctx) }()
		dead := subscribe(t, b, `{"subject":{"entities":[{"id":"a"}]},"notification":{"http":{"url":"http://dead/"},"attrsFormat":"values"}}`)
		subscribe(t, b, `{"subject":{"entities":[{"id":"b"}]},"notification":{"http":{"url":"http://alive/"},"attrsFormat":"values"}}`)
		began := time.Now()
		put(b, "a", `"v":{"value":0}`)
		synctest.Wait() // the worker now waits for the dead one
		for i := range 6 {
			put(b, "b", fmt.Sprintf(`"v":{"value":%d}`, i))
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("updates waited %v for a subscriber", took)
		}
		time.Sleep(6 * time.Second)
		synctest.Wait()
		if s := b.Stats(); s.Dropped != 3 || s.Failed != 1 || s.Sent != 3 || s.Queued != 0 {
			t.Errorf("%+v", s)
		}
		if got := strings.Join(arrived, " "); got != `"data":[[3]]} "data":[[4]]} "data":[[5]]}` {
			t.Errorf("arrived: %s", got)
		}
		if w := do(b, "GET", dead, ""); !strings.Contains(w.Body.String(), `"failsCounter":1`) {
			t.Errorf("%s", w.Body)
		}
		put(b, "a", `"v":{"value":1}`)
		synctest.Wait()
		cancel() // in the middle of a delivery
		if err := <-stopped; err != nil {
			t.Error(err)
		}
		sound(t, b)
	})
}

func TestSubscriberThatRedirectsOrFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		client := New(Options{}).opts.Client
		client.Transport = roundTrip(func(r *http.Request) (*http.Response, error) {
			if calls++; r.URL.Host == "broken" {
				return nil, errors.New("refused")
			}
			return &http.Response{StatusCode: 302, Header: http.Header{"Location": {"http://elsewhere/"}}, Body: http.NoBody}, nil
		})
		b := New(Options{Client: client})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go b.Run(ctx)
		for _, host := range []string{"moved", "broken"} {
			subscribe(t, b, `{"subject":{"entities":[{"id":"a"}]},"notification":{"http":{"url":"http://`+host+`/"}}}`)
		}
		put(b, "a", `"v":{"value":0}`)
		synctest.Wait()
		if s := b.Stats(); calls != 2 || s.Sent != 1 || s.Failed != 1 {
			t.Errorf("%d calls, %+v: a redirect must not be followed", calls, s)
		}
	})
}
