//go:build race

package ngsi

func init() { raceDetector = true }
