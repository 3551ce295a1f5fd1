//go:build linux

package systemd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
)

// bus starts a real message bus of our own and points the program at it.
func bus(t *testing.T) (address string) {
	t.Helper()
	if _, err := exec.LookPath("dbus-daemon"); err != nil {
		t.Skip("dbus-daemon is not installed")
	}
	dir := t.TempDir()
	address = "unix:path=" + filepath.Join(dir, "bus")
	config := filepath.Join(dir, "bus.conf")
	if err := os.WriteFile(config, []byte(fmt.Sprintf(`<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><listen>%s</listen><policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>`, address)), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("dbus-daemon", "--config-file="+config, "--nofork", "--print-address")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if _, err := out.Read(make([]byte, 200)); err != nil { // it listens
		t.Fatal(err)
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
	return address
}

// timedate answers as systemd-timedated does.
type timedate struct{ value any }

func (d timedate) Get(face, name string) (dbus.Variant, *dbus.Error) {
	if face != "org.freedesktop.timedate1" || name != "NTPSynchronized" {
		return dbus.Variant{}, dbus.MakeFailedError(fmt.Errorf("no %s of %s", name, face))
	}
	return dbus.MakeVariant(d.value), nil
}

func TestTimedate(t *testing.T) {
	address := bus(t)
	if err := Timedate(t.Context()); err == nil || !strings.Contains(err.Error(), "timedate1: ") {
		t.Errorf("nobody has the name: %v", err)
	}
	for _, value := range []any{true, false, "yes"} {
		c, err := dbus.Connect(address)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Export(timedate{value}, "/org/freedesktop/timedate1", "org.freedesktop.DBus.Properties"); err != nil {
			t.Fatal(err)
		}
		if _, err := c.RequestName("org.freedesktop.timedate1", dbus.NameFlagDoNotQueue); err != nil {
			t.Fatal(err)
		}
		err = Timedate(t.Context())
		if value == true && err != nil || value != true && !errors.Is(err, errNotSynced) {
			t.Errorf("%v: %v", value, err)
		}
		c.Close()
	}
}

// No bus, one that says nothing, and one that hangs up.
func TestTimedateNoBus(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "bus")
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+socket)
	if err := Timedate(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no bus: %v", err)
	}
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	accepted := make(chan net.Conn, 2)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	begun := time.Now()
	if err := Timedate(ctx); err == nil || time.Since(begun) > 5*time.Second {
		t.Errorf("a silent bus: %v after %v", err, time.Since(begun))
	}
	(<-accepted).Close()
	go func() { (<-accepted).Close() }()
	if err := Timedate(t.Context()); err == nil {
		t.Error("a bus that hangs up says yes")
	}
}

func TestTimesyncd(t *testing.T) {
	_, err := os.Stat(syncedFile)
	if got := Timesyncd(t.Context()); (got == nil) != (err == nil) {
		t.Errorf("%v, and the file: %v", got, err)
	}
}
