package buffer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// A block on disk, format 1; integers are little endian:
//
//	 0  "gwb"    magic
//	 3  1 byte   format
//	 4  1 byte   0: the body as the codec wrote it; 1: zstd
//	 5  3 bytes  zero
//	 8  8 bytes  sequence number of the first record
//	16  4 bytes  number of records
//	20  4 bytes  length of the body before compression
//	24  4 bytes  CRC-32C of all the other bytes
//	28           the body
//
// The key in bbolt is the first sequence number, big endian. It stands inside
// too: bbolt checks no value, and a misplaced page would otherwise pass for
// another block.
const (
	blockMagic  = "gwb"
	blockFormat = 1
	blockHeader = 28
	crcAt       = 24

	bodyPlain = 0
	bodyZstd  = 1

	// maxBlock records: enough to compress well, little enough to decode at once.
	maxBlock = 1000
	maxBody  = 16 << 20 // before compression; what a damaged length may make us allocate
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errDamaged is a block that is not what was written.
var errDamaged = errors.New("damaged block")

// errNewer is a block that is whole, and that another version of the program has
// written. It is kept: that version may come back.
var errNewer = errors.New("written by another version of this program")

// The compressor keeps state worth reusing, the decompressor too; one of each,
// with a small window, is what a Pi can spare. EncodeAll and DecodeAll may run
// concurrently.
var zstdTools = sync.OnceValues(func() (*zstd.Encoder, *zstd.Decoder) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(64<<10),
		zstd.WithEncoderCRC(false)) // the block has its own, over all of it
	if err != nil {
		panic(err) // the options above are constants
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(maxBody))
	if err != nil {
		panic(err)
	}
	return enc, dec
})

// packBlock is the block of rs, the first of which has sequence number first.
func packBlock[R any](codec Codec[R], first uint64, rs []R) ([]byte, error) {
	body, err := codec.Append(nil, rs)
	if err != nil {
		return nil, fmt.Errorf("pack %d records: %w", len(rs), err)
	}
	if len(body) > maxBody {
		return nil, fmt.Errorf("pack %d records: %d bytes are too many for a block", len(rs), len(body))
	}
	enc, _ := zstdTools()
	b := make([]byte, blockHeader, blockHeader+len(body))
	copy(b, blockMagic)
	b[3] = blockFormat
	binary.LittleEndian.PutUint64(b[8:], first)
	binary.LittleEndian.PutUint32(b[16:], uint32(len(rs)))
	binary.LittleEndian.PutUint32(b[20:], uint32(len(body)))
	if packed := enc.EncodeAll(body, b); len(packed)-blockHeader < len(body) {
		b, b[4] = packed, bodyZstd
		packed[4] = bodyZstd
	} else {
		b = append(b[:blockHeader], body...)
	}
	binary.LittleEndian.PutUint32(b[crcAt:], blockCRC(b))
	return b, nil
}

func blockCRC(b []byte) uint32 {
	crc := crc32.Update(0, castagnoli, b[:crcAt])
	return crc32.Update(crc, castagnoli, b[crcAt+4:])
}

// blockInfo is what a block says of itself.
type blockInfo struct {
	first uint64
	count int
	size  int // on disk
}

func (i blockInfo) end() uint64 { return i.first + uint64(i.count) }

// readHeader checks the header alone, under the key it was found at.
func readHeader(key, b []byte) (blockInfo, error) {
	if len(key) != 8 || len(b) < blockHeader || string(b[:3]) != blockMagic {
		return blockInfo{}, fmt.Errorf("%w: not a block", errDamaged)
	}
	if b[3] != blockFormat {
		if blockCRC(b) == binary.LittleEndian.Uint32(b[crcAt:]) {
			return blockInfo{}, fmt.Errorf("%w: a block of format %d, this one reads %d", errNewer, b[3], blockFormat)
		}
		return blockInfo{}, fmt.Errorf("%w: unknown format", errDamaged)
	}
	i := blockInfo{binary.LittleEndian.Uint64(b[8:]), int(binary.LittleEndian.Uint32(b[16:]) & 0x7fffffff), len(b)}
	if i.first != binary.BigEndian.Uint64(key) || i.count < 1 || i.count > maxBlock || i.first+maxBlock < i.first {
		return blockInfo{}, fmt.Errorf("%w: the header does not fit the key", errDamaged)
	}
	return i, nil
}

// unpackBlock checks all of a block and returns its records.
func unpackBlock[R any](codec Codec[R], key, b []byte) (blockInfo, []R, error) {
	i, err := readHeader(key, b)
	if err != nil {
		return i, nil, err
	}
	if blockCRC(b) != binary.LittleEndian.Uint32(b[crcAt:]) {
		return i, nil, fmt.Errorf("%w: checksum mismatch", errDamaged)
	}
	body, length := b[blockHeader:], int(binary.LittleEndian.Uint32(b[20:])&0x7fffffff)
	switch b[4] {
	case bodyZstd:
		if length > maxBody {
			return i, nil, fmt.Errorf("%w: too long", errDamaged)
		}
		_, dec := zstdTools()
		if body, err = dec.DecodeAll(body, make([]byte, 0, length)); err != nil {
			return i, nil, fmt.Errorf("%w: %w", errDamaged, err)
		}
	case bodyPlain:
	default:
		return i, nil, fmt.Errorf("%w: compression %d", errDamaged, b[4])
	}
	if len(body) != length {
		return i, nil, fmt.Errorf("%w: wrong length", errDamaged)
	}
	rs, err := codec.Decode(body, i.count)
	if err != nil { // what the checksum has passed is what was written
		return i, nil, fmt.Errorf("%w: %w", errNewer, err)
	}
	if len(rs) != i.count {
		return i, nil, fmt.Errorf("%w: %d records instead of %d", errDamaged, len(rs), i.count)
	}
	return i, rs, nil
}
