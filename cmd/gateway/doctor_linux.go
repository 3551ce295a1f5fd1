package main

import (
	"io/fs"
	"syscall"
)

// diskSpace is what an ordinary user may still write, and the size.
func diskSpace(path string) (free, size int64, err error) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(path, &s); err != nil {
		return 0, 0, err
	}
	return int64(s.Bavail) * int64(s.Bsize), int64(s.Blocks) * int64(s.Bsize), nil
}

// groupOf is the group that a file belongs to.
func groupOf(i fs.FileInfo) (gid uint32, known bool) {
	s, ok := i.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return s.Gid, true
}
