package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"campus-gateway"
	"campus-gateway/buffer"
	"campus-gateway/live"
	"campus-gateway/ngsi"

	"github.com/spf13/cobra"
)

// The log of a running daemon is looked at through a socket in its folder, never
// by opening its files. Who may use the folder may use the socket.
//
//	GET  /stat     logState
//	GET  /verify   buffer.Checked
//	GET  /export   readings, one JSON object a line
//	GET  /rejects  []rejectRow
//	POST /repair   logState
//	GET  /status   status, also at the public socket
const socketName = "gateway.sock"

// control is a task that answers at a socket.
type control struct {
	path    string
	mode    fs.FileMode // who may ask
	handler http.Handler
	serves  string        // the commands
	limit   time.Duration // of an answer; 0: none
	log     *slog.Logger
}

func (c *control) String() string { return "socket " + c.path }

// Run answers until ctx ends. Without a socket (a read-only disk, a path too
// long for one) only the commands that ask there are lost: that is told once.
func (c *control) Run(ctx context.Context) error {
	_ = os.Remove(c.path) // of a run that was killed; the log's lock says that nobody else is here
	ln, err := net.Listen("unix", c.path)
	if err == nil {
		err = os.Chmod(c.path, c.mode)
	}
	if err != nil {
		c.log.Warn(c.serves+" will not reach this daemon", "why", err)
		<-ctx.Done()
		return nil
	}
	srv := &http.Server{Handler: c.handler, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: c.limit, ErrorLog: slog.NewLogLogger(c.log.Handler(), slog.LevelDebug)}
	srv.SetKeepAlivesEnabled(false) // nobody's connections take the daemon's files
	defer context.AfterFunc(ctx, func() { _ = srv.Close() })()
	if err := srv.Serve(live.Limit(ln, 16)); !errors.Is(err, http.ErrServerClosed) {
		c.log.Warn(c.serves+" will not reach this daemon any more", "why", err)
		<-ctx.Done()
	}
	return nil
}

// sockets are the tasks that answer: to who may use the log's folder, and, in the
// runtime folder that the service manager has made, to everybody how the daemon is
// doing.
func (p *parts) sockets(dir string) []task {
	tasks := []task{&control{
		path: filepath.Join(dir, socketName), mode: 0o600, serves: "`gateway buffer`", log: p.log, handler: p.handler(dir),
	}}
	if run := os.Getenv("RUNTIME_DIRECTORY"); run != "" {
		mux := http.NewServeMux()
		mux.HandleFunc("GET /status", p.answerStatus)
		tasks = append(tasks, &control{path: filepath.Join(run, publicSocket), mode: 0o666, serves: "`gateway status`", limit: 10 * time.Second, log: p.log, handler: mux})
	}
	return tasks
}

func (p *parts) answerStatus(w http.ResponseWriter, _ *http.Request) { answer(w, p.status(), nil) }

func answer(w http.ResponseWriter, v any, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = writeJSON(w, v)
}

func (p *parts) handler(dir string) http.Handler {
	q := p.queue
	state := func() logState { return stateOf(dir, q.Stats(), p.keep.refused.Load()) }
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", p.answerStatus)
	mux.HandleFunc("GET /stat", func(w http.ResponseWriter, _ *http.Request) { answer(w, state(), nil) })
	mux.HandleFunc("GET /verify", func(w http.ResponseWriter, _ *http.Request) {
		found, err := q.Check()
		answer(w, found, err)
	})
	mux.HandleFunc("GET /rejects", func(w http.ResponseWriter, _ *http.Request) { answer(w, rejectRows(p.clock, q.Rejects()), nil) })
	mux.HandleFunc("POST /repair", func(w http.ResponseWriter, _ *http.Request) {
		err := q.Repair()
		answer(w, state(), err)
	})
	mux.HandleFunc("GET /export", func(w http.ResponseWriter, _ *http.Request) {
		enc := json.NewEncoder(w)
		if err := q.Each(func(r gateway.Reading) error { return enc.Encode(asLogReading(p.clock, r)) }); err != nil {
			panic(http.ErrAbortHandler) // the client sees that it is not all
		}
	})
	return mux
}

// logState is what `gateway buffer stat` shows.
type logState struct {
	Dir        string                       `json:"dir"`
	Daemon     bool                         `json:"daemon"` // it is told by a running daemon
	Waiting    int                          `json:"waiting"`
	Uplinks    map[string]int               `json:"uplinks,omitempty"` // waiting for each
	Bytes      int64                        `json:"bytes"`
	Files      int                          `json:"files"`
	Durable    string                       `json:"durable"` // or why not
	Written    int64                        `json:"written_bytes,omitempty"`
	Commits    uint64                       `json:"commits,omitempty"`
	Refused    uint64                       `json:"refused,omitempty"`
	Rejected   uint64                       `json:"rejected,omitempty"`
	Dropped    map[string]map[string]uint64 `json:"dropped,omitempty"` // reason → sensor → readings
	Damaged    []damageRow                  `json:"damaged,omitempty"`
	Generation uint32                       `json:"generation,omitempty"` // how often the log was opened
}

type damageRow struct {
	File     string `json:"file"`
	Why      string `json:"why"`
	Salvaged uint64 `json:"salvaged"`
	Lost     uint64 `json:"lost"`
}

func stateOf(dir string, s buffer.Stats, refused uint64) logState {
	state := logState{
		Dir: dir, Daemon: true, Waiting: s.Depth, Uplinks: s.Cursors, Bytes: s.Size, Files: s.Segments,
		Durable: volatile(s), Written: s.Written, Commits: s.Commits, Refused: refused, Rejected: s.Rejected,
		Dropped: s.Dropped, Generation: s.Generation,
	}
	for _, d := range s.Damage {
		state.Damaged = append(state.Damaged, damageRow(d))
	}
	return state
}

// logReading is a reading as the export has it.
type logReading struct {
	Sensor    string            `json:"sensor"`
	Time      time.Time         `json:"time"`
	Uncertain bool              `json:"time_uncertain,omitempty"` // the clock was not right then, and is not known to have been put right
	Values    map[string]any    `json:"values"`
	Units     map[string]string `json:"units,omitempty"`
}

type rejectRow struct {
	Uplink  string     `json:"uplink"`
	At      time.Time  `json:"at"`
	Why     string     `json:"why"`
	Reading logReading `json:"reading"`
}

func rejectRows(clock *gateway.Clock, list []buffer.Rejected[gateway.Reading]) []rejectRow {
	rows := []rejectRow{}
	for _, r := range list {
		rows = append(rows, rejectRow{r.Uplink, r.At, r.Why, asLogReading(clock, r.Record)})
	}
	return rows
}

// asLogReading is a reading with its time put right as far as the clock can.
func asLogReading(clock *gateway.Clock, r gateway.Reading) logReading {
	at, ok := clock.Mend(r.At)
	// To the millisecond, as the log and the broker have it: a reading that still
	// waits in memory has more.
	x := logReading{Sensor: r.Sensor, Time: at.Wall.UTC().Truncate(time.Millisecond), Uncertain: !ok || !at.Earliest.IsZero(), Values: map[string]any{}, Units: map[string]string{}}
	for _, v := range r.Values {
		x.Values[string(v.Quantity)] = v.V
		if u := v.Quantity.Unit(); u != "" {
			x.Units[string(v.Quantity)] = u
		}
	}
	return x
}

// reading is the way back.
func (x logReading) reading() gateway.Reading {
	r := gateway.Reading{Sensor: x.Sensor, At: gateway.Stamp{Wall: x.Time, Synced: true}}
	for _, name := range sortedKeys(x.Values) {
		r.Values = append(r.Values, gateway.Value{Quantity: gateway.Quantity(name), V: x.Values[name]})
	}
	return r
}

var quiet = slog.New(slog.DiscardHandler)

// errNoDaemon: nobody answers at the socket.
var errNoDaemon = errors.New("no daemon answers")

// ask asks the daemon that has the log in dir.
func ask(ctx context.Context, dir, method, path string) (io.ReadCloser, error) {
	return askAt(ctx, filepath.Join(dir, socketName), method, path)
}

// askAt asks the daemon that answers at a socket.
func askAt(ctx context.Context, socket, method, path string) (io.ReadCloser, error) {
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}}
	req, err := http.NewRequestWithContext(ctx, method, "http://gateway"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOTDIR):
		return nil, errNoDaemon
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%s: %w: use sudo, or be the daemon's user", socket, fs.ErrPermission)
	case err != nil:
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		_ = resp.Body.Close()
		return nil, errors.New(strings.TrimSpace(string(text)))
	}
	return resp.Body, nil
}

func askJSON(ctx context.Context, dir, method, path string, v any) error {
	body, err := ask(ctx, dir, method, path)
	return decodeAnswer(body, err, v)
}

func decodeAnswer(body io.ReadCloser, err error, v any) error {
	if err != nil {
		return err
	}
	defer body.Close()
	return json.NewDecoder(body).Decode(v)
}

func newBuffer() *cobra.Command {
	var file, dir string
	cmd := &cobra.Command{
		Use:   "buffer",
		Short: "Look at the log: what waits, is it whole, rescue it",
		Long: `Looks at the log that keeps readings while the broker is away. While the daemon
runs it is asked; otherwise the files are read. A card from a dead Pi is rescued
with --dir, or by naming one file, such as a damaged one that was set aside.`,
		Example: `  gateway buffer stat
  gateway buffer export --format csv > readings.csv
  gateway buffer export --dir /mnt/card/var/lib/gateway/log --format jsonl`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usage(fmt.Errorf("unknown command %q%s (`gateway buffer --help` lists them)", args[0], suggest(args[0], commandNames(cmd))))
			}
			return cmd.Help()
		},
	}
	cmd.PersistentFlags().StringVarP(&file, "config", "c", "/etc/gateway/gateway.yaml", "the daemon's configuration `FILE`, which names the log's folder")
	cmd.PersistentFlags().StringVar(&dir, "dir", "", "the log's `FOLDER`, instead")
	// where is the folder: as told, as configured, or the default.
	where := func() (string, error) {
		if dir != "" {
			return dir, nil
		}
		c, err := loadConfig(file)
		if err == nil {
			return c.Log.Dir, nil
		}
		if cmd.PersistentFlags().Changed("config") {
			return "", statusError{err, exitConfig}
		}
		return stateDir(), nil
	}
	var asJSON bool
	stat := &cobra.Command{
		Use: "stat", Short: "What waits, what it takes, what was lost", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := where()
			if err != nil {
				return err
			}
			state, err := statLog(cmd.Context(), dir)
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), state)
			}
			return state.print(cmd.OutOrStdout())
		},
	}
	stat.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	verify := &cobra.Command{
		Use: "verify", Short: "Read every block and check it; exit status 1: damage", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := where()
			if err != nil {
				return err
			}
			return verifyLog(cmd.Context(), dir, cmd.OutOrStdout())
		},
	}
	repair := &cobra.Command{
		Use: "repair", Short: "Set damaged files aside and salvage what is whole in them", Args: exactly(),
		Long: `Verifies every file, sets the damaged ones aside and salvages what is whole in
them. The daemon does the same by itself whenever it starts.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := where()
			if err != nil {
				return err
			}
			return repairLog(cmd.Context(), dir, cmd.OutOrStdout())
		},
	}
	rejects := &cobra.Command{
		Use: "rejects", Short: "The readings that a broker will never take, with its words", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := where()
			if err != nil {
				return err
			}
			rows := []rejectRow{}
			err = askJSON(cmd.Context(), dir, http.MethodGet, "/rejects", &rows)
			if errors.Is(err, errNoDaemon) {
				list, failed := buffer.ExportRejects(dir, gateway.Codec{}, inspectApart)
				rows, err = rejectRows(openClock(filepath.Join(dir, bootsName), quiet), list), explainDir(dir, failed)
			}
			if err != nil {
				return err
			}
			enc := json.NewEncoder(cmd.OutOrStdout())
			enc.SetEscapeHTML(false)
			for _, r := range rows {
				if err := enc.Encode(r); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.AddCommand(stat, verify, newExport(&file, where), repair, rejects)
	return cmd
}

func explainDir(dir string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s: there is no log: name its folder with --dir, or the configuration with --config", dir)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: use sudo, or the daemon's user", err)
	}
	return err
}

func statLog(ctx context.Context, dir string) (logState, error) {
	var state logState
	err := askJSON(ctx, dir, http.MethodGet, "/stat", &state)
	if !errors.Is(err, errNoDaemon) {
		return state, err
	}
	state = logState{Dir: dir, Durable: "no daemon runs"}
	files, err := buffer.Export(dir, gateway.Codec{}, inspectApart, func(gateway.Reading) error {
		state.Waiting++
		return nil
	})
	for _, f := range files {
		state.Files++
		if i, err := os.Stat(f.Path); err == nil {
			state.Bytes += i.Size()
		}
		if f.Damage != nil {
			state.Damaged = append(state.Damaged, damageRow{File: f.Path, Why: f.Damage.Error(), Salvaged: uint64(f.Records)})
		}
	}
	return state, explainDir(dir, err)
}

func (s logState) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "log\t%s\n", s.Dir)
	fmt.Fprintf(t, "state\t%s\n", s.Durable)
	fmt.Fprintf(t, "waiting\t%d readings\n", s.Waiting)
	for _, name := range sortedKeys(s.Uplinks) {
		fmt.Fprintf(t, "  for %s\t%d\n", name, s.Uplinks[name])
	}
	fmt.Fprintf(t, "size\t%.1f MiB in %d files\n", float64(s.Bytes)/(1<<20), s.Files)
	if s.Daemon {
		fmt.Fprintf(t, "written\t%.1f MiB in %d commits since start\n", float64(s.Written)/(1<<20), s.Commits)
		fmt.Fprintf(t, "rejected\t%d by the broker, refused %d by the log, since start\n", s.Rejected, s.Refused)
	}
	for _, reason := range sortedKeys(s.Dropped) {
		for _, sensor := range sortedKeys(s.Dropped[reason]) {
			whose := sensor
			if whose == "" {
				whose = "(sensor unknown)"
			}
			fmt.Fprintf(t, "dropped, %s\t%d of %s\n", reason, s.Dropped[reason][sensor], whose)
		}
	}
	for _, d := range s.Damaged {
		fmt.Fprintf(t, "damaged\t%s\n\t%s; %d readings salvaged, %d lost\n", cmp.Or(d.File, "(gone)"), d.Why, d.Salvaged, d.Lost)
	}
	return t.Flush()
}

func verifyLog(ctx context.Context, dir string, w io.Writer) error {
	var found buffer.Checked
	err := askJSON(ctx, dir, http.MethodGet, "/verify", &found)
	if err == nil {
		fmt.Fprintf(w, "%d blocks with %d readings are whole\n", found.Blocks, found.Records)
		if found.Damaged > 0 {
			return fmt.Errorf("%d blocks with %d readings are damaged: `gateway buffer repair` sets their file aside and salvages the rest", found.Damaged, found.LostHere)
		}
		return nil
	}
	if !errors.Is(err, errNoDaemon) {
		return err
	}
	files, err := buffer.Export(dir, gateway.Codec{}, inspectApart, func(gateway.Reading) error { return nil })
	if err != nil {
		return explainDir(dir, err)
	}
	bad := 0
	for _, f := range files {
		if f.Damage == nil {
			fmt.Fprintf(w, "%s: whole, %d readings wait\n", f.Path, f.Records)
			continue
		}
		bad++
		fmt.Fprintf(w, "%s: %v; %d readings can be read\n", f.Path, f.Damage, f.Records)
	}
	if bad > 0 {
		return fmt.Errorf("%d of %d files are damaged: `gateway buffer repair` salvages what is whole", bad, len(files))
	}
	return nil
}

func repairLog(ctx context.Context, dir string, w io.Writer) error {
	var state logState
	err := askJSON(ctx, dir, http.MethodPost, "/repair", &state)
	if errors.Is(err, errNoDaemon) {
		if _, err := os.Stat(dir); err != nil {
			return explainDir(dir, err)
		}
		var q *buffer.Log[gateway.Reading]
		if q, err = buffer.Open(dir, gateway.Codec{}, buffer.Options{MaxSize: 1 << 40, Verify: inspectApart}); err != nil {
			return err
		}
		state = stateOf(dir, q.Stats(), 0)
		state.Waiting = 0
		if err = q.Each(func(gateway.Reading) error { state.Waiting++; return nil }); err == nil {
			err = q.Close()
		}
	}
	if err != nil {
		return explainDir(dir, err)
	}
	for _, d := range state.Damaged {
		fmt.Fprintf(w, "%s: set aside: %s; %d readings salvaged, %d lost\n", cmp.Or(d.File, "(gone)"), d.Why, d.Salvaged, d.Lost)
	}
	fmt.Fprintf(w, "%d files, %d readings wait\n", state.Files, state.Waiting)
	return nil
}

func newExport(file *string, where func() (string, error)) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "export [FILE]",
		Short: "Write the readings that wait as CSV, JSON lines or NGSI",
		Long: `Writes every reading that has not reached the broker, oldest first, to standard
output, and changes nothing. FILE is one file of a log, such as a damaged one that
was set aside: of it everything that is whole is written, also what was delivered.

The formats: csv has a line for each value; jsonl an object for each reading; ngsi
a request body for each batch, for POST /v2/op/update or, as the configuration
says, /ngsi-ld/v1/entityOperations/upsert.`,
		Example: `  gateway buffer export --format csv > readings.csv
  gateway buffer export --format ngsi -c gateway.yaml | while read -r b; do
    curl -H 'Content-Type: application/json' -d "$b" http://orion:1026/v2/op/update; done`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return fmt.Errorf("%q is one argument too many", args[1])
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&format, "format", "jsonl", "csv, jsonl or ngsi")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		out := bufio.NewWriterSize(cmd.OutOrStdout(), 64<<10)
		var sink *ngsi.Sink
		if format == "ngsi" {
			c, err := loadConfig(*file)
			if err != nil {
				return statusError{fmt.Errorf("NGSI needs the sensors' configuration: %w", err), exitConfig}
			}
			if sink, err = exportSink(c); err != nil {
				return err
			}
			defer sink.Close()
		}
		write, flush, err := exporter(format, out, sink)
		if err != nil {
			return usage(err)
		}
		if len(args) == 1 {
			err = exportFiles(args[0], write, cmd.ErrOrStderr())
		} else {
			var dir string
			if dir, err = where(); err == nil {
				err = exportLog(cmd.Context(), dir, write, cmd.ErrOrStderr())
			}
		}
		return errors.Join(err, flush(), out.Flush())
	}
	return cmd
}

// exportSink writes the NGSI of the first uplink that takes it.
func exportSink(c *config) (*ngsi.Sink, error) {
	for _, u := range c.Uplinks {
		if u.API != iotaJSON {
			b, err := newBroker(c, u, gateway.NewClock(), quiet, ngsi.Host{})
			if err != nil {
				return nil, err
			}
			return b.(*ngsi.Sink), nil
		}
	}
	return nil, errors.New("the configuration has no uplink to an NGSI broker: choose --format csv or jsonl")
}

// exporter returns what writes readings in a format, and what ends it.
func exporter(format string, out *bufio.Writer, sink *ngsi.Sink) (write func(logReading) error, flush func() error, err error) {
	switch format {
	case "jsonl":
		enc := json.NewEncoder(out)
		enc.SetEscapeHTML(false)
		return func(r logReading) error { return enc.Encode(r) }, func() error { return nil }, nil
	case "csv":
		w := csv.NewWriter(out)
		if err := w.Write([]string{"time", "sensor", "quantity", "value", "unit", "time_uncertain"}); err != nil {
			return nil, nil, err
		}
		return func(r logReading) error {
				for _, q := range sortedKeys(r.Values) {
					if err := w.Write([]string{r.Time.Format("2006-01-02T15:04:05.000Z07:00"), r.Sensor, q, fmt.Sprint(r.Values[q]), r.Units[q], strconv.FormatBool(r.Uncertain)}); err != nil {
						return err
					}
				}
				return nil
			}, func() error {
				w.Flush()
				return w.Error()
			}, nil
	case "ngsi":
		var batch []gateway.Reading
		flush := func() error {
			if len(batch) == 0 {
				return nil
			}
			for _, r := range sink.Requests(batch) {
				if _, err := fmt.Fprintf(out, "%s\n", r.Body); err != nil {
					return err
				}
			}
			batch = batch[:0]
			return nil
		}
		return func(r logReading) error {
			if batch = append(batch, r.reading()); len(batch) < 500 {
				return nil
			}
			return flush()
		}, flush, nil
	}
	return nil, nil, fmt.Errorf("--format %s is not one of csv, jsonl, ngsi", format)
}

func exportLog(ctx context.Context, dir string, write func(logReading) error, says io.Writer) error {
	body, err := ask(ctx, dir, http.MethodGet, "/export")
	if errors.Is(err, errNoDaemon) {
		return exportFiles(dir, write, says)
	}
	if err != nil {
		return err
	}
	defer body.Close()
	for dec := json.NewDecoder(body); ; {
		var r logReading
		if err := dec.Decode(&r); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("the daemon's answer broke off, this is not all: %w", err)
		}
		if err := write(r); err != nil {
			return err
		}
	}
}

func exportFiles(path string, write func(logReading) error, says io.Writer) error {
	dir := path
	if i, err := os.Stat(path); err == nil && !i.IsDir() {
		dir = filepath.Dir(path)
	}
	clock := openClock(filepath.Join(dir, bootsName), quiet)
	files, err := buffer.Export(path, gateway.Codec{}, inspectApart, func(r gateway.Reading) error { return write(asLogReading(clock, r)) })
	for _, f := range files {
		if f.Damage != nil {
			fmt.Fprintf(says, "gateway: %s is damaged (%v): %d readings in it are whole; some may have been delivered before\n", f.Path, f.Damage, f.Records)
		}
		if f.Newer > 0 {
			fmt.Fprintf(says, "gateway: %s has %d blocks that another version of this program has written: that version reads them\n", f.Path, f.Newer)
		}
	}
	return explainDir(path, err)
}

// newInspect is what the log starts to look at one of its files: damage may end
// that process.
func newInspect() *cobra.Command {
	return &cobra.Command{
		Use: "inspect FILE", Hidden: true, Args: exactly("the file"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return buffer.InspectFor(cmd.OutOrStdout(), args[0])
		},
	}
}
