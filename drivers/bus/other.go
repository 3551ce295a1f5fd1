//go:build !linux

package bus

import (
	"errors"

	"periph.io/x/conn/v3/gpio"
)

var errLinux = errors.New("sensors can be attached on Linux only")

func openI2C(int) (*I2C, error) { return nil, errLinux }

func openCounter(string, CounterOpts) (Counter, error) { return nil, errLinux }

func (*Host) openPin(string) (gpio.PinIn, error) { return nil, errLinux }
