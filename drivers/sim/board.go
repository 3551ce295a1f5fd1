// Package sim is a laboratory room and a board full of sensors in it: a day
// with its lectures, its weather and its tap as a function of time, and chips
// that answer for it register by register, with their state machines, their
// conversion times and their refusals, each from its datasheet. The demo reads
// it with the real drivers, the tests too, and so can who has no hardware.
//
// The room's day runs as fast as one likes; chips and buses keep our time. Both
// take it from package time, so testing/synctest governs them.
package sim

import (
	"fmt"
	"math"
	"time"

	"periph.io/x/conn/v3/gpio"
	"periph.io/x/conn/v3/i2c"
)

// Board is a Pi in the room with what is attached to it:
//
//	i2c-1    0x23 BH1750, 0x44 SHT4x, 0x48 ADS1115 (A0: the soil probe, see
//	         SoilVolts; A1: half of a 5 V supply; A2: a photoresistor; A3: ground),
//	         0x62 SCD41, 0x76 BME280
//	GPIO17   PIR: high while it sees motion
//	GPIO27   reed contact of the door: high while it stands open
//	GPIO22   water-flow meter: 450 pulses a litre
//
// i2c-0 and i2c-2 to i2c-9 have the same chips, in other corners of the room. Safe
// for concurrent use.
type Board struct {
	Bus *Bus // i2c-1: for its faults

	room  *Room
	buses map[string]*Bus
	pins  map[string]*Pin
}

const waterMeter = "GPIO22"

// NewBoard returns a board that has been under power for a while.
func NewBoard(room *Room) *Board {
	b := &Board{room: room, buses: map[string]*Bus{}, pins: map[string]*Pin{
		"GPIO17": {room: room, name: "GPIO17", number: 17, line: motion},
		"GPIO27": {room: room, name: "GPIO27", number: 27, line: door},
	}}
	for n := range 10 {
		bus := NewBus(fmt.Sprintf("i2c-%d", n))
		attach(bus, room, 10*uint64((n+9)%10)) // i2c-1 is the first
		b.buses[bus.String()] = bus
	}
	b.Bus = b.buses["i2c-1"]
	return b
}

// attach attaches the chips, each in a corner of its own.
func attach(bus *Bus, room *Room, corner uint64) {
	bus.Attach(0x76, NewBME280(room.Air(corner+1)))
	bus.Attach(0x44, NewSHT4x(room.Air(corner+2)))
	bus.Attach(0x62, NewSCD41(room.Air(corner+3)))
	bus.Attach(0x23, NewBH1750(room.Air(corner+4)))
	air := room.Air(corner + 5)
	bus.Attach(0x48, NewADS1115([4]Volts{
		func(t time.Time) float64 { return SoilVolts(air(t).Soil) },
		func(t time.Time) float64 { return 2.5 + 0.001*drift(1000, t.UnixMilli(), 10*second) },
		func(t time.Time) float64 { return photoresistor(air(t).Illuminance) },
	}))
}

// I2C is the bus of that name, the same each time.
func (b *Board) I2C(name string) (i2c.BusCloser, error) {
	bus := b.buses[name]
	if bus == nil {
		return nil, fmt.Errorf("sim: no bus %s: the simulated board has i2c-0 to i2c-9", name)
	}
	return bus, nil
}

// Pin is the input line of that name, the same each time.
func (b *Board) Pin(name string) (gpio.PinIn, error) {
	p := b.pins[name]
	if p == nil {
		return nil, fmt.Errorf("sim: no line %s to read: the simulated board has GPIO17 (motion) and GPIO27 (door)", name)
	}
	return p, nil
}

// Pulses is a counter on the line of that name, counting from now.
func (b *Board) Pulses(name string) (*Pulses, error) {
	if name != waterMeter {
		return nil, fmt.Errorf("sim: no pulses on line %s: the simulated board has them on %s (water)", name, waterMeter)
	}
	return &Pulses{room: b.room, at: b.room.Now().UnixMilli()}, nil
}

// SoilVolts is what the capacitive soil probe (v1.2) gives at a moisture in %:
// 2.8 V in dry air down to 1.2 V in water.
func SoilVolts(moisture float64) float64 { return 2.8 - 1.6*moisture/100 }

// photoresistor is the voltage over 10 kΩ below a GL5528 (15 kΩ at 10 lx, gamma
// 0.7) at 3.3 V.
func photoresistor(lux float64) float64 {
	const dark = 1e6
	ohm := dark
	if lux > 0 {
		ohm = min(dark, 15e3*math.Pow(lux/10, -0.7))
	}
	return 3.3 * 10e3 / (10e3 + ohm)
}
