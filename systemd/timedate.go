package systemd

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/godbus/dbus/v5"
)

// syncedFile is touched by systemd-timesyncd once it has set the clock from the
// network in this boot. The kernel's adjtimex would know too, but a service with
// ProtectClock may not ask it.
const syncedFile = "/run/systemd/timesync/synchronized"

var errNotSynced = errors.New("the clock is not synchronized")

// Timesyncd returns nil once systemd-timesyncd has set the machine's clock, or why
// that is not known.
func Timesyncd(context.Context) error {
	if _, err := os.Stat(syncedFile); err != nil {
		return fmt.Errorf("timesyncd: %w", err)
	}
	return nil
}

// Timedate returns nil if the kernel calls the machine's clock synchronized,
// whoever keeps it (chrony, ntpd), or why that is not known. It asks
// systemd-timedated over the system's D-Bus, which starts it for that.
func Timedate(ctx context.Context) error {
	c, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return fmt.Errorf("timedate1: %w", err)
	}
	defer c.Close()
	var v dbus.Variant
	err = c.Object("org.freedesktop.timedate1", "/org/freedesktop/timedate1").
		CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", 0, "org.freedesktop.timedate1", "NTPSynchronized").Store(&v)
	if err != nil {
		return fmt.Errorf("timedate1: %w", err)
	}
	if synced, ok := v.Value().(bool); !ok || !synced {
		return fmt.Errorf("timedate1: %w", errNotSynced)
	}
	return nil
}
