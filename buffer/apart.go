package buffer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// verdict is what a process that inspects a file says.
type verdict struct {
	Report     *Report `json:"report,omitempty"`
	Damage     string  `json:"damage,omitempty"`
	Unreadable string  `json:"unreadable,omitempty"`
}

// InspectFor inspects a file and writes what it found to w, for the process that
// has started this one with Apart.
func InspectFor(w io.Writer, path string) error {
	r, err := Inspect(path, false)
	v := verdict{Report: r}
	if errors.Is(err, ErrUnreadable) {
		v.Unreadable = err.Error()
	} else if err != nil {
		v.Damage = err.Error()
	}
	return json.NewEncoder(w).Encode(v)
}

// Apart returns an Options.Verify that inspects a file in a process of its own:
// command with the file's path as its last argument, which calls InspectFor. A
// process that does not end in time, or ends otherwise, means damage.
func Apart(command ...string) func(path string) (*Report, error) {
	return func(path string) (*Report, error) {
		i, err := os.Stat(path)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUnreadable, err)
		}
		// Of a worn card 4 MiB/s is slow; of a damaged file more time says no more.
		limit := 3*time.Second + time.Duration(i.Size()>>22)*time.Second
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		cmd := exec.CommandContext(ctx, command[0], append(command[1:len(command):len(command)], path)...)
		var out, says bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &says
		cmd.WaitDelay = time.Second
		err = cmd.Run()
		var exit *exec.ExitError
		switch {
		case ctx.Err() != nil:
			return nil, fmt.Errorf("the look at it did not end within %v", limit)
		case errors.As(err, &exit):
			if s, ok := exit.Sys().(syscall.WaitStatus); ok && s.Signaled() && s.Signal() == syscall.SIGKILL {
				return Inspect(path, true) // not its own doing: the system was short of memory, or is stopping
			}
			line, _, _ := bytes.Cut(says.Bytes(), []byte("\n"))
			return nil, fmt.Errorf("the look at it ended with: %s (%w)", line, err)
		case err != nil: // it was not started
			return Inspect(path, true)
		}
		var v verdict
		if err := json.Unmarshal(out.Bytes(), &v); err != nil {
			return nil, fmt.Errorf("%w: the look at it says %.100q", ErrUnreadable, out.Bytes())
		}
		switch {
		case v.Unreadable != "":
			return nil, fmt.Errorf("%w: %s", ErrUnreadable, v.Unreadable)
		case v.Report == nil:
			return nil, errors.New(v.Damage)
		}
		return v.Report, nil
	}
}
