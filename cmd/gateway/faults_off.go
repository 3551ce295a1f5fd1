//go:build !faults || windows

package main

// hang is called by the main loop each time it turns: nothing. See faults_on.go.
func hang() {}
