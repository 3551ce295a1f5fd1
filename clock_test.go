package gateway

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestClock(t *testing.T) {
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

func TestClockCountsOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &Clock{boot: "b", uptime: time.Minute, start: time.Now(), synced: func() bool { return true }}
		time.Sleep(time.Hour)
		if s := c.Stamp(); s.Since != time.Hour+time.Minute || !s.Synced || s.Boot != "b" {
			t.Errorf("%+v", s)
		}
	})
}
