package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"campus-gateway"
	"campus-gateway/live"

	"github.com/spf13/cobra"
)

// How long doctor takes at most: the daemon is asked first, then everything else is
// looked at side by side.
const (
	askDaemon  = 1500 * time.Millisecond
	checkLimit = 7 * time.Second
)

func newDoctor() *cobra.Command {
	var file string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look for what is wrong with this machine, the broker and the log, and say how to mend it",
		Long: `Looks at the configuration, the service, the hardware, the clock, the card, the log
and, step by step, at each broker. Every finding is ok, warn, fail or skipped, with
the reason, and the command that mends it. Nothing is changed: a daemon that runs
goes on undisturbed and is asked for what it knows, and no broker is written to.

As root it sees more: what it could not see is skipped and says so. It takes less
than ten seconds. Exit status 0: all is well; 1: there are warnings; 2: something
fails.`,
		Example: "  gateway doctor\n  sudo gateway doctor                        sees more\n  gateway doctor --config gateway.yaml\n  gateway doctor --json | jq '.findings[] | select(.status == \"fail\")'",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			r := examine(cmd.Context(), thisPi(), file)
			if asJSON {
				if err := writeJSON(cmd.OutOrStdout(), r); err != nil {
					return err
				}
			} else if err := r.print(cmd.OutOrStdout()); err != nil {
				return err
			}
			return r.err()
		},
	}
	cmd.Flags().StringVarP(&file, "config", "c", "/etc/gateway/gateway.yaml", "the configuration `FILE`")
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return cmd
}

// The outcomes of a check.
const (
	isOK      = "ok"
	isWarning = "warn"
	isFailure = "fail"
	isSkipped = "skipped" // it could not be looked at, or there is nothing to look at
)

// finding is what a check has found out.
type finding struct {
	Group  string `json:"group"`
	Check  string `json:"check"`
	Status string `json:"status"`
	Why    string `json:"why"`
	Mend   string `json:"mend,omitempty"` // a command, where there is one
}

func ok(check, format string, args ...any) finding {
	return finding{Check: check, Status: isOK, Why: fmt.Sprintf(format, args...)}
}

func skipped(check, format string, args ...any) finding {
	return finding{Check: check, Status: isSkipped, Why: fmt.Sprintf(format, args...)}
}

func warn(check, mend, format string, args ...any) finding {
	return finding{Check: check, Status: isWarning, Why: fmt.Sprintf(format, args...), Mend: mend}
}

func fail(check, mend, format string, args ...any) finding {
	return finding{Check: check, Status: isFailure, Why: fmt.Sprintf(format, args...), Mend: mend}
}

// patient is a machine, its configuration, and the daemon that runs on it.
type patient struct {
	*computer
	file   string
	c      *config // nil: none that can be used
	fault  error   // what gateway check says of it
	daemon daemon
}

// check looks at one thing.
type check struct {
	group, name string
	look        func(context.Context, *patient) []finding
}

// checks lists everything that is looked at, the likely causes of trouble first.
func (p *patient) checks() []check {
	list := []check{
		{"Configuration", "configuration", checkConfig},
		{"Log", "log", checkLog},
	}
	if p.os == "linux" {
		list = []check{
			{"Configuration", "configuration", checkConfig},
			{"Configuration", "secrets", checkSecrets},
			{"Configuration", "secrets", checkNamedSecrets},
			{"Service", "service", checkService},
			{"Service", "groups", checkGroups},
			{"Hardware", "sensors", checkSensors},
			{"Hardware", "I2C", checkI2C},
			{"Hardware", "GPIO", checkGPIO},
			{"Hardware", "1-Wire", checkOneWire},
			{"Hardware", "power", checkPower},
			{"Hardware", "memory cgroup", checkCgroup},
			{"Time", "clock", checkClock},
			{"Time", "time zones", checkZones},
			{"Card", "place", checkPlace},
			{"Card", "space", checkSpace},
			{"Card", "health", checkHealth},
			{"Card", "speed", checkSpeed},
			{"Card", "journal", checkJournal},
			{"Log", "log", checkLog},
		}
	}
	if p.c == nil || len(p.c.Uplinks) == 0 {
		return append(list, check{"Broker", "broker", checkNoBroker})
	}
	for _, u := range p.c.Uplinks {
		group := "Broker"
		if len(p.c.Uplinks) > 1 {
			group += " " + u.Name
		}
		list = append(list, check{group, "broker", func(ctx context.Context, p *patient) []finding { return checkBroker(ctx, p, u) }})
	}
	return list
}

// report is what `gateway doctor` shows.
type report struct {
	Version  string    `json:"version"`
	Machine  string    `json:"machine"`
	Status   string    `json:"status"` // the worst
	Findings []finding `json:"findings"`
}

// examine does every check, and takes askDaemon and m.limit at most.
func examine(ctx context.Context, m *computer, file string) *report {
	p := &patient{computer: m, file: file}
	if p.c, p.fault = loadConfig(file); p.fault == nil {
		p.fault = p.c.whole()
	}
	asking, cancel := context.WithTimeout(ctx, askDaemon)
	p.daemon = m.findDaemon(asking, p.c)
	cancel()

	ctx, cancel = context.WithTimeout(ctx, m.limit)
	defer cancel()
	checks := p.checks()
	answers := make([]chan []finding, len(checks))
	var wg sync.WaitGroup
	for i, c := range checks {
		answers[i] = make(chan []finding, 1)
		wg.Go(func() { answers[i] <- c.look(ctx, p) })
	}
	r := &report{Version: version, Machine: m.describe(), Status: isOK}
	for i, c := range checks {
		var found []finding
		select {
		case found = <-answers[i]:
		case <-ctx.Done():
			// Give those that obey ctx a moment; one that hangs in the kernel is left behind.
			select {
			case found = <-answers[i]:
			case <-time.After(300 * time.Millisecond):
				found = []finding{warn(c.name, "", "no answer in %v: whatever is looked at here hangs", m.limit)}
			}
		}
		for _, f := range found {
			f.Group = c.group
			r.Findings = append(r.Findings, f)
		}
	}
	if m.os != "linux" {
		r.Findings = append(r.Findings, finding{"Machine", "machine", isSkipped, "service, hardware, clock and card are looked at on Linux only", ""})
	}
	for _, f := range r.Findings {
		if f.Status == isFailure || f.Status == isWarning && r.Status == isOK {
			r.Status = f.Status
		}
	}
	return r
}

// err is the exit status, and a line that counts.
func (r *report) err() error {
	status := map[string]int{isWarning: 1, isFailure: 2}[r.Status]
	if status == 0 {
		return nil
	}
	return statusError{errors.New("doctor: " + r.count()), status}
}

func (r *report) count() string {
	n := map[string]int{}
	for _, f := range r.Findings {
		n[f.Status]++
	}
	return fmt.Sprintf("%s, %s, %d ok, %d skipped", plural(n[isFailure], "failure"), plural(n[isWarning], "warning"), n[isOK], n[isSkipped])
}

// print writes for a terminal of 80 columns: a line a finding, wrapped under
// itself, and the mend below, never wrapped: it is to be copied.
func (r *report) print(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "gateway %s on %s\n", r.Version, oneLine(r.Machine))
	width := 0
	for _, f := range r.Findings {
		width = max(width, utf8.RuneCountInString(f.Check))
	}
	width = min(width, 20)
	group := ""
	for _, f := range r.Findings {
		if f.Group != group {
			group = f.Group
			fmt.Fprintf(&b, "\n%s\n", group)
		}
		head := fmt.Sprintf("  %-7s  %-*s  ", f.Status, width, f.Check)
		b.WriteString(head + wrap(f.Why, utf8.RuneCountInString(head), 80) + "\n")
		for line := range strings.Lines(f.Mend) {
			fmt.Fprintf(&b, "             $ %s\n", oneLine(strings.TrimSuffix(line, "\n")))
		}
	}
	if r.Status == isOK {
		b.WriteString("\nAll is well: " + r.count() + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// wrap breaks a text between words so that it fits, indented, into so many
// columns. Lines that are there stay: a fault's excerpt is aligned with its mark.
func wrap(text string, indent, columns int) string {
	var out []string
	for i, line := range strings.Split(text, "\n") {
		if i > 0 {
			out = append(out, oneLine(line))
			continue
		}
		row := ""
		for _, word := range strings.Fields(oneLine(line)) {
			if row != "" && indent+utf8.RuneCountInString(row)+1+utf8.RuneCountInString(word) > columns {
				out, row = append(out, row), word
				continue
			}
			row = strings.TrimPrefix(row+" "+word, " ")
		}
		out = append(out, row)
	}
	return strings.Join(out, "\n"+strings.Repeat(" ", indent))
}

// daemon is what is known of the gateway that runs.
type daemon struct {
	runs    bool
	unsure  bool   // whether one runs: that cannot be seen
	hangs   string // it runs, and does not answer: where
	log     *logState
	logErr  error
	sensors map[string]sensorWord // by name; nil: it has not been asked
	uplinks map[string]live.Uplink
	refused string   // why it does not run the configuration file that is there
	hung    []string // tasks of it
}

// sensorWord is what the daemon says of a sensor.
type sensorWord struct {
	Name  string        `json:"name"`
	State gateway.State `json:"state"`
	Why   string        `json:"why"`
}

// findDaemon asks the daemon in every way there is; each alone may be closed to this
// user, or switched off.
func (m *computer) findDaemon(ctx context.Context, c *config) daemon {
	var d daemon
	dir, listen := m.logDir(c), "127.0.0.1:8080"
	if c != nil {
		listen = c.Live.HTTP.Listen
	}
	var state logState
	switch err := askJSON(ctx, dir, http.MethodGet, "/stat", &state); {
	case err == nil:
		d.runs, d.log = true, &state
	case errors.Is(err, errNoDaemon):
	case errors.Is(err, context.DeadlineExceeded):
		d.runs, d.hangs = true, filepath.Join(dir, socketName)
	default:
		d.unsure, d.logErr = true, err
	}
	if m.os == "linux" {
		d.askPublic(ctx, m.path("/run/gateway/status.sock"), c)
	}
	if host, port, err := net.SplitHostPort(listen); err == nil && d.sensors == nil {
		if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
			host = "127.0.0.1"
		}
		d.askView(ctx, "http://"+net.JoinHostPort(host, port), c)
	}
	if m.os != "linux" {
		return d
	}
	switch u := m.unit(ctx); u["ActiveState"] {
	case "active", "reloading":
		d.runs = true
	case "activating":
		if u["SubState"] != "auto-restart" && !d.runs {
			d.unsure = true // its log may take a while
		}
	}
	return d
}

// askPublic asks the service's daemon where everybody on the machine may. It may have
// another configuration than this one.
func (d *daemon) askPublic(ctx context.Context, socket string, c *config) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return
	}
	conn.Close()
	d.runs = true
	var s struct {
		Gateway string
		Sensors []sensorWord
		Uplinks []live.Uplink
		Refused string `json:"configuration_refused"`
		Hung    []string
	}
	err = fetch(ctx, socket, "http://gateway/status", &s)
	if errors.Is(err, context.DeadlineExceeded) {
		d.hangs = socket
	}
	if err != nil || s.Gateway == "" || c != nil && s.Gateway != c.Gateway.ID {
		return
	}
	d.refused, d.hung = s.Refused, s.Hung
	d.told(s.Sensors, s.Uplinks)
}

// told takes over what the daemon says.
func (d *daemon) told(sensors []sensorWord, uplinks []live.Uplink) {
	d.sensors, d.uplinks = map[string]sensorWord{}, map[string]live.Uplink{}
	for _, x := range sensors {
		d.sensors[x.Name] = x
	}
	for _, x := range uplinks {
		d.uplinks[x.Name] = x
	}
}

// askView asks the live view. It may be another gateway's, or another program's.
func (d *daemon) askView(ctx context.Context, base string, c *config) {
	var s struct {
		Gateway string
		Sensors []sensorWord
	}
	if fetch(ctx, "", base+"/api/v1/sensors", &s) != nil || s.Gateway == "" || c != nil && s.Gateway != c.Gateway.ID {
		return
	}
	var u struct{ Uplinks []live.Uplink }
	_ = fetch(ctx, "", base+"/api/v1/uplinks", &u) // without it only the broker's side is seen
	d.runs = true
	d.told(s.Sensors, u.Uplinks)
}

func fetch(ctx context.Context, socket, url string, v any) error {
	body, err := fetchText(ctx, socket, url)
	if err != nil {
		return err
	}
	return json.Unmarshal(body, v)
}

// fetchText gets a page of a daemon here, through its socket if that is named, and
// never through a proxy.
func fetchText(ctx context.Context, socket, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	t := &http.Transport{DisableKeepAlives: true}
	if socket != "" {
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}
	}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, resp.Status)
	}
	return io.ReadAll(io.LimitReader(resp.Body, 4<<20))
}

// checkConfig tells what `gateway check` tells.
func checkConfig(_ context.Context, p *patient) []finding {
	const name = "configuration"
	f, isFaults := errors.AsType[*faults](p.fault)
	switch {
	case p.fault == nil:
		to := "no broker: readings wait in the log"
		if len(p.c.Uplinks) > 0 {
			to = destinations(p.c)
		}
		found := []finding{ok(name, "%s: gateway %s, %s, %s", p.file, p.c.Gateway.ID, plural(len(p.c.Sensors), "sensor"), to)}
		if why := p.daemon.refused; why != "" {
			found = append(found, warn("in use", "gateway check "+p.file, "the daemon runs on the last configuration that worked; it refused this one: %s", why))
		}
		return found
	case errors.Is(p.fault, os.ErrPermission),
		isFaults && p.uid != 0 && !slices.ContainsFunc(f.list, func(x fault) bool { return !strings.Contains(x.text, "permission denied") }):
		return []finding{skipped(name, "%s, or a secret it names, is not for this user: `sudo gateway doctor` sees it", p.file)}
	case isFaults:
		return []finding{fail(name, "gateway check "+p.file, "%v", p.fault)}
	case strings.Contains(p.fault.Error(), "there is no such file"):
		return []finding{fail(name, "gateway init | sudo tee "+p.file, "%s: there is no such file", p.file)}
	}
	return []finding{fail(name, "", "%v", p.fault)}
}

// checkLog tells of the log's own health.
func checkLog(ctx context.Context, p *patient) []finding {
	const name = "readings"
	s, dir := p.daemon.log, p.logDir(p.c)
	stat := "sudo gateway buffer stat --dir " + dir
	if s == nil {
		switch err := p.daemon.logErr; {
		case p.daemon.hangs != "":
			return []finding{fail("daemon", "sudo systemctl restart gateway", "the daemon runs and does not answer at %s", p.daemon.hangs)}
		case errors.Is(err, os.ErrPermission) || err != nil && strings.Contains(err.Error(), "may not look"):
			return []finding{skipped(name, "%s is not for this user: `sudo gateway doctor` sees it", dir)}
		case err != nil:
			return []finding{warn(name, stat, "%v", err)}
		case p.daemon.runs:
			return []finding{warn(name, "sudo systemctl restart gateway", "a daemon runs, but does not answer for %s: is the log of this configuration another one?", dir)}
		}
		state, err := statLog(ctx, dir)
		switch {
		case errors.Is(err, os.ErrPermission):
			return []finding{skipped(name, "%s is not for this user: `sudo gateway doctor` sees it", dir)}
		case err != nil && strings.Contains(err.Error(), "there is no log"):
			return []finding{skipped(name, "%s: there is no log yet", dir)}
		case err != nil:
			return []finding{fail(name, stat, "%v", err)}
		}
		s = &state
	}
	var found []finding
	if p.daemon.log != nil && s.Durable != "durable" {
		found = append(found, fail("durable", "df -h "+dir, "%s: what waits is lost at a power cut", s.Durable))
	}
	if len(s.Damaged) > 0 {
		d := s.Damaged[0]
		found = append(found, warn("damage", "sudo gateway buffer repair --dir "+dir, "%d damaged files, the first: %s: %s; %d readings salvaged, %d lost", len(s.Damaged), orUnknown(d.File), d.Why, d.Salvaged, d.Lost))
	}
	if dropped := total(s.Dropped); dropped > 0 {
		found = append(found, warn("dropped", stat, "%d readings were dropped since start (%s): raise log.max_size, or mend the broker", dropped, strings.Join(sortedKeys(s.Dropped), ", ")))
	}
	if s.Rejected > 0 {
		found = append(found, warn("rejected", "sudo gateway buffer rejects --dir "+dir, "%d readings were refused by the broker since start", s.Rejected))
	}
	if s.Refused > 0 {
		found = append(found, warn("refused", stat, "%d readings found no room in the log since start", s.Refused))
	}
	if p.c != nil && float64(s.Bytes) > 0.8*float64(p.c.Log.MaxSize) {
		found = append(found, warn("size", stat, "%.0f of %.0f MiB are full: the %s readings go next", float64(s.Bytes)/(1<<20), float64(p.c.Log.MaxSize)/(1<<20), p.c.Log.Full))
	}
	words := fmt.Sprintf("%d wait, %.1f MiB in %d files", s.Waiting, float64(s.Bytes)/(1<<20), s.Files)
	if p.daemon.log != nil {
		words += ", " + s.Durable
	}
	return append(found, ok(name, "%s", words))
}

func total(dropped map[string]map[string]uint64) (n uint64) {
	for _, sensors := range dropped {
		for _, k := range sensors {
			n += k
		}
	}
	return n
}
