package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// BootID names one run of the machine from power-on to power-off, as the kernel
// does (/proc/sys/kernel/random/boot_id).
type BootID string

// Stamp is a time that can still be mended. A Pi without a battery clock boots
// in the past, so the wall clock alone may be years wrong; boot and time since
// boot say how far apart two readings of one boot truly were.
type Stamp struct {
	Wall   time.Time     // the wall clock as it was then, UTC
	Boot   BootID        // the boot it was taken in
	Since  time.Duration // since that boot, by a clock that never steps
	Synced bool          // the wall clock was known to be right

	// Earliest and Latest are set by Clock.Mend, and never kept: the true time
	// lies between them, and Wall is the best guess. No Earliest: Wall is exact.
	// No Latest: nothing is known that came later.
	Earliest, Latest time.Time
}

// Source is one way to learn the true time.
type Source struct {
	Name string
	// After makes it a last resort: it is believed only once those before it
	// have said no for so long.
	After time.Duration
	// Ask tells the true time at the moment it returns, give or take within; the
	// zero time says that the machine's own clock is right. It must end with ctx.
	Ask func(ctx context.Context) (now time.Time, within time.Duration, err error)
}

// ErrNoTime is, or is wrapped by, the error of a Source that could be reached but
// does not tell the time.
var ErrNoTime = errors.New("it answers, but does not tell the time")

// Clock makes stamps, learns the true time, and puts stamps right by it: those
// of this boot as soon as the time is known, those of earlier boots that never
// knew it by the boots before and after. It is safe for concurrent use.
//
// It keeps a table of boots in a small file, so that a restart dates a reading as
// before. The file is written when a boot begins, when its time is learnt or
// changes by more than 100 ms, and by Close; never otherwise.
type Clock struct {
	// To be set while Run does not run.
	Sources []Source      // best first
	Hold    time.Duration // how long what cannot be dated waits while the last resort can be reached; 0: not at all
	Log     *slog.Logger  // default: none

	Heart

	boot BootID
	read func() (wall time.Time, since time.Duration) // of one instant
	file string                                       // empty: the table is not kept

	// Of Run and Close alone.
	dirty  bool           // the file does not know what the table knows
	failed bool           // the file could not be written
	asked  *time.Duration // since boot, when a source was first asked
	met    *time.Duration // since boot, when the last resort was reached; nil: not in the last look
	told   bool           // that the time is not known

	mu      sync.Mutex
	boots   []boot // oldest first; the last is this one
	strays  []boot // that the table does not know, oldest first; never kept
	newest  Stamp  // in the log, at start
	dates   map[BootID]dating
	changed chan struct{} // closed when stamps are dated otherwise than before
	vouched bool          // the machine's own clock is right
	reached time.Duration // how long the last resort was within reach and the time not known
	steps   uint64
}

// boot is what is known of one boot.
type boot struct {
	ID     BootID        `json:"id"`
	Start  time.Time     `json:"start,omitzero"`     // the true time of power-on; zero: never known
	Source string        `json:"source,omitempty"`   // of Start
	Error  time.Duration `json:"error_ns,omitempty"` // of Start: it may be off by so much
	Guess  time.Time     `json:"guess,omitzero"`     // of power-on by the wall clock as first seen in that boot
	Last   time.Duration `json:"last_ns"`            // the boot lasted at least so long
}

// dating is how the stamps of one boot are put right.
type dating struct {
	known            bool      // as well as it will ever be; else a guess that may have to do
	exact            bool      // Start is known
	start            time.Time // of the boot
	earliest, latest time.Time // bounds of start; none: it is certain. No latest: none is known
	end              time.Time // the boot was over by then; zero: not known
}

const (
	askEvery   = 10 * time.Second // while the time is not known; then how often the clock's steps are looked for
	betterEach = time.Minute      // while only the last resort tells the time
	askTimeout = 10 * time.Second
	tolerance  = 100 * time.Millisecond // a smaller step is not followed
	maxBoots   = 1000
	maxTable   = 1 << 20 // bytes of the file
)

// No time outside these is believed, whoever tells it: this program is not older,
// and a Pi will not last longer.
var (
	dawn = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	dusk = time.Date(2076, 1, 1, 0, 0, 0, 0, time.UTC)
)

func plausible(t time.Time) bool { return !t.Before(dawn) && t.Before(dusk) }

// NewClock reads the machine's boot id and uptime. Where the system has
// neither (not Linux), the boot is the program's own start.
func NewClock() *Clock {
	start := time.Now() // with Go's monotonic reading
	id := BootID("start-" + strconv.FormatInt(start.UnixNano(), 36))
	if b, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		id = BootID(strings.TrimSpace(string(b)))
	}
	var uptime time.Duration // at start
	if b, err := os.ReadFile("/proc/uptime"); err == nil {
		start = time.Now()
		first, _, _ := strings.Cut(string(b), " ")
		if s, err := strconv.ParseFloat(first, 64); err == nil {
			uptime = time.Duration(s * float64(time.Second))
		}
	}
	return newClock(id, func() (time.Time, time.Duration) {
		now := time.Now()
		return now.Round(0).UTC(), uptime + now.Sub(start)
	})
}

func newClock(id BootID, read func() (time.Time, time.Duration)) *Clock {
	wall, since := read()
	c := &Clock{
		Log: slog.New(slog.DiscardHandler), boot: id, read: read, changed: make(chan struct{}),
		boots: []boot{{ID: id, Guess: guess(wall, since)}},
	}
	c.redate()
	return c
}

// guess is when a boot began. In whole milliseconds, of which the log keeps the time
// since: so a reading is dated alike before and after a restart.
func guess(wall time.Time, since time.Duration) time.Time {
	return wall.Add(-since).Truncate(time.Millisecond)
}

// Stamp is the present instant.
func (c *Clock) Stamp() Stamp {
	wall, since := c.read()
	c.mu.Lock()
	defer c.mu.Unlock()
	return Stamp{Wall: wall, Boot: c.boot, Since: since, Synced: c.vouched && plausible(wall)}
}

// Now is the best guess of the present time, for what cannot wait to be sure, as
// a certificate's dates.
func (c *Clock) Now() time.Time {
	wall, since := c.read()
	c.mu.Lock()
	defer c.mu.Unlock()
	d := c.dates[c.boot]
	if now := d.start.Add(since); d.exact || now.After(wall) {
		return now
	}
	return wall
}

// Mend puts a stamp right by all that is known now. Not ok: its time will be
// known, or may be guessed, later.
func (c *Clock) Mend(s Stamp) (mended Stamp, ok bool) {
	if planted == "wall-clock-order" {
		return s, true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	d, found := c.dates[s.Boot]
	if s.Synced && !d.exact {
		return s, true
	}
	if !found {
		c.adopt(s)
		d = c.dates[s.Boot]
	}
	if !d.known && c.reached < c.Hold {
		return s, false
	}
	s.Wall = earlier(d.start.Add(s.Since), d.end)
	if !d.earliest.IsZero() {
		s.Earliest = earlier(d.earliest.Add(s.Since), d.end)
		if !d.latest.IsZero() {
			s.Latest = earlier(d.latest.Add(s.Since), d.end)
		}
	}
	return s, true
}

// earlier is t, or the bound before it. A zero bound is none.
func earlier(t, bound time.Time) time.Time {
	if !bound.IsZero() && bound.Before(t) {
		return bound
	}
	return t
}

// Changed is closed when Mend has something new to say.
func (c *Clock) Changed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

// adopt takes up a boot that the table does not know: its file was lost, or could
// not be written. Where it stands among those that are known cannot be told, only
// that it was before this one, and after those adopted before it: stamps come in
// the log's order. Call it with mu.
func (c *Clock) adopt(s Stamp) {
	b := boot{ID: s.Boot, Guess: guess(s.Wall, s.Since), Last: s.Since}
	if s.Boot == c.newest.Boot {
		b.saw(c.newest)
	}
	if len(c.strays) == maxBoots {
		c.strays = slices.Delete(c.strays, 0, 1)
	}
	c.strays = append(c.strays, b)
	c.redate()
}

// saw takes in what a stamp tells of its boot. It reports whether that is new.
func (b *boot) saw(s Stamp) (news bool) {
	if s.Since > b.Last {
		b.Last, news = s.Since, true
	}
	if s.Synced && b.Start.IsZero() && plausible(s.Wall) {
		b.Start, b.Source, news = guess(s.Wall, s.Since), "log", true
	}
	return news
}

// redate works out when each boot began. Call it with mu.
func (c *Clock) redate() {
	ends := make([]time.Time, len(c.boots)) // by then the boot was over; zero: not known
	for i := len(ends) - 2; i >= 0; i-- {
		switch next := c.boots[i+1]; {
		case !next.Start.IsZero():
			ends[i] = next.Start.Add(next.Error)
		case !ends[i+1].IsZero():
			ends[i] = ends[i+1].Add(-next.Last)
		}
	}
	c.dates = make(map[BootID]dating, len(c.strays)+len(c.boots))
	var end time.Time
	if this := c.boots[len(c.boots)-1]; !this.Start.IsZero() {
		end = this.Start.Add(this.Error)
	}
	best := dawn // when the boot before was over, by the best guess
	for _, b := range c.strays {
		d := b.date(dawn, best, end)
		c.dates[b.ID] = d
		best = d.start.Add(b.Last)
	}
	sure, best := dawn, dawn // the same, at the earliest
	for i, b := range c.boots {
		d := b.date(sure, best, ends[i])
		c.dates[b.ID] = d
		best, sure = d.start.Add(b.Last), d.start.Add(b.Last)
		if !d.earliest.IsZero() {
			sure = d.earliest.Add(b.Last)
		}
	}
}

// date is how b's stamps are put right. The boot before it was over at sure at the
// earliest, and at best by the best guess; b itself at end (zero: not known).
func (b *boot) date(sure, best, end time.Time) dating {
	if !b.Start.IsZero() {
		d := dating{known: true, exact: true, start: b.Start}
		if b.Error > 0 {
			d.earliest, d.latest = b.Start.Add(-b.Error), b.Start.Add(b.Error)
		}
		return d
	}
	d := dating{start: b.Guess, earliest: sure, end: end, known: !end.IsZero()}
	if d.start.Before(best) || !plausible(d.start) {
		d.start = best
	}
	if d.known {
		d.latest = end.Add(-b.Last)
		if d.latest.Before(sure) { // a neighbour's time was wrong: which is not known
			d.earliest = earlier(dawn, d.latest)
		}
		d.start = earlier(d.start, d.latest)
	}
	return d
}

// String names the task.
func (c *Clock) String() string { return "clock" }

// Run learns the time, and follows it, until ctx ends. It returns nil.
func (c *Clock) Run(ctx context.Context) error {
	if c.dirty {
		c.keep(c.this())
	}
	defer c.Rest()
	for ctx.Err() == nil {
		c.Beat(time.Duration(len(c.Sources))*askTimeout + betterEach + grace)
		pause(ctx, c.look(ctx))
	}
	return nil
}

// look asks for the time, and says when to look again.
func (c *Clock) look(ctx context.Context) (again time.Duration) {
	if c.right() { // and stays so when it is set
		c.learn(c.this().Source, time.Time{}, 0)
		return askEvery
	}
	_, since := c.read()
	if c.asked == nil {
		c.asked = &since
	}
	reached := false
	for i, s := range c.Sources {
		if i > c.rank(c.this()) {
			break // worse than what is known
		}
		asking, cancel := context.WithTimeout(ctx, askTimeout)
		now, within, err := s.Ask(asking)
		cancel()
		if ctx.Err() != nil {
			return 0
		}
		// The last resort is asked at once, to see whether it is there.
		if err == nil && since-*c.asked >= s.After && c.learn(s.Name, now, within) {
			break
		}
		reached = reached || s.After > 0 && (err == nil || errors.Is(err, ErrNoTime))
	}
	switch {
	case c.right():
		return askEvery
	case !c.this().Start.IsZero():
		return betterEach
	}
	c.count(reached)
	if !c.told && since-*c.asked >= time.Minute {
		c.told = true
		c.Log.Warn("the true time is not known yet: is NTP blocked here?", "hold", c.Hold.String())
	}
	return askEvery
}

// count counts the time that the last resort is there and cannot tell the time.
func (c *Clock) count(reached bool) {
	_, since := c.read()
	met := c.met
	c.met = nil
	if !reached {
		return
	}
	c.met = &since
	if met == nil {
		return
	}
	c.mu.Lock()
	before := c.reached >= c.Hold
	c.reached += since - *met
	over := !before && c.reached >= c.Hold
	if over {
		c.tell()
	}
	c.mu.Unlock()
	if over {
		c.Log.Warn("the true time is still not known: readings go out with a guess, and say so", "waited", c.Hold.String())
	}
}

// right reports whether a source has said that the machine's own clock is.
func (c *Clock) right() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.vouched
}

// this is a copy of the present boot.
func (c *Clock) this() boot {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.boots[len(c.boots)-1]
}

// rank is how good b's time is: the index of its source.
func (c *Clock) rank(b boot) int {
	i := slices.IndexFunc(c.Sources, func(s Source) bool { return s.Name == b.Source })
	if i < 0 || b.Start.IsZero() {
		return len(c.Sources)
	}
	return i
}

// learn takes a source's word for the time, if it can be believed. What stamps are
// dated by is on the disk before it is used.
func (c *Clock) learn(source string, now time.Time, within time.Duration) bool {
	wall, since := c.read()
	own := now.IsZero()
	if own {
		now = wall
	}
	if !plausible(now) {
		return false
	}
	within = (within + time.Millisecond - 1).Truncate(time.Millisecond) // as guess is
	old := c.this()
	next := old
	next.Start, next.Source, next.Error, next.Last = guess(now.UTC(), since), source, within, since
	known, better := !old.Start.IsZero(), c.rank(next) < c.rank(old)
	step := next.Start.Sub(old.Start)
	moved := step.Abs() > max(tolerance, old.Error/2)
	if known && !better && !moved { // an offset stays what it was
		next.Start, next.Error = old.Start, max(old.Error, within)
	} else {
		c.keep(next)
	}
	c.mu.Lock()
	c.vouched = c.vouched || own
	c.boots[len(c.boots)-1] = next
	c.redate()
	if !known || better || moved {
		c.tell()
	}
	if known && moved {
		c.steps++
	}
	c.mu.Unlock()
	switch {
	case known && moved:
		c.Log.Warn("the clock was set: what is not yet sent follows it", "source", source, "by", step.Round(time.Millisecond).String())
	case within > 0 && !known:
		c.Log.Warn("the time comes from a last resort: readings say how far it may be off. Is NTP blocked here?", "source", source, "within", within.String())
	case !known || better:
		c.Log.Info("the time is known", "source", source)
	}
	return true
}

// tell wakes who waits for Changed. Call it with mu.
func (c *Clock) tell() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// ClockStats is how well the time is known.
type ClockStats struct {
	Source string        // that told it; empty: it is not known
	Within time.Duration // it may be off by so much; 0: exact
	Steps  uint64        // how often the known time has changed, since start
	Held   bool          // readings of now wait until it is known
}

// Follow says anew where the time is learnt, best first, and how long what cannot be
// dated waits. To be called while Run does not run; all else may go on meanwhile.
func (c *Clock) Follow(hold time.Duration, sources []Source) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Hold, c.Sources = hold, sources
}

// Stats may be called at any time from any goroutine.
func (c *Clock) Stats() ClockStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.boots[len(c.boots)-1]
	return ClockStats{Source: b.Source, Within: b.Error, Steps: c.steps, Held: b.Start.IsZero() && c.reached < c.Hold}
}

// Load reads the table of boots and from now on keeps it in file. The Clock is
// good whatever the error says: a table that cannot be read begins anew, and boots
// that are in it no more are dated less well. Call it before the Clock is used.
func (c *Clock) Load(file string) error {
	c.file = file
	boots, err := readBoots(file)
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	this := c.boots[len(c.boots)-1]
	if i := slices.IndexFunc(boots, func(b boot) bool { return b.ID == c.boot }); i >= 0 {
		this = boots[i]
		boots = slices.Delete(boots, i, i+1)
	} else {
		c.dirty = true
	}
	boots = append(boots, this)
	c.boots = boots[max(0, len(boots)-maxBoots):]
	c.redate()
	return err
}

// Saw tells of the newest stamp in the log, before Run: its boot lasted at least
// until then, and may have known the time.
func (c *Clock) Saw(s Stamp) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.newest = s
	if i := slices.IndexFunc(c.boots, func(b boot) bool { return b.ID == s.Boot }); i >= 0 && c.boots[i].saw(s) {
		c.dirty = true
		c.redate()
	}
}

// Close keeps how long this boot has lasted. Call it after Run.
func (c *Clock) Close() {
	this := c.this()
	_, this.Last = c.read()
	c.keep(this)
}

// keep writes the table, with this as the present boot. That it cannot is told
// once: stamps are dated less well after a restart, no more.
func (c *Clock) keep(this boot) {
	if c.file == "" {
		return
	}
	c.mu.Lock()
	boots := append(slices.Clone(c.boots[:len(c.boots)-1]), this)
	c.mu.Unlock()
	err := writeBoots(c.file, boots)
	if err != nil && !c.failed {
		c.Log.Warn("what is known of the boots is not kept: after a restart, times may be less exact", "why", err)
	}
	c.failed, c.dirty = err != nil, false
}

// table is the file.
type table struct {
	Version int    `json:"version"`
	Boots   []boot `json:"boots"`
}

func readBoots(file string) ([]boot, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("clock: read the table of boots: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxTable))
	if err != nil {
		return nil, fmt.Errorf("clock: read the table of boots: %w", err)
	}
	boots, err := parseBoots(text)
	if err != nil {
		return nil, fmt.Errorf("clock: read the table of boots: %s: %w", file, err)
	}
	return boots, nil
}

// parseBoots takes what it can use: a boot that cannot be true is passed over.
func parseBoots(text []byte) ([]boot, error) {
	var t table
	if err := json.Unmarshal(text, &t); err != nil {
		return nil, err
	}
	if t.Version != 1 {
		return nil, fmt.Errorf("version %d: this program reads version 1", t.Version)
	}
	const longest = 20 * 365 * 24 * time.Hour
	seen := map[BootID]bool{}
	return slices.DeleteFunc(t.Boots, func(b boot) bool {
		bad := b.ID == "" || len(b.ID) > 64 || seen[b.ID] || b.Last < 0 || b.Last > longest || b.Error < 0 || b.Error > time.Hour ||
			!b.Start.IsZero() && (!plausible(b.Start.Add(longest/20)) || !b.Start.Before(dusk))
		seen[b.ID] = true
		return bad
	}), nil
}

// writeBoots replaces the file as a whole, durably, or leaves the old one.
func writeBoots(file string, boots []boot) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write the table of boots: %w", err)
		}
	}()
	text, err := json.Marshal(table{Version: 1, Boots: boots})
	if err != nil {
		return err
	}
	dir := filepath.Dir(file)
	f, err := os.OpenFile(file+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(text, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(file+".new", file); err != nil {
		return err
	}
	if runtime.GOOS == "windows" { // where a folder cannot be flushed
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
