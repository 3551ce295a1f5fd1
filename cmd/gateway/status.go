package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"campus-gateway"
	"campus-gateway/live"
	"campus-gateway/systemd"

	"github.com/spf13/cobra"
)

// runtimeDir is what the unit's RuntimeDirectory= makes.
const runtimeDir = "/run/gateway"

// publicSocket is in the runtime folder: everybody on the machine may ask there
// how the daemon is doing, and nothing else.
const publicSocket = "status.sock"

// status is how the daemon is doing.
type status struct {
	Line      string         `json:"line"` // all of it in a line for people
	Gateway   string         `json:"gateway"`
	Version   string         `json:"version"`
	Since     time.Time      `json:"since"`
	Ready     bool           `json:"ready"`
	Sensors   []sensorStatus `json:"sensors"`
	Waiting   int            `json:"waiting_readings"`
	Durable   string         `json:"durable"` // or why what waits is not
	Dropped   uint64         `json:"dropped_readings"`
	Rejected  uint64         `json:"rejected_readings"`
	Uplinks   []live.Uplink  `json:"uplinks"`
	Clock     string         `json:"clock"` // who says that it is right; empty: nobody
	Undated   bool           `json:"waits_for_the_time"`
	Config    string         `json:"configuration"`
	Refused   string         `json:"configuration_refused,omitempty"` // why the file is not what runs
	Simulated bool           `json:"simulated,omitempty"`
	Hung      []string       `json:"hung,omitempty"` // tasks that do not turn

	Memory     uint64 `json:"memory_bytes"`
	Goroutines int    `json:"goroutines"`
}

type sensorStatus struct {
	Name  string        `json:"name"`
	State gateway.State `json:"state"`
	Since time.Time     `json:"since"`
	Why   string        `json:"why,omitempty"`
}

// status may be called from any goroutine. It asks every part, so it waits for one
// that is busy.
func (p *parts) status() status {
	now, log, clock := time.Now(), p.queue.Stats(), p.clock.Stats()
	s := status{
		Version: version, Since: p.began, Waiting: log.Depth, Durable: volatile(log), Dropped: log.Lost() + p.keep.refused.Load(), Rejected: log.Rejected,
		Clock: clock.Source, Undated: clock.Held, Config: p.file, Sensors: []sensorStatus{}, Uplinks: []live.Uplink{},
		Memory: memory(), Goroutines: runtime.NumGoroutine(),
	}
	_, s.Simulated = p.opener.Host.(simulated)
	if why := p.refused.Load(); why != nil {
		s.Refused = *why
	}
	for _, x := range p.board.Sensors() {
		s.Sensors = append(s.Sensors, sensorStatus{x.Name, x.State, x.Changed, x.Why})
	}
	if plan := p.plan.Load(); plan != nil {
		s.Ready, s.Gateway = true, plan.gateway
		s.Uplinks = append(s.Uplinks, plan.shown()...)
	}
	s.Hung = p.hung()
	s.Line = s.line(now)
	return s
}

// line is how it is doing, in a line: "3 sensors, 120 waiting, broker down 4 min".
func (s status) line(now time.Time) string {
	var words []string
	say := func(format string, args ...any) { words = append(words, fmt.Sprintf(format, args...)) }
	lost := 0
	for _, x := range s.Sensors {
		if x.State == gateway.Gone {
			lost++
		}
	}
	if len(s.Sensors) == 0 {
		say("no sensor configured")
	} else {
		say("%s", plural(len(s.Sensors), "sensor"))
	}
	if lost > 0 {
		say("%d gone", lost)
	}
	say("%d waiting", s.Waiting)
	for _, u := range s.Uplinks {
		switch {
		case !u.Down.IsZero():
			say("%s down %s", u.Name, since(now, u.Down))
		case len(s.Uplinks) == 1 && u.Sent > 0:
			say("%s up", u.Name)
		}
	}
	if len(s.Uplinks) == 0 && s.Ready {
		say("no broker configured")
	}
	if s.Undated {
		say("waiting for the time")
	}
	if s.Durable != "durable" {
		say("not durable")
	}
	if s.Refused != "" {
		say("the configuration is faulty: an earlier one runs")
	}
	if s.Simulated {
		say("chips simulated")
	}
	if len(s.Hung) > 0 {
		say("hung: %s", strings.Join(s.Hung, ", "))
	}
	return strings.Join(words, ", ")
}

// since is how long ago that was, as people say it.
func since(now, at time.Time) string {
	switch d := now.Sub(at); {
	case d < time.Minute:
		return fmt.Sprintf("%d s", max(0, int(d.Seconds())))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h %d min", int(d.Hours()), int(d.Minutes())%60)
	default:
		return fmt.Sprintf("%d days", int(d.Hours()/24))
	}
}

// print shows it to a person.
func (s status) print(w io.Writer, now time.Time) error {
	fmt.Fprintf(w, "gateway %s runs for %s, version %s: %s\n\n", s.Gateway, since(now, s.Since), s.Version, s.Line)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(what, how string) { fmt.Fprintf(t, "  %s\t%s\n", what, how) }
	for _, x := range s.Sensors {
		how := string(x.State)
		if x.State == gateway.Gone {
			how = "gone for " + since(now, x.Since) + ": " + x.Why
		}
		row("sensor "+x.Name, how)
	}
	row("log", fmt.Sprintf("%d readings wait, %s; %d dropped, %d rejected since the start", s.Waiting, s.Durable, s.Dropped, s.Rejected))
	for _, u := range s.Uplinks {
		how := u.To
		if u.Broker != "" {
			how += " (" + u.Broker + ")"
		}
		switch {
		case !u.Down.IsZero():
			how += ", down for " + since(now, u.Down) + ": " + u.Why
		case u.Sent > 0:
			how += ", up; " + plural(u.Sent, "reading") + " sent since the start"
		default:
			how += ", nothing sent yet"
		}
		row("uplink "+u.Name, how)
	}
	if len(s.Uplinks) == 0 {
		row("uplink", "none: write `broker: {url: \"http://…\"}` into "+s.Config)
	}
	switch s.Clock {
	case "":
		row("clock", "not known to be right: is NTP blocked here? `timedatectl` tells")
	case trusted:
		row("clock", "taken as it is")
	default:
		row("clock", "right, by "+s.Clock)
	}
	if s.Refused != "" {
		row("configuration", s.Config+" is refused, an earlier one runs: `gateway check "+s.Config+"` shows what is wrong")
	}
	for _, x := range s.Hung {
		row("hung", x)
	}
	return t.Flush()
}

// exitNotRunning is the status of init scripts (LSB) for a program that is not
// running.
const exitNotRunning = 3

func newStatus() *cobra.Command {
	var file, dir string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "How the daemon is doing: sensors, what waits, the broker",
		Long: `Asks the running daemon how it is doing. Exit status 0: it runs; 3: it does not.
Everybody on the machine may ask the service; a daemon that was started by hand
is found by its log's folder.`,
		Example: "  gateway status\n  gateway status --json | jq .waiting_readings",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := askStatus(cmd.Context(), file, dir)
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), s)
			}
			return s.print(cmd.OutOrStdout(), time.Now())
		},
	}
	cmd.Flags().StringVarP(&file, "config", "c", "", "of a daemon started by hand: its configuration `FILE`")
	cmd.Flags().StringVar(&dir, "dir", "", "or its log's `FOLDER`")
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return cmd
}

// askStatus asks the daemon that has this configuration or log; if neither is
// named, the service.
func askStatus(ctx context.Context, file, dir string) (s status, err error) {
	socket := filepath.Join(runtimeDir, publicSocket)
	switch {
	case dir != "":
		socket = filepath.Join(dir, socketName)
	case file != "":
		c, err := loadConfig(file)
		if err != nil {
			return s, statusError{err, exitConfig}
		}
		socket = filepath.Join(c.Log.Dir, socketName)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	body, err := askAt(ctx, socket, http.MethodGet, "/status")
	err = decodeAnswer(body, err, &s)
	switch {
	case errors.Is(err, errNoDaemon) && (dir != "" || file != ""):
		return s, statusError{fmt.Errorf("no daemon has the log in %s", filepath.Dir(socket)), exitNotRunning}
	case errors.Is(err, errNoDaemon):
		return s, statusError{errors.New(notRunning(ctx, systemd.Installed())), exitNotRunning}
	case errors.Is(err, context.DeadlineExceeded):
		return s, errors.New("the daemon does not answer: it hangs, and the service manager will start it anew; `sudo systemctl restart gateway` does at once")
	}
	return s, err
}

// notRunning says why no daemon answers, and what to do.
func notRunning(ctx context.Context, there systemd.Installation) string {
	if there.By == systemd.Nobody {
		return "it does not run, and is no service here: `sudo gateway install` makes it one"
	}
	out, _ := exec.CommandContext(ctx, "systemctl", "show", "--property=ActiveState,ExecMainStatus", "gateway.service").Output() // without it, less is said
	_, state, _ := strings.Cut(string(out), "ActiveState=")
	_, exit, _ := strings.Cut(string(out), "ExecMainStatus=")
	exit, _, _ = strings.Cut(exit, "\n")
	why, mend := systemd.Reason(exit)
	switch troubled := strings.HasPrefix(state, "failed") || strings.HasPrefix(state, "activating"); {
	case troubled && why != "":
		return "it does not run: " + why + ": `" + mend + "`, then `sudo gateway start`"
	case troubled:
		return "it is starting, or does not run for long: `journalctl -u gateway -n 20` shows why"
	}
	return "it does not run: `sudo gateway start` starts the service"
}
