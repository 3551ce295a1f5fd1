//go:build !planted

package gateway

// planted is the bug this build has: none. See planted_on.go.
const planted = ""
