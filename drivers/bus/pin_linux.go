package bus

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
	"periph.io/x/conn/v3/driver/driverreg"
	"periph.io/x/host/v3/gpioioctl"
)

// initPeriph lets gpioioctl look for the GPIO chips, once in the program's life.
// The other drivers of periph's host are not linked in: those for the Pi guess
// addresses on a Pi 5, and register pins over the kernel's own lines.
var initPeriph = sync.OnceValue(func() error {
	_, err := driverreg.Init()
	holdFile0()
	return err
})

// PrepareGPIO lets the look for GPIO chips happen now. To be called before the
// program opens files of its own: where a chip has two names, as on a Pi 5,
// gpioioctl (GPIOChip.Close, v3.8.5) closes the chip's file twice, and the second
// time it might be somebody else's. What is wrong Pin tells.
func PrepareGPIO() { _ = initPeriph() }

// holdFile0 makes up for gpioioctl closing file 0 where a chip has two names, as
// on a Pi 5 (GPIOChip.Close, v3.8.5). Else a line's file could become 0, which
// gpioioctl takes for none.
func holdFile0() {
	if fd, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0); err == nil && fd != 0 {
		_ = unix.Close(fd)
	}
}

// openPin takes the line from gpioioctl's chips, not from gpioreg, where another
// driver may have registered a pin of that name. As the line has been found
// before, gpioioctl has nothing to complain of in the standard log.
func openPin(name string, at line) (*pin, error) {
	if err := initPeriph(); err != nil {
		return nil, fmt.Errorf("%s: look for GPIO chips: %w", name, err)
	}
	for _, c := range gpioioctl.Chips {
		if path, err := filepath.EvalSymlinks(c.Path()); err != nil || path != at.chip {
			continue
		}
		if l := c.ByNumber(int(at.offset)); l != nil {
			return newPin(l, at), nil
		}
	}
	return nil, fmt.Errorf("%s: its chip %s was not there when GPIO was looked for: start this program again", name, at.chip)
}
