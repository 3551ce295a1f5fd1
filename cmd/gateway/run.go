package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"campus-gateway"
	"campus-gateway/drivers"
	"campus-gateway/drivers/bus"
	"campus-gateway/drivers/sim"
	"campus-gateway/live"

	"github.com/spf13/cobra"
)

func newRun() *cobra.Command {
	var file string
	var dry, simulate bool
	cmd := &cobra.Command{
		Use:   "run --config FILE",
		Short: "Read, keep and forward, until told to stop",
		Long: `Reads the configured sensors, keeps their readings in the log, forwards them to
the broker and shows the newest over HTTP, until it is interrupted (SIGINT,
SIGTERM). A changed configuration is read again, at SIGHUP at once; a faulty one
is reported and the old one goes on. What is not there yet (a bus, a chip, the broker) is reported
once and tried again for ever.`,
		Example: `  gateway run --config gateway.yaml
  gateway run --config gateway.yaml --dry-run    print the NGSI instead of sending it
  gateway run --config gateway.yaml --simulate   with made-up readings, no hardware`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			log := newLogger(cmd.ErrOrStderr())
			host, closeHost := newHost(simulate, log)
			defer closeHost()
			c, refused, err := loadRunnable(file)
			if err != nil {
				return statusError{err, exitConfig}
			}
			if refused != nil {
				log.Error("the configuration is refused: the last one that worked runs instead", "why", refused)
			}
			if dry {
				return dryRun(cmd.Context(), c, host, cmd.OutOrStdout(), log)
			}
			return run(cmd.Context(), file, c, refused, host, log)
		},
	}
	cmd.Flags().StringVarP(&file, "config", "c", "/etc/gateway/gateway.yaml", "the configuration `FILE`")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "print the NGSI requests instead of sending them; keep nothing")
	cmd.Flags().BoolVar(&simulate, "simulate", false, "read simulated chips, those of `gateway demo`, on i2c-0 to i2c-9; all else is real")
	return cmd
}

// newHost is the machine whose buses and lines are read.
func newHost(simulate bool, log *slog.Logger) (drivers.Host, func()) {
	if simulate {
		log.Warn("the chips are simulated: what they say is made up")
		return simulated{sim.NewBoard(sim.NewRoom(demoMorning(time.Now()), 1))}, func() {}
	}
	bus.PrepareGPIO()
	if err := bus.Register(); err != nil { // only code that opens buses by periph's registry misses it
		log.Warn("I2C buses are not in periph's registry", "why", err)
	}
	host := &bus.Host{}
	return host, func() { _ = host.Close() }
}

// run is the daemon. refused is why the file's own configuration does not run, if
// it does not.
func run(ctx context.Context, file string, c *config, refused error, host drivers.Host, log *slog.Logger) error {
	p, closeLog, err := newParts(c, host, log)
	if err != nil {
		return err
	}
	defer closeLog()
	p.file, p.notify = file, &notifier{most: mostMemory, log: log}
	p.refuse(refused)
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	reloads := &reloader{file: file, current: c, hup: hup, next: make(chan *config), refused: p.refuse, log: log}
	watching := start(reloads)
	defer watching.stop()
	return serve(ctx, c, p, reloads.next, func(c *config) {
		log.Info("gateway runs", "id", c.Gateway.ID, "sensors", len(c.Sensors), "to", destinations(c), "version", version)
		p.notify.ready()
		if err := keepGood(c); err != nil {
			log.Warn("the configuration is not kept: a faulty one at the next start would have no earlier one to fall back to", "why", err)
		}
	}, p.notify.stopping)
}

// refuse says that the file's configuration does not run, and why; nil: it does.
func (p *parts) refuse(why error) {
	if why == nil {
		p.refused.Store(nil)
		return
	}
	// Everybody may ask for it, and the file may hold what is not for everybody: its
	// text stays out of it.
	text := "`sudo gateway check " + p.file + "` shows why"
	if f, ok := errors.AsType[*faults](why); ok {
		text = plural(len(f.list), "fault") + ": " + text
	}
	p.refused.Store(&text)
}

// goodName is the copy of the last configuration that has begun to work, in the
// service's state folder.
const goodName = "last-good.yaml"

// goodFile is where it is kept: only a service has it, which nobody watches start.
func goodFile() string {
	dir := os.Getenv("STATE_DIRECTORY")
	if dir == "" {
		return ""
	}
	return filepath.Join(dir, goodName)
}

// keepGood keeps a configuration that works. It writes only what is new.
func keepGood(c *config) error {
	file := goodFile()
	if file == "" {
		return nil
	}
	if old, err := os.ReadFile(file); err == nil && bytes.Equal(old, c.source) {
		return nil
	}
	return replaceFile(file, c.source)
}

// replaceFile writes a file as a whole, durably, readable by its owner alone, or
// leaves the old one.
func replaceFile(file string, text []byte) error {
	f, err := os.OpenFile(file+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(file+".new", file)
	}
	if err != nil {
		return errors.Join(err, os.Remove(file+".new"))
	}
	dir, err := os.Open(filepath.Dir(file))
	if err != nil {
		return err
	}
	_ = dir.Sync() // not every system can
	return dir.Close()
}

// loadRunnable reads the configuration or, where it is faulty, the last one that
// worked, and says why.
func loadRunnable(file string) (c *config, refused, err error) {
	c, err = loadConfig(file)
	if err == nil || goodFile() == "" {
		return c, nil, err
	}
	c, again := loadConfig(goodFile())
	if again != nil {
		return nil, nil, err
	}
	return c, err, nil
}

// newParts opens the log and makes what stays over reloads.
func newParts(c *config, host drivers.Host, log *slog.Logger) (*parts, func(), error) {
	clock := openClock(filepath.Join(c.Log.Dir, bootsName), log)
	q, err := openLog(c, clock, log)
	if err != nil {
		return nil, nil, err
	}
	board := &live.Board{}
	p := &parts{
		log: log, clock: clock, opener: &drivers.Opener{Host: host},
		began: time.Now(), queue: q, board: board, keep: &keeper{board: board, queue: q, clock: clock, log: log},
		tuned: readTunings(c.Log.Dir),
	}
	return p, func() {
		if err := p.tuned.write(); err != nil {
			log.Warn("what was found out about the brokers is not kept: it is found out again", "why", err)
		}
		p.clock.Close()
		if err := q.Close(); err != nil {
			log.Error("log not closed", "why", err)
		}
	}, nil
}

// reloader reads the configuration again on SIGHUP, when its file has changed and
// then been left alone for a look, and when a file has come that an uplink waits for.
// A faulty one, or one that only a restart can apply, leaves the present one running
// and says so.
type reloader struct {
	file    string
	current *config
	hup     <-chan os.Signal
	next    chan *config
	refused func(why error) // nil: what stands in the file runs
	log     *slog.Logger
}

// lookEvery is how often the file is looked at. Looking costs one stat, and
// unlike a watch it sees what comes by rename, mount or network.
const lookEvery = 2 * time.Second

// askEvery is how often it is read again while an uplink waits for a file.
const askEvery = 10 * time.Second

func (r *reloader) String() string { return "configuration " + r.file }

func (r *reloader) Run(ctx context.Context) error {
	look, ask := time.NewTicker(lookEvery), time.NewTicker(askEvery)
	defer look.Stop()
	defer ask.Stop()
	loaded := r.state()
	seen := loaded
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.hup:
		case <-look.C:
			before := seen
			if seen = r.state(); seen != before || seen == loaded || seen == (fileState{}) {
				continue // still being written, as before, or gone: an editor may be at it
			}
		case <-ask.C:
			if r.state() != loaded || !r.arrived() {
				continue
			}
		}
		loaded = r.state()
		if !r.reload(ctx) {
			return nil
		}
	}
}

// fileState tells one version of a file from another.
type fileState struct {
	changed  time.Time
	size     int64
	mode     fs.FileMode
	readable bool // by this user
}

func (r *reloader) state() fileState {
	i, err := os.Stat(r.file)
	if err != nil {
		return fileState{}
	}
	f, err := os.Open(r.file)
	if err == nil {
		f.Close()
	}
	return fileState{i.ModTime(), i.Size(), i.Mode(), err == nil}
}

// arrived reports whether a file has come, or can be read now, that an uplink of the
// present configuration waits for.
func (r *reloader) arrived() bool {
	if r.current.absent == nil {
		return false
	}
	c, err := loadConfig(r.file)
	return err == nil && (c.absent == nil || c.absent.Error() != r.current.absent.Error())
}

// reload hands on the file's configuration. It returns false when ctx has ended.
func (r *reloader) reload(ctx context.Context) bool {
	c, err := loadConfig(r.file)
	if err != nil {
		r.log.Error("new configuration refused: the old one goes on", "why", err)
		r.refused(err)
		return true
	}
	r.refused(nil)
	if c.Log != r.current.Log {
		r.log.Warn("the log's settings change at the next restart; the rest of the new configuration begins now")
		c.Log = r.current.Log
	}
	r.current = c
	select {
	case r.next <- c:
		return true
	case <-ctx.Done():
		return false
	}
}

// dryRun senses for real and prints what it would send. The log is a folder
// that is thrown away, so that a daemon beside it is not disturbed.
func dryRun(ctx context.Context, c *config, host drivers.Host, out io.Writer, log *slog.Logger) error {
	dir, err := os.MkdirTemp("", "gateway-dry-run-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	c.Log.Dir, c.Live.HTTP.Listen, c.temporary = dir, "off", true
	p, closeLog, err := newParts(c, host, log)
	if err != nil {
		return err
	}
	defer closeLog()
	p.printTo = out
	log.Info("dry run: nothing is sent, nothing is kept; interrupt to end", "sensors", len(c.Sensors))
	return serve(ctx, c, p, nil, func(*config) {}, func() {})
}

// printer is a Sink that prints the requests another would send.
type printer struct {
	sink broker
	out  io.Writer
}

func (p *printer) String() string { return "dry run" }

func (p *printer) Send(_ context.Context, rs []gateway.Reading) error {
	for _, r := range p.sink.Requests(rs) {
		fmt.Fprintf(p.out, "%s %s\n", r.Method, r.URL)
		for _, name := range sortedKeys(r.Header) {
			fmt.Fprintf(p.out, "%s: %s\n", name, r.Header.Get(name))
		}
		if _, err := fmt.Fprintf(p.out, "\n%s\n\n", r.Body); err != nil {
			return err
		}
	}
	return nil
}
