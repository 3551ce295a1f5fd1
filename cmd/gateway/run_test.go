package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A changed file is read once it has been left alone; what is wrong with it, or
// can only be applied by a restart, is said once.
func TestReloadOnChange(t *testing.T) {
	file := filepath.Join(t.TempDir(), "gateway.yaml")
	at := time.Now()
	write := func(text string) {
		at = at.Add(time.Second) // a disk's clock is coarse, and real
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(file, at, at); err != nil {
			t.Fatal(err)
		}
	}
	write(good)
	c, err := loadConfig(file)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		var log syncBuffer
		var refused error
		r := &reloader{file: file, current: c, hup: make(chan os.Signal), next: make(chan *config), refused: func(err error) { refused = err }, log: newLogger(&log)}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- r.Run(ctx) }()
		next := func(within time.Duration) *config {
			select {
			case c := <-r.next:
				return c
			case <-time.After(within):
				return nil
			}
		}
		if c := next(time.Minute); c != nil {
			t.Error("nothing has changed, and it is read again")
		}
		write(good + "gateway2: {}\n")
		if c := next(time.Minute); c != nil || strings.Count(log.String(), "refused") != 1 || refused == nil {
			t.Errorf("a bad file: %v, %s", c, log.String())
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		if c := next(time.Minute); c != nil || strings.Count(log.String(), "\n") != 1 {
			t.Errorf("no file: %v, %s", c, log.String())
		}
		time.Sleep(lookEvery / 2) // between two looks
		for range 5 {             // somebody writes for a while
			write(good + "log: {window: 5s}\n" + strings.Repeat("#", at.Second()))
			if c := next(lookEvery); c != nil {
				t.Error("read while it was being written")
			}
		}
		got := next(2 * lookEvery)
		if refused != nil {
			t.Errorf("still refused: %v", refused)
		}
		if got == nil || got.Log != c.Log || strings.Count(log.String(), "at the next restart") != 1 {
			t.Errorf("%+v, %s", got, log.String())
		}
		if c := next(time.Minute); c != nil {
			t.Error("read twice")
		}

		// A file that an uplink waits for, and that comes, is as good as a change.
		token := filepath.Join(t.TempDir(), "token")
		write(strings.Replace(good, "url:", fmt.Sprintf("auth: {token_file: %q}, url:", token), 1))
		if c := next(time.Minute); c == nil || c.whole() == nil {
			t.Errorf("%+v", c)
		}
		if c := next(time.Hour); c != nil {
			t.Error("the token has not come, and it is read again")
		}
		for _, text := range []string{" ", "canary"} {
			if err := os.WriteFile(token, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			c := next(2 * askEvery)
			if c == nil || (c.whole() == nil) != (text == "canary") {
				t.Errorf("%q: %+v", text, c)
			}
		}
		if c := next(time.Hour); c != nil {
			t.Error("read again though nothing has come")
		}

		// Who may read it is a part of the file, too: it may be this user, now.
		if err := os.Chmod(file, 0o640); err != nil {
			t.Fatal(err)
		}
		if c := next(3 * lookEvery); c == nil {
			t.Error("it may be read by others, and is not read")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
