//go:build !windows

package main

import (
	"context"
	"io"
	"os"
)

// managed runs the program. Only Windows' service manager wants more of a
// program than signals tell it.
func managed(ctx context.Context, execute func(context.Context, io.Writer) int) int {
	return execute(ctx, os.Stderr)
}
