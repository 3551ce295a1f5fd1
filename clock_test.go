package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestNewClock(t *testing.T) {
	c := NewClock()
	a := c.Stamp()
	b := c.Stamp()
	if a.Boot == "" || a.Boot != b.Boot {
		t.Errorf("boots %q, %q", a.Boot, b.Boot)
	}
	if a.Since <= 0 || b.Since < a.Since {
		t.Errorf("since boot: %v, then %v", a.Since, b.Since)
	}
	if a.Wall.Location() != time.UTC || a.Wall != a.Wall.Round(0) {
		t.Errorf("%v is not a plain UTC time", a.Wall)
	}
}

const year = 365 * 24 * time.Hour

// era is when the tests play: synctest's clock begins in 2000.
const era = 28*year + 320*24*time.Hour

func trueNow() time.Time { return time.Now().Add(era).UTC() }

// machine is a Pi: its clock is off by skew until it is set.
type machine struct {
	on time.Time

	mu           sync.Mutex
	skew         time.Duration
	synced       bool
	broker       func() (time.Time, time.Duration, error) // nil: away
	asked, dated int
}

func (m *machine) read() (time.Time, time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return trueNow().Add(m.skew).Round(0), time.Since(m.on)
}

// set sets the clock.
func (m *machine) set(skew time.Duration, synced bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.skew, m.synced = skew, synced
}

func (m *machine) step(skew time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.skew = skew
}

// serve lets the broker answer so; nil: it goes away.
func (m *machine) serve(f func() (time.Time, time.Duration, error)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.broker = f
}

// counts is how often NTP and the broker were asked.
func (m *machine) counts() (asked, dated int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.asked, m.dated
}

func (m *machine) ntp(context.Context) (time.Time, time.Duration, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked++
	if !m.synced {
		return time.Time{}, 0, errors.New("not synchronized")
	}
	return time.Time{}, 0, nil
}

func (m *machine) date(context.Context) (time.Time, time.Duration, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dated++
	if m.broker == nil {
		return time.Time{}, 0, errors.New("connection refused")
	}
	return m.broker()
}

// lines is a log that is read while it is written.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// power switches a machine on.
func power(id BootID, skew time.Duration) (*machine, *Clock) {
	m := &machine{on: time.Now(), skew: skew}
	time.Sleep(20 * time.Second) // until the daemon starts
	c := newClock(id, m.read)
	c.Sources = []Source{{Name: "timesyncd", Ask: m.ntp}, {Name: "broker", After: time.Minute, Ask: m.date}}
	c.Hold = 10 * time.Minute
	return m, c
}

// run runs the clock until the test, or stop, ends it.
func runClock(t *testing.T, c *Clock) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	synctest.Wait()
	return stop
}

// instant is a stamp and when it truly was. The stamp has been through the log.
type instant struct {
	Stamp
	truth time.Time
}

func take(t testing.TB, c *Clock) instant {
	s := c.Stamp()
	b, err := Codec{}.Append(nil, []Reading{{"x", s, []Value{{Temperature, 1.0}}}})
	if err != nil {
		t.Fatal(err)
	}
	rs, err := Codec{}.Decode(b, 1)
	if err != nil {
		t.Fatal(err)
	}
	ram, ok := c.Mend(s)
	disk, ok2 := c.Mend(rs[0].At)
	if ok != ok2 || ok && ram.Wall.UnixMilli() != disk.Wall.UnixMilli() {
		t.Errorf("dated %v in memory, %v from the disk", ram, disk)
	}
	return instant{rs[0].At, trueNow()}
}

func (i instant) exact(t *testing.T, c *Clock, off time.Duration) {
	t.Helper()
	m, ok := c.Mend(i.Stamp)
	if !ok || !m.Earliest.IsZero() || m.Wall.Sub(i.truth.Add(off)).Abs() > 2*time.Millisecond {
		t.Errorf("%v: %v is dated %v, %v…%v, want %v", ok, i.Stamp, m.Wall, m.Earliest, m.Latest, i.truth.Add(off))
	}
}

// The clock is wrong at power-on, is set, and is set again while it is right. A
// reading of this boot is dated by the latest that is known, in order.
func TestClockSteps(t *testing.T) {
	for name, skew := range map[string]time.Duration{
		"a year back": -year, "a year on": year, "1970": -era - 30*year, "half a second back": -500 * time.Millisecond,
		"half a second on": 500 * time.Millisecond, "11 years on": 11 * year, "right": 0,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, c := power("b", skew)
				var logs lines
				c.Log = slog.New(slog.NewTextHandler(&logs, nil))
				defer runClock(t, c)()
				early := take(t, c)
				if s, ok := c.Mend(early.Stamp); ok || early.Synced {
					t.Errorf("dated before the time is known: %v", s)
				}
				changed := c.Changed()
				m.set(0, true)
				select {
				case <-changed:
				case <-time.After(time.Minute):
					t.Fatal("the time is not learnt within a minute")
				}
				early.exact(t, c, 0)
				late := take(t, c)
				late.exact(t, c, 0)
				if !late.Synced {
					t.Error("the clock is right, and the stamp does not say so")
				}
				m.step(skew) // while it is right
				time.Sleep(time.Minute)
				off := skew
				if skew < -2*year {
					off = 0 // not believed
				}
				step := take(t, c)
				for _, i := range []instant{early, late, step} {
					i.exact(t, c, off)
				}
				if step.Synced != (skew == off) {
					t.Errorf("%v, and synced %v", skew, step.Synced)
				}
				m.step(0)
				time.Sleep(time.Minute)
				for _, i := range []instant{early, late, step, take(t, c)} {
					i.exact(t, c, 0)
				}
				if n, _ := m.counts(); n > 3 {
					t.Errorf("asked %d times: once right, the clock need not be asked about", n)
				}
				if steps := map[bool]uint64{true: 2}[off != 0]; c.Stats().Steps != steps || c.Stats().Source != "timesyncd" || strings.Count(logs.String(), "\n") != 1+int(steps) {
					t.Errorf("%+v, log:\n%s", c.Stats(), logs.String())
				}
			})
		})
	}
}

// Looking for the time is neither a storm nor a stall, whatever the clock does.
func TestClockCadence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, c := power("b", -year)
		defer runClock(t, c)()
		for range 60 {
			m.step(time.Duration(rand.Int64N(int64(2*year))) - year)
			time.Sleep(time.Minute)
		}
		if asked, _ := m.counts(); asked < 350 || asked > 362 {
			t.Errorf("asked %d times in an hour, want 360", asked)
		}
	})
}

// Neither of two boots knows the time, and the third does: the readings of all lie
// where they must, and say how far they may be off.
func TestClockReboots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "boots.json")
		var last Stamp
		begin := func(id BootID, skew time.Duration) (*machine, *Clock) {
			m, c := power(id, skew)
			if err := c.Load(file); err != nil {
				t.Error(err)
			}
			c.Saw(last)
			return m, c
		}
		m, c := begin("known", 0)
		m.set(0, true)
		stop := runClock(t, c)
		time.Sleep(time.Hour)
		known := trueNow()
		stop()
		c.Close()

		var all []instant
		for i, skew := range []time.Duration{-3 * time.Hour, -2 * year} {
			time.Sleep(time.Duration(i+1) * time.Hour) // without power
			_, c = begin(BootID(fmt.Sprint("lost-", i)), skew)
			stop = runClock(t, c)
			for range 3 {
				all = append(all, take(t, c))
				time.Sleep(10 * time.Minute)
			}
			last = all[len(all)-1].Stamp
			if _, ok := c.Mend(all[0].Stamp); ok {
				t.Error("dated before anything later is known")
			}
			stop() // and a power cut: no Close
		}
		time.Sleep(30 * time.Minute)
		m, c = begin("third", -24*time.Hour)
		defer runClock(t, c)()
		all = append(all, take(t, c))
		time.Sleep(20 * time.Second)
		m.set(0, true)
		time.Sleep(20 * time.Second)
		all = append(all, take(t, c))
		before := known
		for _, i := range all {
			if i.Boot == "third" {
				i.exact(t, c, 0)
				continue
			}
			s, ok := c.Mend(i.Stamp)
			if !ok || i.truth.Before(s.Earliest) || i.truth.After(s.Latest) || s.Wall.Before(s.Earliest) || s.Wall.After(s.Latest) ||
				s.Earliest.Before(known) || s.Latest.After(m.on.Add(era)) || !s.Wall.After(before) {
				t.Errorf("%v, truly %v: %v, %v…%v after %v", ok, i.truth, s.Wall, s.Earliest, s.Latest, before)
			}
			before = s.Wall
		}
		// The bracket is no wider than what is known: 10 min later in a boot is 10 min later.
		a, _ := c.Mend(all[0].Stamp)
		b, _ := c.Mend(all[2].Stamp)
		if b.Earliest.Sub(a.Earliest) != 20*time.Minute || b.Latest.Sub(a.Latest) != 20*time.Minute || b.Wall.Sub(a.Wall) != 20*time.Minute {
			t.Errorf("%v, %v", a, b)
		}
	})
}

// Whatever boots, clocks and power do, what is sent comes in the order in which it
// was taken, and what is said of its time is true.
func TestClockProperty(t *testing.T) {
	for seed := range uint64(150) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			hours := func(n int64) time.Duration { return time.Duration(r.Int64N(n * int64(time.Hour))) }
			file := filepath.Join(t.TempDir(), "boots.json")
			var log []instant
			sent, lost := 0, false
			var before Stamp
			begin := func(n int) (*machine, *Clock) {
				skew := []time.Duration{-hours(48), -hours(48), -era - 30*year, hours(100), -year, 60 * year}[r.IntN(6)]
				m, c := power(BootID(fmt.Sprint("boot-", n)), skew)
				if r.IntN(8) == 0 {
					os.Remove(file)
					lost, before = true, Stamp{} // with what was known when the last reading was sent
				}
				if err := c.Load(file); err != nil {
					t.Error(err)
				}
				if len(log) > 0 {
					c.Saw(log[len(log)-1].Stamp)
				}
				if c.dirty {
					c.keep(c.this())
				}
				return m, c
			}
			drain := func(c *Clock) {
				for ; sent < len(log); sent++ {
					i := log[sent]
					s, ok := c.Mend(i.Stamp)
					if !ok {
						return
					}
					if s.Earliest.IsZero() {
						if s.Wall.Sub(i.truth).Abs() > 2*time.Millisecond {
							t.Errorf("seed %d: %v is dated %v, as if it were known: truly %v", seed, i.Stamp, s.Wall, i.truth)
						}
					} else {
						const ms = 2 * time.Millisecond
						if i.truth.Before(s.Earliest.Add(-ms)) || i.truth.After(s.Latest.Add(ms)) || s.Wall.Before(s.Earliest) || s.Wall.After(s.Latest) {
							t.Errorf("seed %d: %v: %v is not in %v…%v, truly %v", seed, i.Stamp, s.Wall, s.Earliest, s.Latest, i.truth)
						}
					}
					if s.Wall.Before(before.Wall.Add(-time.Millisecond)) && (!lost || s.Boot == before.Boot && s.Synced == before.Synced) {
						t.Errorf("seed %d: %v after %v", seed, s.Wall, before.Wall)
					}
					before = s
				}
			}
			boots := 2 + r.IntN(6)
			for n := range boots {
				m, c := begin(n)
				for range r.IntN(20) {
					time.Sleep(hours(2))
					switch r.IntN(6) {
					case 0:
						if !m.synced { // somebody, or nobody, sets it wrong
							m.skew += hours(100) - 50*time.Hour
						}
					case 1:
						if r.IntN(3) == 0 || n == boots-1 {
							m.set(0, true)
						}
						c.look(t.Context())
					case 2:
						drain(c)
					default:
						log = append(log, take(t, c))
					}
				}
				if n == boots-1 {
					m.set(0, true)
					c.look(t.Context())
					drain(c)
					if sent != len(log) {
						t.Errorf("seed %d: %d of %d are still not dated", seed, len(log)-sent, len(log))
					}
				}
				if r.IntN(2) == 0 {
					c.Close()
				}
				time.Sleep(hours(100))
			}
		})
	}
}

// The last resort is believed only after the others have said no for a minute,
// says so, narrows nothing it does not know, and gives way to better.
func TestClockLastResort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, c := power("b", -year)
		zone := time.FixedZone("elsewhere", 5*3600)
		var lie atomic.Int64
		m.serve(func() (time.Time, time.Duration, error) {
			return trueNow().Add(time.Duration(lie.Load())).In(zone), time.Second, nil
		})
		lie.Store(int64(-30 * year)) // implausible: it is there, and does not tell the time
		defer runClock(t, c)()
		early := take(t, c)
		time.Sleep(2 * time.Minute)
		if s := c.Stats(); s.Source != "" || !s.Held {
			t.Errorf("%+v", s)
		}
		lie.Store(int64(300 * time.Millisecond))
		time.Sleep(15 * time.Second)
		bounds := func(i instant) Stamp {
			t.Helper()
			s, ok := c.Mend(i.Stamp)
			if !ok || s.Wall.Location() != time.UTC || i.truth.Before(s.Earliest) || i.truth.After(s.Latest) || s.Latest.Sub(s.Earliest) != 2*time.Second {
				t.Errorf("%v: %v in %v…%v, truly %v", ok, s.Wall, s.Earliest, s.Latest, i.truth)
			}
			return s
		}
		a := bounds(early)
		if s := c.Stats(); s.Source != "broker" || s.Within != time.Second || s.Held || c.Stamp().Synced {
			t.Errorf("%+v", s)
		}
		if now := c.Now(); now.Sub(trueNow()).Abs() > time.Second {
			t.Errorf("now %v", now)
		}
		lie.Store(int64(-100 * time.Millisecond)) // within what it may be off: nothing moves
		time.Sleep(2 * time.Minute)
		if b := bounds(early); b != a {
			t.Errorf("%v became %v", a, b)
		}
		m.set(0, true)
		time.Sleep(2 * time.Minute)
		early.exact(t, c, 0)
		_, dated := m.counts()
		time.Sleep(time.Hour)
		if _, again := m.counts(); again != dated {
			t.Error("the last resort is asked although the time is known better")
		}
	})
}

// The last resort is not asked for the time while better sources may still tell it.
func TestClockPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, c := power("b", -year)
		m.serve(func() (time.Time, time.Duration, error) { return trueNow(), time.Second, nil })
		defer runClock(t, c)()
		time.Sleep(50 * time.Second)
		if s := c.Stats(); s.Source != "" {
			t.Errorf("after 50 s: %+v", s)
		}
		time.Sleep(20 * time.Second)
		if s := c.Stats(); s.Source != "broker" {
			t.Errorf("after 70 s: %+v", s)
		}
	})
}

// What cannot be dated waits, and only as long as the broker could take it; then
// it goes out with what is known.
func TestClockHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, c := power("b", -1000*24*time.Hour)
		var logs lines
		c.Log = slog.New(slog.NewTextHandler(&logs, nil))
		defer runClock(t, c)()
		i := take(t, c)
		time.Sleep(100 * time.Hour) // the broker is away
		if _, ok := c.Mend(i.Stamp); ok {
			t.Error("not held")
		}
		m.serve(func() (time.Time, time.Duration, error) { return time.Time{}, 0, fmt.Errorf("x: %w", ErrNoTime) })
		time.Sleep(9 * time.Minute)
		m.serve(nil)
		time.Sleep(time.Hour)
		changed := c.Changed()
		m.serve(func() (time.Time, time.Duration, error) { return time.Time{}, 0, ErrNoTime })
		if _, ok := c.Mend(i.Stamp); ok {
			t.Error("held for 9 minutes only")
		}
		select {
		case <-changed:
		case <-time.After(2 * time.Minute):
			t.Error("held for more than 10 minutes")
		}
		s, ok := c.Mend(i.Stamp)
		if !ok || s.Earliest.Before(dawn) || s.Earliest.After(i.truth) || !s.Latest.IsZero() || s.Wall.Before(dawn) {
			t.Errorf("%v: %v, %v…%v", ok, s.Wall, s.Earliest, s.Latest)
		}
		synctest.Wait() // it is told after the change is
		if n := strings.Count(logs.String(), "\n"); n != 2 || !strings.Contains(logs.String(), "still not known") {
			t.Errorf("log:\n%s", logs.String())
		}
		m.set(0, true) // better late than never
		time.Sleep(time.Minute)
		i.exact(t, c, 0)
	})
}

func TestClockHoldZero(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, c := power("b", -24*time.Hour)
		c.Hold = 0
		i := take(t, c)
		if s, ok := c.Mend(i.Stamp); !ok || !s.Wall.Equal(i.Wall) || s.Earliest.IsZero() || !s.Latest.IsZero() {
			t.Errorf("%v: %+v", ok, s)
		}
	})
}

// Online the file is written when the boot begins and when the time is learnt, no
// more; and a restart dates as before.
func TestClockTable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "boots.json")
		m, c := power("b", -year)
		if err := c.Load(file); err != nil {
			t.Errorf("no file is no fault: %v", err)
		}
		stop := runClock(t, c)
		first, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		i := take(t, c)
		m.set(0, true)
		time.Sleep(time.Minute)
		second, _ := os.ReadFile(file)
		m.step(50 * time.Millisecond) // too little to follow
		time.Sleep(100 * time.Hour)
		third, _ := os.ReadFile(file)
		if string(first) == string(second) || string(second) != string(third) {
			t.Errorf("%s\n%s\n%s", first, second, third)
		}
		m.step(time.Second)
		time.Sleep(time.Minute)
		fourth, _ := os.ReadFile(file)
		if string(third) == string(fourth) {
			t.Error("a step is not kept")
		}
		stop()
		time.Sleep(time.Hour)
		c.Close()

		again := newClock("b", m.read) // the daemon restarts; nobody is asked yet
		again.Hold = time.Hour
		if err := again.Load(file); err != nil {
			t.Error(err)
		}
		if again.dirty {
			t.Error("nothing is new, and would be written")
		}
		i.exact(t, again, time.Second)
		// Timesyncd has forgotten; what is worse does not replace what it has told.
		m.synced = false
		m.serve(func() (time.Time, time.Duration, error) { return trueNow().Add(time.Minute), time.Second, nil })
		again.Sources = c.Sources
		defer runClock(t, again)()
		time.Sleep(time.Hour)
		i.exact(t, again, time.Second)

		_, next := power("c", 0)
		if err := next.Load(file); err != nil {
			t.Error(err)
		}
		if b := next.boots[0]; b.ID != "b" || b.Last < 101*time.Hour {
			t.Errorf("%+v: how long it lasted is not kept", b)
		}
		i.exact(t, next, time.Second)
	})
}

// A file that is torn, foreign, or cannot be written never stops the clock.
func TestClockBadTable(t *testing.T) {
	for name, text := range map[string]string{
		"torn": `{"version":1,"boots":[{"id":"a","sta`, "empty": "", "foreign": "GIF89a", "another version": `{"version":2}`,
		"absurd": `{"version":1,"boots":[{"id":"a","start":"1970-01-01T00:00:00Z"},{"id":"","last_ns":5},{"id":"a"},{"id":"b","last_ns":-1},{"id":"c","error_ns":9000000000000000000}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				file := filepath.Join(t.TempDir(), "boots.json")
				if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				m, c := power("b", -year)
				if err := c.Load(file); (err == nil) != (name == "absurd") {
					t.Errorf("Load: %v", err)
				}
				if len(c.boots) != 1 && name != "absurd" {
					t.Errorf("%+v", c.boots)
				}
				stop := runClock(t, c)
				i := take(t, c)
				m.set(0, true)
				time.Sleep(time.Minute)
				i.exact(t, c, 0)
				stop()
				if boots, err := readBoots(file); err != nil || boots[len(boots)-1].ID != "b" || boots[len(boots)-1].Start.IsZero() {
					t.Errorf("not repaired: %+v, %v", boots, err)
				}
			})
		})
	}
	t.Run("no folder", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m, c := power("b", -year)
			var logs lines
			c.Log = slog.New(slog.NewTextHandler(&logs, nil))
			if err := c.Load(filepath.Join(t.TempDir(), "gone", "boots.json")); err != nil {
				t.Error(err)
			}
			defer runClock(t, c)()
			i := take(t, c)
			m.set(0, true)
			time.Sleep(time.Minute)
			i.exact(t, c, 0)
			if n := strings.Count(logs.String(), "not kept"); n != 1 {
				t.Errorf("told %d times", n)
			}
		})
	})
}

// The table was lost, and the log is full of boots that it had.
func TestClockUnknownBoots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, c := power("now", 0)
		m.set(0, true)
		if s, ok := c.Mend(Stamp{Wall: trueNow().Add(-time.Hour), Boot: "gone", Since: time.Minute, Synced: true}); !ok || !s.Earliest.IsZero() || !s.Wall.Equal(trueNow().Add(-time.Hour)) {
			t.Errorf("the stamp knew the time: %v, %v", s, ok)
		}
		c.look(t.Context())
		start := trueNow()
		var last time.Time
		for i := range 3 * maxBoots {
			s, ok := c.Mend(Stamp{Wall: start.Add(-100 * time.Hour), Boot: BootID(fmt.Sprint(i)), Since: time.Minute})
			if !ok || !s.Earliest.Equal(dawn.Add(time.Minute)) || s.Latest.After(start) || s.Wall.Before(last) {
				t.Fatalf("%d, %v: %v, %v…%v", i, ok, s.Wall, s.Earliest, s.Latest)
			}
			last = s.Wall
		}
		if len(c.boots)+len(c.strays) > 2*maxBoots {
			t.Errorf("%d boots, %d strays are kept", len(c.boots), len(c.strays))
		}
	})
}

// The table was lost, but the last of the log knew the time: so does all of its
// boot. A reading between two boots whose times contradict each other is not
// forced between them.
func TestClockNeighbours(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, c := power("now", 0)
		m.set(0, true)
		noon := trueNow().Add(-time.Hour)
		c.Saw(Stamp{Wall: noon, Boot: "gone", Since: time.Hour, Synced: true})
		c.boots = append([]boot{{ID: "liar", Start: trueNow().Add(20 * year), Last: time.Hour}, {ID: "between", Guess: trueNow(), Last: time.Hour}}, c.boots...)
		c.look(t.Context())
		if s, ok := c.Mend(Stamp{Wall: dawn, Boot: "gone", Since: time.Minute}); !ok || !s.Earliest.IsZero() || !s.Wall.Equal(noon.Add(-59*time.Minute)) {
			t.Errorf("%v: %+v", ok, s)
		}
		if s, ok := c.Mend(Stamp{Boot: "between"}); !ok || !s.Earliest.Equal(dawn) || !s.Latest.Equal(m.on.Add(era-time.Hour)) || s.Wall.After(s.Latest) {
			t.Errorf("%v: %+v", ok, s)
		}
	})
}

// Whatever is in the file, the clock dates, and in order.
func FuzzBoots(f *testing.F) {
	f.Add([]byte(`{"version":1,"boots":[{"id":"a","guess":"2026-01-02T03:04:05Z","last_ns":5},{"id":"b","start":"2026-11-01T00:00:00.5Z","source":"broker","error_ns":1500000000,"last_ns":3600000000000}]}`))
	f.Add([]byte(`{"version":1,"boots":[{"id":"a","guess":"9999-12-31T23:59:59Z"},{"id":"b","guess":"0001-01-01T00:00:00Z","last_ns":1}]}`))
	f.Add([]byte(`{"version":1,"boots":[{"id":"now"},{"id":"now"}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		boots, err := parseBoots(text)
		if err != nil {
			return
		}
		if b, err := json.Marshal(table{1, boots}); err != nil {
			t.Error(err)
		} else if again, err := parseBoots(b); err != nil || len(again) != len(boots) {
			t.Errorf("%+v became %+v: %v", boots, again, err)
		}
		c := newClock("now", func() (time.Time, time.Duration) { return dawn.Add(year), time.Hour })
		c.boots = append(boots, c.boots[0])
		c.boots = slices.DeleteFunc(c.boots[:len(c.boots)-1], func(b boot) bool { return b.ID == "now" })
		c.boots = append(c.boots, boot{ID: "now", Guess: dawn})
		c.redate()
		c.learn("x", time.Time{}, 0)
		for _, b := range c.boots {
			first, ok := c.Mend(Stamp{Boot: b.ID})
			later, ok2 := c.Mend(Stamp{Boot: b.ID, Since: time.Hour})
			if !ok || !ok2 || later.Wall.Before(first.Wall) || first.Wall.Before(dawn.Add(-time.Duration(1<<63-1))) {
				t.Errorf("%+v: %v, then %v", b, first, later)
			}
			if !first.Latest.IsZero() && (first.Wall.After(first.Latest) || first.Earliest.After(first.Latest)) {
				t.Errorf("%+v: %v in %v…%v", b, first.Wall, first.Earliest, first.Latest)
			}
		}
	})
}
