package gateway

import (
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

// house says which packages of ours, and which modules of others, each room may
// import. Arrows never turn: drivers do not know NGSI, NGSI does not know
// periph, the log knows neither.
var house = map[string][]string{
	"campus-gateway":              {},
	"campus-gateway/buffer":       {"go.etcd.io/bbolt", "github.com/klauspost/compress", "golang.org/x/sys"},
	"campus-gateway/drivers":      {"campus-gateway", "campus-gateway/drivers/bus", "periph.io/x/conn/v3"},
	"campus-gateway/drivers/bus":  {"periph.io/x/conn/v3", "periph.io/x/host/v3", "golang.org/x/sys"},
	"campus-gateway/drivers/sim":  {"periph.io/x/conn/v3"},
	"campus-gateway/live":         {"campus-gateway", "github.com/VictoriaMetrics/metrics"},
	"campus-gateway/ngsi":         {"campus-gateway", "github.com/eclipse/paho.mqtt.golang"},
	"campus-gateway/ngsi/sandbox": {},
	"campus-gateway/systemd":      {"github.com/godbus/dbus/v5", "github.com/kardianos/service"},
	"campus-gateway/cmd/gateway": {
		"campus-gateway", "campus-gateway/buffer", "campus-gateway/drivers", "campus-gateway/drivers/bus", "campus-gateway/drivers/sim",
		"campus-gateway/live", "campus-gateway/ngsi", "campus-gateway/ngsi/sandbox", "campus-gateway/systemd", "campus-gateway/cmd/gateway/quiet",
		"github.com/kardianos/service", "github.com/spf13/cobra", "go.yaml.in/yaml/v3", "golang.org/x/term", "github.com/VictoriaMetrics/metrics", "periph.io/x/conn/v3",
	},
	"campus-gateway/cmd/gateway/quiet": {},
	"campus-gateway/deploy/raspi":      {}, // tests only
	"campus-gateway/hil":               {}, // tests only
}

var nameless = []string{"util", "utils", "common", "helper", "helpers", "types", "models", "pkg", "internal", "misc"}

func TestArrows(t *testing.T) {
	for _, system := range []string{"linux", "windows", "darwin"} {
		t.Run(system, func(t *testing.T) { arrows(t, system) })
	}
}

func arrows(t *testing.T, system string) {
	list := exec.Command("go", "list", "-deps", "-f", `{{if not .Standard}}{{.ImportPath}} {{join .Imports " "}}{{end}}`, "./...")
	list.Env = append(os.Environ(), "GOOS="+system, "GOARCH=amd64", "CGO_ENABLED=0") // whatever the tests run on, every system has that
	out, err := list.CombinedOutput()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, out)
	}
	ofGo := exec.Command("go", "list", "std")
	ofGo.Env = list.Env
	standard, err := ofGo.Output()
	if err != nil {
		t.Fatal(err)
	}
	std := strings.Fields(string(standard))
	rooms := 0
	for line := range strings.Lines(string(out)) {
		words := strings.Fields(line)
		if len(words) == 0 || words[0] != "campus-gateway" && !strings.HasPrefix(words[0], "campus-gateway/") {
			continue
		}
		room := words[0]
		rooms++
		if slices.Contains(nameless, path.Base(room)) {
			t.Errorf("%s: a room is named after what it is for", room)
		}
		allowed, known := house[room]
		if !known {
			t.Errorf("%s is not a room of the house", room)
			continue
		}
		for _, imported := range words[1:] {
			if slices.Contains(std, imported) || imported == "unsafe" || imported == "C" {
				continue
			}
			ok := slices.ContainsFunc(allowed, func(a string) bool {
				return imported == a || strings.HasPrefix(imported, a+"/") && !strings.HasPrefix(a, "campus-gateway")
			})
			if !ok {
				t.Errorf("%s imports %s: this arrow is not in the house", room, imported)
			}
		}
	}
	if rooms < 5 {
		t.Errorf("found only %d rooms: %s", rooms, out)
	}
}
