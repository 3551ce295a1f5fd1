package sim

// Registers is the register file of a chip with 8 bit registers: the first byte
// written is the register's number, further ones are stored from there on, and
// reads run on from the last number. It is a Chip by itself; the hooks make a
// certain chip of it, and each may be nil.
type Registers struct {
	Bytes [256]byte
	Pairs bool // a write is register, value, register, value (BMx280), not register, value, value

	Before func()           // before each transaction: brings Bytes up to date
	Write  func(at, v byte) // in place of storing v
	After  func(at byte)    // after a byte was read

	at byte
}

// Tx is a transaction of the chip.
func (x *Registers) Tx(w, r []byte) error {
	if x.Before != nil {
		x.Before()
	}
	if len(w) > 0 {
		x.at = w[0]
		w = w[1:]
	}
	for i, v := range w {
		switch {
		case x.Pairs && i%2 == 1:
			x.at = v
			continue
		case x.Write != nil:
			x.Write(x.at, v)
		default:
			x.Bytes[x.at] = v
		}
		if !x.Pairs {
			x.at++
		}
	}
	if x.Before != nil && len(w) > 0 {
		x.Before() // what was written may show at once
	}
	for i := range r {
		r[i] = x.Bytes[x.at]
		if x.After != nil {
			x.After(x.at)
		}
		x.at++
	}
	return nil
}
