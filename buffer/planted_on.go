//go:build planted

package buffer

import "os"

// planted is the bug that this build has, one of planted.go.
var planted = os.Getenv("PLANTED")
