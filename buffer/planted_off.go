//go:build !planted

package buffer

// planted is the bug this build has: none. See planted_on.go.
const planted = ""
