//go:build planted

package gateway

import "os"

// planted is the bug that this build has, for the test of the tests, which must
// fail with it (make planted): wall-clock-order dates a reading by the wall clock
// as it was, whatever is known of its boot; send-unasked sends again what the broker
// may hold, without asking; overtake lets a new reading pass its entity's backlog.
var planted = os.Getenv("PLANTED")
