package sim

import (
	"testing"
	"testing/synctest"
	"time"

	"periph.io/x/conn/v3/gpio"
)

// What next says is what active does, looked at every second for a day.
func TestSpells(t *testing.T) {
	for name, line := range map[string]spells{"motion": motion, "door": door} {
		begin := lectureTime.UnixMilli()
		at, was, changes := line.next(begin), line.active(begin), 0
		for now := begin + 1; now < begin+dayms; now++ {
			if now < at-3 { // nothing is said to happen: look now and then
				now = min(now+999, at-3)
			}
			is := line.active(now)
			switch {
			case is != was && now != at:
				t.Fatalf("%s: changes at %d, not %d", name, now, at)
			case is == was && now == at:
				t.Fatalf("%s: does not change at %d", name, at)
			}
			if now == at {
				at = line.next(at)
				changes++
			}
			was = is
		}
		if changes < 20 {
			t.Errorf("%s: %d changes in a day", name, changes)
		}
		t.Logf("%s: %d changes in a day", name, changes)
	}
}

// There always is a next change: through every hour of a year, at night and in
// August too.
func TestSpellsGoOn(t *testing.T) {
	for _, line := range []spells{motion, door} {
		for at := lectureTime.UnixMilli(); at < lectureTime.AddDate(1, 0, 0).UnixMilli(); at += 18 * hour {
			if next := line.next(at); next <= at || next > at+3*dayms || line.active(next) == line.active(at) {
				t.Errorf("after %v: %v", time.UnixMilli(at), time.UnixMilli(next))
			}
		}
	}
}

func TestPin(t *testing.T) {
	for _, speed := range []float64{1, 60, 7919} {
		for _, edge := range []gpio.Edge{gpio.RisingEdge, gpio.FallingEdge, gpio.BothEdges} {
			synctest.Test(t, func(t *testing.T) {
				room := NewRoom(lectureTime, speed)
				p, err := NewBoard(room).Pin("GPIO17")
				if err != nil {
					t.Fatal(err)
				}
				if err := p.In(gpio.PullUp, edge); err != nil {
					t.Fatal(err)
				}
				at := lectureTime.UnixMilli()
				for range 50 {
					for {
						at = motion.next(at)
						if edge == gpio.BothEdges || motion.active(at) == (edge == gpio.RisingEdge) {
							break
						}
					}
					level := p.Read()
					if !p.WaitForEdge(-1) {
						t.Fatalf("no edge")
					}
					if late := room.Now().Sub(time.UnixMilli(at)); late < 0 || late > time.Millisecond {
						t.Fatalf("%v late", late)
					}
					if now := p.Read(); now != gpio.Level(motion.active(at)) || edge == gpio.BothEdges && now == level {
						t.Fatalf("%v after the edge", now)
					}
				}
				// Edges wait to be fetched.
				time.Sleep(time.Duration(float64(24*time.Hour) / speed))
				now := time.Now()
				for range 10 {
					if !p.WaitForEdge(0) {
						t.Errorf("an edge of the past is lost")
					}
				}
				if time.Now() != now {
					t.Errorf("waited for the past")
				}
			})
		}
	}
}

func TestPinEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		night := time.Date(2026, 3, 10, 1, 0, 0, 0, settat)
		p, _ := NewBoard(NewRoom(night, 1)).Pin("GPIO27")
		wait := func(timeout time.Duration) chan bool {
			done := make(chan bool, 1)
			go func() { done <- p.WaitForEdge(timeout) }()
			synctest.Wait()
			return done
		}
		ended := func(what string, done chan bool) {
			t.Helper()
			synctest.Wait()
			select {
			case edge := <-done:
				if edge {
					t.Errorf("%s: says edge", what)
				}
			default:
				t.Errorf("%s: still waiting", what)
			}
		}
		ended("before In", wait(-1))
		if err := p.In(gpio.PullUp, 9); err == nil {
			t.Errorf("edge 9 accepted")
		}
		p.In(gpio.PullUp, gpio.NoEdge)
		ended("no edge wanted", wait(-1))
		p.In(gpio.PullUp, gpio.BothEdges)
		ended("timeout 0", wait(0))
		done := wait(time.Second)
		select {
		case <-done:
			t.Errorf("did not wait")
		default:
		}
		time.Sleep(time.Second)
		ended("timeout", done)
		done = wait(-1)
		time.Sleep(time.Hour)
		p.Halt()
		ended("Halt", done)
		ended("after Halt", wait(-1))
		p.Halt()
		p.In(gpio.PullUp, gpio.BothEdges)
		done = wait(-1)
		p.In(gpio.PullUp, gpio.FallingEdge)
		ended("In", done)
		if !p.WaitForEdge(12*time.Hour) || p.Read() != gpio.Low {
			t.Errorf("no falling edge in a morning")
		}
		if p.Pull() != gpio.PullNoChange || p.DefaultPull() != gpio.PullNoChange || p.String() != "GPIO27" {
			t.Errorf("pulls or name")
		}
	})
}

// The count is the integral of the room's flow, however it is read.
func TestPulses(t *testing.T) {
	for _, speed := range []float64{1, 60} {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			room := NewRoom(lectureTime, speed)
			b := NewBoard(room)
			often, _ := b.Pulses("GPIO22")
			once, _ := b.Pulses("GPIO22")
			litres := 0.0 // by our time
			var edges uint64
			var before time.Duration // last edge
			for range int(2 * 3600 / speed * 4) {
				time.Sleep(time.Second / 8)
				flow := room.At(room.Now()).Flow
				time.Sleep(time.Second / 8)
				litres += flow / 60 / 4
				n, lost, first, last, err := often.Read()
				if n < edges || lost != 0 || err != nil {
					t.Fatalf("%d edges after %d, %d lost, %v", n, edges, lost, err)
				}
				if (n == edges) != (first == 0) || (n == edges) != (last == 0) {
					t.Fatalf("%d new edges, first %v, last %v", n-edges, first, last)
				}
				if n > edges {
					now := time.Since(began)
					if first > last || first <= before || last > now+time.Microsecond || first < now-time.Second/4-time.Microsecond*2 {
						t.Fatalf("edges from %v to %v after %v at %v", first, last, before, now)
					}
					if flow > 0 && n-edges > 2 { // 7.5 Hz at 1 L/min
						within(t, "Hz", float64(n-edges-1)/(last-first).Seconds(), flow*7.5, 0.01)
					}
					before = last
				}
				edges = n
			}
			if n, _, _, _, _ := once.Read(); n != edges {
				t.Errorf("%d edges at once, %d little by little", n, edges)
			}
			if edges < 50 {
				t.Errorf("%d edges", edges)
			}
			within(t, "edges", float64(edges), litres*450, litres*450*0.03*speed)
			t.Logf("%d edges, %.1f L", edges, litres)
		})
	}
}
