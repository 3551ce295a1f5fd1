//go:build unix

package buffer

import (
	"errors"
	"os"
	"syscall"
)

// tryLock locks a file for this process, alone or with others that share it,
// until it is closed. It does not wait: errInUse is somebody else's lock.
func tryLock(f *os.File, alone bool) error {
	how := syscall.LOCK_SH
	if alone {
		how = syscall.LOCK_EX
	}
	err := syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return errInUse
	}
	return err
}
