// Package quiet silences the standard library's logger before other packages are
// initialized that write to it: periph's GPIO driver, which tells its callers
// anyway, and the metrics library, which tells every command on a Pi that its
// kernel has no pressure figures (PSI, off there unless asked for).
//
// It is the first of the two to be initialized: among packages whose imports are,
// the order is that of their paths (Go specification, "Package initialization"),
// and this one imports no more than that one does.
package quiet

import (
	"io"
	"log"
)

func init() { log.SetOutput(io.Discard) }
