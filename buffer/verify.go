package buffer

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	bolt "go.etcd.io/bbolt"
)

// Report is what a whole file of a log holds.
type Report struct {
	Blocks  [][6]uint64       `json:"blocks"`  // first, records, sequence numbers, bytes, generation, 1: at the top
	Cursors map[string]uint64 `json:"cursors"` // uplink → sequence number of the first record not acknowledged
	After   uint64            `json:"after"`   // where the segment before it had ended; 0: not known
	End     uint64            `json:"end"`     // the sequence number that comes next
	Level   int               `json:"level"`   // how often it was thinned
	Rejects uint64            `json:"rejects"` // the running number after the last reject; 0: none
}

// ErrUnreadable wraps an error that says nothing about a file: it could not be
// looked at.
var ErrUnreadable = errors.New("cannot be verified")

// Inspect verifies a file of a log, whole: that its pages hang together and that
// every block is what was written. It changes nothing. An error that is not
// ErrUnreadable means that the file is damaged, or none of a log.
//
// bbolt may panic in a goroutine of its own over a damaged file, or never
// return: so call it in a process that may end, and with a deadline. With here
// set it is called in the process of a log: then it leaves out what nobody could
// catch.
func Inspect(path string, here bool) (*Report, error) {
	if i, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreadable, err)
	} else if i.Size() < 4*pageSize {
		return nil, fmt.Errorf("%d bytes are too few", i.Size()) // bbolt would make a new one of an empty file
	}
	if err := readAhead(path); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	r := &Report{Cursors: map[string]uint64{}}
	err := guard(func() error {
		db, err := bolt.Open(path, 0o600, boltOptions(true))
		if err != nil {
			return err
		}
		defer db.Close()
		return db.View(func(tx *bolt.Tx) error {
			if !here {
				for err := range tx.Check() {
					return err // the rest of them is not awaited: the process ends
				}
			}
			return r.read(tx)
		})
	})
	if ofTheSystem(err) {
		return nil, fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

// readAhead brings a file into the system's cache: read in one go it comes several
// times faster than page by page. What cannot be read is seen later.
func readAhead(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for err == nil {
		_, err = f.Read(buf)
	}
	return nil
}

func (r *Report) read(tx *bolt.Tx) error {
	for _, name := range buckets {
		if tx.Bucket(name) == nil {
			return fmt.Errorf("no bucket %s", name)
		}
	}
	meta := tx.Bucket(bucketMeta)
	if f := meta.Get([]byte("format")); len(f) != 1 || f[0] != segmentFormat {
		return fmt.Errorf("format %x, this program reads %d", f, segmentFormat)
	}
	if v := meta.Get([]byte("end")); len(v) == 8 {
		r.End = binary.BigEndian.Uint64(v)
	}
	if v := meta.Get([]byte("after")); len(v) == 8 {
		r.After = binary.BigEndian.Uint64(v)
	}
	if v := meta.Get([]byte("level")); len(v) == 1 {
		r.Level = int(v[0])
	}
	last := uint64(0)
	read := func(h holder, key []byte, near uint64) error {
		if len(key) != 8 {
			return fmt.Errorf("a block named %x", key)
		}
		i, err := parseValue(key, getBlock(h, seqOf(key)))
		if err != nil {
			return fmt.Errorf("block %x: %w", key, err)
		}
		if i.first < last {
			return fmt.Errorf("block %x: overlaps with the one before", key)
		}
		last = i.cover()
		r.Blocks = append(r.Blocks, [6]uint64{i.first, uint64(i.count), uint64(i.span), uint64(i.size), uint64(i.gen), near})
		return nil
	}
	blocks := tx.Bucket(bucketBlocks)
	if err := blocks.ForEach(func(k, _ []byte) error { return read(blocks, k, 0) }); err != nil {
		return err
	}
	if err := tx.ForEach(func(k []byte, _ *bolt.Bucket) error {
		if slices.ContainsFunc(buckets, func(name []byte) bool { return bytes.Equal(name, k) }) {
			return nil
		}
		return read(tx, k, 1)
	}); err != nil {
		return err
	}
	if last > r.End {
		return fmt.Errorf("blocks to %d, but an end of %d", last, r.End)
	}
	if k, _ := tx.Bucket(bucketRejects).Cursor().Last(); len(k) == 8 {
		r.Rejects = binary.BigEndian.Uint64(k) + 1
	}
	return tx.Bucket(bucketCursors).ForEach(func(k, v []byte) error {
		if len(v) != 8 {
			return fmt.Errorf("cursor %q of %d bytes", k, len(v))
		}
		r.Cursors[string(k)] = binary.BigEndian.Uint64(v)
		return nil
	})
}

// segment is the file that the report is of.
func (r *Report) segment(path string) *segment {
	s := &segment{path: path, after: r.After, end: r.End, level: r.Level}
	for _, b := range r.Blocks {
		s.blocks = append(s.blocks, blockInfo{b[0], uint32(b[1]), uint32(b[2]), uint32(b[3]), uint32(b[4]), b[5] == 1})
	}
	return s
}

// found is a whole block in a file that may be damaged.
type found struct {
	blockInfo
	at int64
}

// scan looks for whole blocks in a file of any state, by their magic and their
// checksum, and returns those to deliver, in order. Pages that bbolt has let go
// of hold older versions of blocks, and blocks that were long acknowledged: of
// two that overlap the later is taken, and what an earlier generation wrote
// beyond the beginning of a later one was never acknowledged to anybody.
// torn is the number of sequence numbers that damaged blocks after the last
// whole one say they had.
func scan(r io.ReaderAt, size int64) (blocks []found, torn uint64) {
	var all []found
	hurt := map[uint64]uint64{} // of a damaged block: first → after its last
	// A window that moves by half its size holds every block of up to that half;
	// longer ones are read when their header says so. Much in a foreign file may
	// look like headers: what is spent on those that are none is bounded.
	const half = 1 << 20
	buf := make([]byte, 2*half)
	spent := int64(0)
	for at := int64(0); at < size; at += half {
		n := readAround(r, buf[:min(2*half, size-at)], at)
		for i := 0; i < min(n, half) && spent < 64*half+16*size; {
			k := bytes.Index(buf[i:n], []byte(blockMagic))
			if k < 0 || i+k >= half {
				break
			}
			i += k
			b := buf[i:n]
			length := int64(blockHeader)
			if len(b) >= blockHeader {
				length += int64(binary.LittleEndian.Uint32(b[24:]))
				if length > int64(len(b)) && length <= maxBody && at+int64(i)+length <= size {
					b = make([]byte, length)
					readAround(r, b, at+int64(i))
				}
			}
			info, err := parseBlock(b)
			if err != nil {
				if info.first > 0 && info.count > 0 && info.count <= maxBlock && info.span >= info.count {
					hurt[info.first] = max(hurt[info.first], info.cover())
				}
				spent += min(length, int64(len(b)))
				i++
				continue
			}
			all = append(all, found{info, at + int64(i)})
			i += int(info.size)
		}
	}
	slices.SortFunc(all, func(a, b found) int {
		return cmp.Or(cmp.Compare(b.gen, a.gen), cmp.Compare(b.end(), a.end()), cmp.Compare(b.first, a.first))
	})
	begin, next := uint64(1<<63), uint64(1<<63) // of this generation, and of those after it
	for k, b := range all {
		if k > 0 && b.gen != all[k-1].gen {
			next = begin
		}
		begin = min(begin, b.first)
		if b.end() > next {
			continue
		}
		// What it comes between, it must not overlap with.
		at, _ := slices.BinarySearchFunc(blocks, b.first, func(f found, first uint64) int { return cmp.Compare(f.first, first) })
		if at < len(blocks) && blocks[at].first < b.cover() || at > 0 && blocks[at-1].cover() > b.first {
			continue
		}
		blocks = slices.Insert(blocks, at, b)
	}
	if len(blocks) > 0 {
		end := blocks[len(blocks)-1].cover()
		for hurt[end] > end {
			torn += hurt[end] - end
			end = hurt[end]
		}
	}
	return blocks, torn
}

// readAround reads what can be read: a page on a bad spot of the disk is zeros.
func readAround(r io.ReaderAt, b []byte, at int64) int {
	n, err := r.ReadAt(b, at)
	if err == nil || errors.Is(err, io.EOF) {
		return n
	}
	for page := range slices.Chunk(b, pageSize) {
		if _, err := r.ReadAt(page, at); err != nil {
			clear(page)
		}
		at += int64(len(page))
	}
	return len(b)
}

func scanFile(path string) (blocks []found, torn uint64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	i, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	blocks, torn = scan(f, i.Size())
	return blocks, torn, nil
}

// read returns the bytes of a block that was found.
func (b found) read(f *os.File) ([]byte, error) {
	v := make([]byte, b.size)
	if _, err := f.ReadAt(v, b.at); err != nil {
		return nil, err
	}
	_, err := parseBlock(v)
	return v, err
}
