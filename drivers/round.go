package drivers

import "math"

// round keeps a value to so many decimals, where the chip resolves no more:
// short decimal numbers pack well in the log and read well at the broker.
func round(v float64, decimals int) float64 {
	p := math.Pow10(decimals)
	return math.Round(v*p) / p
}
