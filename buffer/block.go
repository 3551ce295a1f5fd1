package buffer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// A block on disk, format 2; integers are little endian:
//
//	 0  "gwb"    magic
//	 3  1 byte   format
//	 4  1 byte   0: the body as the codec wrote it; 1: zstd
//	 5  3 bytes  generation: how often the log had been opened when it was written
//	 8  8 bytes  sequence number of the first record
//	16  4 bytes  number of records
//	20  4 bytes  sequence numbers it stands for: more than records once it is thinned
//	24  4 bytes  length of the body
//	28  4 bytes  CRC-32C of all the other bytes
//	32           the body
//
// The key in bbolt is the first sequence number, big endian. It stands inside
// too: bbolt checks no value, and a misplaced page would otherwise pass for
// another block. With its length inside, a block can be found in a file whose
// pages say nothing any more; the generation tells which of two is the later.
const (
	blockMagic  = "gwb"
	blockFormat = 2
	blockHeader = 32
	crcAt       = 28

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
		zstd.WithEncoderLevel(zstd.SpeedFastest), // columns of small differences gain little from more
		zstd.WithEncoderCRC(false))               // the block has its own, over all of it
	if err != nil {
		panic(err) // the options above are constants
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(maxBody))
	if err != nil {
		panic(err)
	}
	return enc, dec
})

// bodies are made, and decompressed, in turn in the same memory.
var bodies = sync.Pool{New: func() any { return new([]byte) }}

// blockInfo is what a block says of itself, and where it lies.
type blockInfo struct {
	first uint64
	count uint32
	span  uint32 // sequence numbers it stands for, at least count
	size  uint32 // on disk
	gen   uint32
	near  bool // it lies at the top of its segment
}

// end is the sequence number after the block's last record. Those from there to
// cover have been thinned away.
func (i blockInfo) end() uint64   { return i.first + uint64(i.count) }
func (i blockInfo) cover() uint64 { return i.first + uint64(i.span) }

// pack appends the block of rs to dst. Of i, first, span and gen are given; the
// rest is returned with it.
func pack[R any](dst []byte, codec Codec[R], i blockInfo, rs []R) ([]byte, blockInfo, error) {
	at := len(dst)
	var header [blockHeader]byte
	dst = append(dst, header[:]...)
	plain := bodies.Get().(*[]byte)
	defer bodies.Put(plain)
	body, err := codec.Append((*plain)[:0], rs)
	if err != nil {
		return nil, i, fmt.Errorf("pack %d records: %w", len(rs), err)
	}
	if len(body) > maxBody {
		return nil, i, fmt.Errorf("pack %d records: %d bytes are too many for a block", len(rs), len(body))
	}
	*plain = body
	enc, _ := zstdTools()
	how := byte(bodyZstd)
	if dst = enc.EncodeAll(body, dst); len(dst)-at-blockHeader >= len(body) {
		how, dst = bodyPlain, append(dst[:at+blockHeader], body...)
	}
	i.count, i.size = uint32(len(rs)), uint32(len(dst)-at)
	i.span = max(i.span, i.count)
	b := dst[at:]
	copy(b, blockMagic)
	b[3], b[4] = blockFormat, how
	b[5], b[6], b[7] = byte(i.gen), byte(i.gen>>8), byte(i.gen>>16)
	binary.LittleEndian.PutUint64(b[8:], i.first)
	binary.LittleEndian.PutUint32(b[16:], i.count)
	binary.LittleEndian.PutUint32(b[20:], i.span)
	binary.LittleEndian.PutUint32(b[24:], uint32(len(b)-blockHeader))
	binary.LittleEndian.PutUint32(b[crcAt:], blockCRC(b))
	return dst, i, nil
}

func blockCRC(b []byte) uint32 {
	crc := crc32.Update(0, castagnoli, b[:crcAt])
	return crc32.Update(crc, castagnoli, b[crcAt+4:])
}

// parseBlock reads and checks the block that b begins with, which may be
// followed by anything. The records stay packed.
func parseBlock(b []byte) (blockInfo, error) {
	if len(b) < blockHeader || string(b[:3]) != blockMagic {
		return blockInfo{}, fmt.Errorf("%w: not a block", errDamaged)
	}
	length := binary.LittleEndian.Uint32(b[24:])
	i := blockInfo{
		first: binary.LittleEndian.Uint64(b[8:]),
		count: binary.LittleEndian.Uint32(b[16:]),
		span:  binary.LittleEndian.Uint32(b[20:]),
		gen:   uint32(b[5]) | uint32(b[6])<<8 | uint32(b[7])<<16,
	}
	switch {
	case b[3] != blockFormat && blockCRC(b) == binary.LittleEndian.Uint32(b[crcAt:]):
		return i, fmt.Errorf("%w: a block of format %d, this one reads %d", errNewer, b[3], blockFormat)
	case b[3] != blockFormat:
		return i, fmt.Errorf("%w: unknown format", errDamaged)
	case uint64(length) > uint64(len(b)-blockHeader):
		return i, fmt.Errorf("%w: cut off", errDamaged)
	case i.first == 0, i.count < 1, i.count > maxBlock, i.span < i.count, i.cover() < i.first:
		return i, fmt.Errorf("%w: impossible numbers", errDamaged)
	}
	i.size = blockHeader + length
	if planted != plantedNoCRC && blockCRC(b[:i.size]) != binary.LittleEndian.Uint32(b[crcAt:]) {
		return i, fmt.Errorf("%w: checksum mismatch", errDamaged)
	}
	return i, nil
}

// parseValue is parseBlock of a value of bbolt, in the bucket key.
func parseValue(key, b []byte) (blockInfo, error) {
	i, err := parseBlock(b)
	if err == nil && (len(key) != 8 || i.first != binary.BigEndian.Uint64(key) || int(i.size) != len(b)) {
		err = fmt.Errorf("%w: it does not fit its key", errDamaged)
	}
	return i, err
}

// unpack checks all of a block and returns its records.
func unpack[R any](codec Codec[R], b []byte) (blockInfo, []R, error) {
	i, err := parseBlock(b)
	if err != nil {
		return i, nil, err
	}
	body := b[blockHeader:i.size]
	switch b[4] {
	case bodyZstd:
		_, dec := zstdTools()
		plain := bodies.Get().(*[]byte)
		defer bodies.Put(plain) // what the codec has decoded is a copy
		if body, err = dec.DecodeAll(body, (*plain)[:0]); err != nil {
			return i, nil, fmt.Errorf("%w: %w", errDamaged, err)
		}
		*plain = body
	case bodyPlain:
	default:
		return i, nil, fmt.Errorf("%w: compression %d", errNewer, b[4])
	}
	rs, err := codec.Decode(body, int(i.count))
	if err != nil { // what the checksum has passed is what was written
		return i, nil, fmt.Errorf("%w: %w", errNewer, err)
	}
	if len(rs) != int(i.count) {
		return i, nil, fmt.Errorf("%w: %d records instead of %d", errDamaged, len(rs), i.count)
	}
	return i, rs, nil
}
