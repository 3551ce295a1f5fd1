package buffer

import "syscall"

// volatileFS names the file system of a folder if a power cut empties it.
func volatileFS(dir string) string {
	var s syscall.Statfs_t
	if syscall.Statfs(dir, &s) != nil {
		return ""
	}
	switch uint32(s.Type) { // linux/magic.h
	case 0x01021994:
		return "tmpfs"
	case 0x858458f6:
		return "ramfs"
	case 0x794c7630: // whose upper layer is in memory on a Pi with a read-only root
		return "overlay"
	}
	return ""
}

// freeSpace is what an ordinary user may still write to a folder's disk, in bytes.
func freeSpace(dir string) (int64, error) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		return 0, err
	}
	return int64(s.Bavail) * int64(s.Bsize), nil
}
