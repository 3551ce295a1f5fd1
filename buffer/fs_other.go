//go:build !linux

package buffer

import "errors"

func volatileFS(string) string { return "" }

func freeSpace(string) (int64, error) { return 0, errors.ErrUnsupported }
