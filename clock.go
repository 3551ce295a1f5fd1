package gateway

import (
	"os"
	"strconv"
	"strings"
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
}

// Clock makes stamps. It is safe for concurrent use.
type Clock struct {
	boot   BootID
	uptime time.Duration // at start
	start  time.Time     // with Go's monotonic reading
	synced func() bool
}

// syncedFile is made by systemd-timesyncd once the clock has been set from the
// network. adjtimex would know too, but our unit's ProtectClock forbids it.
const syncedFile = "/run/systemd/timesync/synchronized"

// NewClock reads the machine's boot id and uptime. Where the system has
// neither (not Linux), the boot is the program's own start.
func NewClock() *Clock {
	c := &Clock{start: time.Now(), synced: func() bool { _, err := os.Stat(syncedFile); return err == nil }}
	if b, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		c.boot = BootID(strings.TrimSpace(string(b)))
	} else {
		c.boot = BootID("start-" + strconv.FormatInt(c.start.UnixNano(), 36))
	}
	if b, err := os.ReadFile("/proc/uptime"); err == nil {
		first, _, _ := strings.Cut(string(b), " ")
		if s, err := strconv.ParseFloat(first, 64); err == nil {
			c.uptime = time.Duration(s * float64(time.Second))
		}
	}
	return c
}

// Stamp is the present instant.
func (c *Clock) Stamp() Stamp {
	now := time.Now()
	return Stamp{Wall: now.Round(0).UTC(), Boot: c.boot, Since: c.uptime + now.Sub(c.start), Synced: c.synced()}
}
