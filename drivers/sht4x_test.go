package drivers

import (
	"testing"
	"time"

	"campus-gateway"

	"periph.io/x/conn/v3/i2c/i2ctest"
)

func TestSHT4x(t *testing.T) {
	serial := []i2ctest.IO{{Addr: 0x44, W: []byte{0x89}}, {Addr: 0x44, R: []byte{0xbe, 0xef, 0x92, 0x01, 0x90, 0x4c}}}
	play(t, "sht4x", `{}`, append(serial[:2:2],
		i2ctest.IO{Addr: 0x44, W: []byte{0xfd}}, i2ctest.IO{Addr: 0x44, R: []byte{0x66, 0x66, 0x93, 0x80, 0x00, 0xa2}}),
		gateway.Value{Quantity: gateway.Temperature, V: 25.0}, gateway.Value{Quantity: gateway.Humidity, V: 56.5})
	play(t, "sht4x", `{precision: low}`, append(serial[:2:2],
		i2ctest.IO{Addr: 0x44, W: []byte{0xe0}}, i2ctest.IO{Addr: 0x44, R: []byte{0x00, 0x00, 0x81, 0xff, 0xff, 0xac}}),
		gateway.Value{Quantity: gateway.Temperature, V: -45.0}, gateway.Value{Quantity: gateway.Humidity, V: 100.0})
	play(t, "sht4x", `{precision: medium}`, append(serial[:2:2],
		i2ctest.IO{Addr: 0x44, W: []byte{0xf6}}, i2ctest.IO{Addr: 0x44, R: []byte{0xff, 0xff, 0xac, 0x00, 0x00, 0x81}}),
		gateway.Value{Quantity: gateway.Temperature, V: 130.0}, gateway.Value{Quantity: gateway.Humidity, V: 0.0})
}

func TestSHT4xOptions(t *testing.T) {
	wantFaults(t, "sht4x", map[string]string{`{}`: "", `{precision: medium}`: "", `{precision: ultra}`: "precision"})
}

func TestSHT4xNoise(t *testing.T) {
	bounds := map[gateway.Quantity][2]float64{gateway.Temperature: {-45, 130}, gateway.Humidity: {0, 100}}
	withstandNoise(t, "sht4x", `{}`, false, bounds)
	withstandNoise(t, "sht4x", `{}`, true, bounds)
}

func TestSHT4xCancel(t *testing.T) {
	expectCancel(t, "sht4x", `{}`, 5*time.Millisecond, bench{bus: &tape{failAt: -1, ops: []i2ctest.IO{
		{Addr: 0x44, W: []byte{0x89}}, {Addr: 0x44, R: []byte{0xbe, 0xef, 0x92, 0x01, 0x90, 0x4c}},
		{Addr: 0x44, W: []byte{0xfd}},
	}}})
}
