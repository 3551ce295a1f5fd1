package buffer

// The bugs that a build with the tag planted can have, for the test of the tests:
// each family of tests must fail with its bug (make planted).
const (
	plantedEarlyAck = "ack-before-commit" // Put returns before the commit
	plantedNoCRC    = "skip-crc"          // a block's checksum is not looked at
	plantedNewest   = "drop-newest"       // a full log forgets what came last
)
