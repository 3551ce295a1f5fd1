// Package systemd speaks with the service manager: readiness, status and
// stopping (sd_notify(3)).
package systemd

import (
	"fmt"
	"net"
	"os"
	"strings"
)

// States of sd_notify(3).
const (
	Ready    = "READY=1"
	Stopping = "STOPPING=1"
	Alive    = "WATCHDOG=1" // the watchdog of the unit is content for WatchdogSec=
)

// Managed reports whether a service manager has started the program and listens.
func Managed() bool { return os.Getenv("NOTIFY_SOCKET") != "" }

// Notify sends states to the service manager, among them "STATUS=" and a line
// for people. Without a manager that listens (NOTIFY_SOCKET unset) it does
// nothing.
func Notify(states ...string) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"}) // a leading @ is an abstract name, to Go too
	if err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	defer c.Close()
	for i, s := range states {
		states[i] = strings.ReplaceAll(s, "\n", " ") // a line is a state: a text must not smuggle one in
	}
	if _, err := c.Write([]byte(strings.Join(states, "\n"))); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	return nil
}
