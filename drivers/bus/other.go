//go:build !linux

package bus

import "errors"

var errLinux = errors.New("sensors can be attached on Linux only")

func openI2C(int) (*I2C, error) { return nil, errLinux }

func openCounter(string, CounterOpts) (Counter, error) { return nil, errLinux }

func findLine(string) (line, error) { return line{}, errLinux }

func openPin(string, line) (*pin, error) { return nil, errLinux }

func lineUser(line) string { return "another program uses the line" }

// PrepareGPIO has nothing to do.
func PrepareGPIO() {}
