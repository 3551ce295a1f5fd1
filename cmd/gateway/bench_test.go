package main

import (
	"encoding/json"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"campus-gateway"
)

// TestBench: one line of JSON with every figure, whatever the way to the broker.
func TestBench(t *testing.T) {
	for _, args := range []string{
		"",
		"--offline-first",
		"--api ngsi-ld --values 1",
		"--api orion-ld --offline-first",
		"--window 1s --batch 7 --lanes 2",
		"--rate 20000 --put 1",
	} {
		t.Run(args, func(t *testing.T) {
			dir := t.TempDir()
			status, stdout, stderr := command(t, append([]string{"bench", "--readings", "2003", "--sensors", "10", "--dir", dir}, strings.Fields(args)...)...)
			if status != 0 || stderr != "" || strings.Count(stdout, "\n") != 1 {
				t.Fatalf("status %d\nstdout: %s\nstderr: %s", status, stdout, stderr)
			}
			var got map[string]any
			if err := json.Unmarshal([]byte(stdout), &got); err != nil {
				t.Fatal(err)
			}
			for _, figure := range []string{"readings_per_s", "requests", "bytes", "cpu_s_per_million", "peak_rss_bytes", "p50_ms", "p99_ms", "batch", "lanes", "seconds"} {
				if x, ok := got[figure].(float64); !ok || x <= 0 {
					t.Errorf("%s is %v", figure, got[figure])
				}
			}
			if got["readings"] != 2003.0 || got["rejected"] != 0.0 || got["broker"] != "null server" {
				t.Errorf("got %s", stdout)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v %v", left, err)
			}
		})
	}
}

// TestBenchReadings: each reading reaches the broker, once, under names that say
// where they come from, and a sensor's times rise.
func TestBenchReadings(t *testing.T) {
	var mu sync.Mutex
	times := map[string][]string{}
	broker := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.Method == http.MethodGet || strings.HasSuffix(r.URL.Path, "/query") {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, "[]")
			return
		}
		var update struct {
			Entities []struct {
				ID, Type    string
				Temperature struct {
					Metadata struct{ TimeInstant struct{ Value string } }
				}
			}
		}
		if err := json.Unmarshal(body, &update); err != nil || r.Header.Get("Fiware-Service") != "lab" {
			t.Errorf("%v, service %q: %s", err, r.Header.Get("Fiware-Service"), body)
		}
		mu.Lock()
		defer mu.Unlock()
		for _, e := range update.Entities {
			if !strings.Contains(e.ID, ":bench") {
				t.Errorf("%s does not say where it comes from", e.ID)
			}
			if e.Type == "IndoorEnvironmentObserved" {
				times[e.ID] = append(times[e.ID], e.Temperature.Metadata.TimeInstant.Value)
			}
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	defer broker.Close()
	status, _, stderr := command(t, "bench", "--readings", "1000", "--sensors", "4", "--broker", broker.URL, "--service", "lab")
	if status != 0 {
		t.Fatal(stderr)
	}
	if len(times) != 4 {
		t.Errorf("entities: %v", slices.Collect(maps.Keys(times)))
	}
	for id, of := range times {
		if len(of) != 250 || !slices.IsSorted(of) || len(slices.Compact(of)) != 250 {
			t.Errorf("%s: %d times, from %s to %s", id, len(of), of[0], of[len(of)-1])
		}
	}
}

// TestBenchFails: clearly, soon, and with nothing left behind.
func TestBenchFails(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "no", http.StatusUnauthorized)
	}))
	defer refusing.Close()
	for _, c := range []struct {
		args   string
		status int
		stderr string
	}{
		{"--broker http://" + closed.Addr().String(), 1, "gateway: bench: nothing gets through: "},
		{"--broker http://" + closed.Addr().String() + " --offline-first", 1, "connection refused: is the broker running there?"},
		{"--broker " + refusing.URL, 1, "the broker refuses our token"},
		{"--broker orion:1026", 2, "this is not its URL"},
		{"--dir /nowhere/at/all", 1, "bench: make the log's folder"},
		{"--serve nowhere", 2, "--serve: "},
		{"--api ngsi-v3", 2, `there is no API "ngsi-v3"`},
		{"--readings 0", 2, "--readings 0: want 1 to"},
		{"--sensors 0", 2, "--sensors 0: want 1 to"},
		{"--values 4", 2, "--values 4: want 1 to 3"},
		{"--lanes 9", 2, "--lanes 9: want 0 to 8"},
		{"--rate -1", 2, "--rate -1: want 0 to"},
		{"--rate 5 --offline-first", 2, "leave out --rate"},
		{"--window -1s", 2, "--window -1s: want 0s or more"},
		{"more", 2, "one argument too many"},
	} {
		begun := time.Now()
		status, stdout, stderr := command(t, append([]string{"bench", "--readings", "500"}, strings.Fields(c.args)...)...)
		if status != c.status || stdout != "" || !strings.Contains(stderr, c.stderr) || time.Since(begun) > 10*time.Second {
			t.Errorf("%s: status %d after %v\nstdout: %s\nstderr: %s", c.args, status, time.Since(begun), stdout, stderr)
		}
	}
}

// TestBenchRejected: a broker that rejects a reading is not said to have taken it.
func TestBenchRejected(t *testing.T) {
	broker := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if strings.HasSuffix(r.URL.Path, "/query") {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, "[]")
			return
		}
		if strings.Contains(string(body), `"urn:ngsi-ld:IndoorEnvironmentObserved:bench:s002"`) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, `{"error":"BadRequest","description":"no s002 here"}`)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	defer broker.Close()
	status, stdout, stderr := command(t, "bench", "--readings", "30", "--sensors", "3", "--broker", broker.URL)
	var got benchResult
	if err := json.Unmarshal([]byte(stdout), &got); err != nil || status != 1 || got.Rejected != 10 || !strings.Contains(stderr, "rejects 10 readings, the first because: BadRequest: no s002 here") {
		t.Errorf("status %d, %v\nstdout: %s\nstderr: %s", status, err, stdout, stderr)
	}
}

// TestBenchRoom: what is made up is what a sensor could have said.
func TestBenchRoom(t *testing.T) {
	m := newRoom(3, 3)
	for range 5000 {
		for _, v := range m.next().Values {
			x := v.V.(float64)
			within := map[gateway.Quantity][2]float64{gateway.Temperature: {15, 30}, gateway.Humidity: {30, 60}, gateway.Pressure: {96_000, 98_000}}[v.Quantity]
			if v.Check() != nil || x < within[0] || x > within[1] {
				t.Fatal(v)
			}
		}
	}
}
