package ngsi

import (
	"testing"

	"campus-gateway"
)

// TestHost: what is known of chip and machine is in their Devices, and nothing
// of what is not.
func TestHost(t *testing.T) {
	v := newValidator(t)
	bare := NewMapper("gw", []Thing{
		{Name: "s", Quantities: []gateway.Quantity{gateway.CO2}, Firmware: "2.1", Serial: "0x1A2B"},
		{Name: "plain", Quantities: []gateway.Quantity{gateway.CO2}},
	})
	full := bare.On(Host{Software: "v1.2.3", OS: "Debian GNU/Linux 13 (trixie)", Serial: "10000000abcdef"})
	plain, sensor := bare.things["plain"].device(noon), full.things["s"].device(noon)
	for _, c := range []struct {
		e    *Entity
		want map[string]any
	}{
		{&full.self, map[string]any{"softwareVersion": "v1.2.3", "osVersion": "Debian GNU/Linux 13 (trixie)", "serialNumber": "10000000abcdef", "firmwareVersion": nil}},
		{&bare.self, map[string]any{"softwareVersion": nil, "osVersion": nil, "serialNumber": nil}},
		{&sensor, map[string]any{"firmwareVersion": "2.1", "serialNumber": "0x1A2B", "dateLastValueReported": "2026-11-23T09:15:00.123Z"}},
		{&plain, map[string]any{"firmwareVersion": nil, "serialNumber": nil}},
	} {
		got := v.check(t, c.e)
		for name, want := range c.want {
			if got[name] != want {
				t.Errorf("%s: %s is %v, want %v", c.e.ID, name, got[name], want)
			}
		}
	}
}
