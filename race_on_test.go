//go:build race

package gateway

const raceEnabled = true // all is ten times slower
