package main

import (
	"bytes"
	"errors"
	"regexp"
	"testing"
)

func TestLogger(t *testing.T) {
	for _, c := range []struct{ journal, want string }{
		{"8:1", `^<4>sensor gone  again sensor=room why="a\\nb"\n<6>fine uplink=x a=1\n$`},
		{"", `^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d WARN  sensor gone  again sensor=room why="a\\nb"\n\S+ \S+ INFO  fine uplink=x a=1\n$`},
	} {
		t.Setenv("JOURNAL_STREAM", c.journal)
		var b bytes.Buffer
		log := newLogger(&b)
		log.Debug("never")
		log.Warn("sensor gone\r\nagain", "sensor", "room", "why", errors.New("a\nb"))
		log.With("uplink", "x").Info("fine", "a", 1)
		if !regexp.MustCompile(c.want).MatchString(b.String()) {
			t.Errorf("%q does not match %s", b.String(), c.want)
		}
	}
}
