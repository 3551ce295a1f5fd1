package drivers

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"
)

// sensirionCRC is the checksum of one word on Sensirion's chips: polynomial
// 0x31, first 0xff, not reflected (SHT4x §4.4). Of 0xbeef it is 0x92.
func sensirionCRC(word uint16) byte {
	crc := byte(0xff)
	for _, b := range []byte{byte(word >> 8), byte(word)} {
		crc ^= b
		for range 8 {
			carry := crc >> 7
			crc = crc<<1 ^ carry*0x31
		}
	}
	return crc
}

// words asks a Sensirion chip for n words: it writes the command, waits as long
// as the chip takes, and reads 16 bits, high byte first, and a checksum for each.
func (c *chip) words(ctx context.Context, step string, command []byte, wait time.Duration, n int) ([]uint16, error) {
	if err := c.tx(step, command, nil); err != nil {
		return nil, err
	}
	if err := sleep(ctx, wait); err != nil {
		return nil, c.errorf(step, err)
	}
	r := make([]byte, 3*n)
	if err := c.tx(step, nil, r); err != nil {
		return nil, err
	}
	words := make([]uint16, n)
	for i := range words {
		words[i] = binary.BigEndian.Uint16(r[3*i:])
		if want := sensirionCRC(words[i]); r[3*i+2] != want {
			return nil, c.errorf(step, fmt.Errorf("%w: word %d of % x", ErrCRC, i+1, r))
		}
	}
	return words, nil
}
