package bus

import (
	"fmt"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// linux/i2c-dev.h
const (
	i2cRetries = 0x0701
	i2cTimeout = 0x0702 // in units of 10 ms
	i2cRdwr    = 0x0707
	i2cMsgRead = 0x0001 // linux/i2c.h: I2C_M_RD
)

// i2cMsg is struct i2c_msg.
type i2cMsg struct {
	addr, flags, len uint16
	buf              unsafe.Pointer
}

// i2cRdwrData is struct i2c_rdwr_ioctl_data.
type i2cRdwrData struct {
	msgs unsafe.Pointer
	n    uint32
}

// device is an open /dev/i2c-N. Only its bus's worker uses it. What the kernel
// is given lies in it, on the heap, and is turned into a number only in the
// call's own expression, so that nothing can move in between.
type device struct {
	file *os.File
	msgs [2]i2cMsg
	rdwr i2cRdwrData
}

const sysI2C = "/sys/bus/i2c/devices"

func openI2C(number int) (*I2C, error) {
	name := fmt.Sprintf("i2c-%d", number)
	f, err := os.OpenFile("/dev/"+name, os.O_RDWR, 0)
	if err != nil {
		return nil, explainI2C("/dev", sysI2C, name, err)
	}
	// Not all adapters have these: then the kernel's defaults (1 s, 0 or 1) hold.
	_ = unix.IoctlSetInt(int(f.Fd()), i2cTimeout, int(i2cDeadline/2/(10*time.Millisecond)))
	_ = unix.IoctlSetInt(int(f.Fd()), i2cRetries, 0)
	d := &device{file: f}
	return newI2C(number, sysI2C, i2cDeadline, d.tx, func() { f.Close() }), nil
}

func (d *device) tx(addr uint16, w, r []byte) error {
	n := uint32(0)
	if len(w) > 0 {
		d.msgs[n] = i2cMsg{addr: addr, len: uint16(len(w)), buf: unsafe.Pointer(&w[0])}
		n++
	}
	if len(r) > 0 {
		d.msgs[n] = i2cMsg{addr: addr, flags: i2cMsgRead, len: uint16(len(r)), buf: unsafe.Pointer(&r[0])}
		n++
	}
	d.rdwr = i2cRdwrData{msgs: unsafe.Pointer(&d.msgs), n: n}
	fd := d.file.Fd()
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, i2cRdwr, uintptr(unsafe.Pointer(&d.rdwr)))
		runtime.KeepAlive(w)
		runtime.KeepAlive(r)
		runtime.KeepAlive(d)
		switch errno {
		case 0:
			d.msgs = [2]i2cMsg{} // let go of the buffers
			return nil
		case unix.EINTR:
			continue
		}
		return errno
	}
}
