//go:build !linux

package main

import (
	"errors"
	"io/fs"
)

// diskSpace is looked at on Linux only.
func diskSpace(string) (free, size int64, err error) { return 0, 0, errors.ErrUnsupported }

// groupOf is looked at on Linux only.
func groupOf(fs.FileInfo) (gid uint32, known bool) { return 0, false }
