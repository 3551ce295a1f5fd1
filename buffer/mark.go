package buffer

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
)

// mark is what a log remembers beside its segments, in a small file of its own:
// how far it has come and where its uplinks stand. It is written after each
// commit and not flushed, so what the disk has of it is never ahead of the
// segments: a log that ends before its mark has lost something, be it that its
// newest page did not survive, or that somebody has put an old copy back. It
// also keeps the cursors when the segment that had them is damaged.
type mark struct {
	Writes     uint64            `json:"writes"`     // of the file: which slot is the newer
	Generation uint32            `json:"generation"` // how often the log has been opened
	End        uint64            `json:"end"`        // the sequence number that came next
	Floor      uint64            `json:"floor"`      // before it, nothing is kept any more
	Cursors    map[string]uint64 `json:"cursors"`

	file *os.File // nil: there is none, or it cannot be written
}

const (
	markName = "mark"
	markSlot = 4096 // length, CRC-32C, JSON
)

// readMark reads the newer of a folder's two slots that is whole. A missing or
// damaged mark is an empty one.
func readMark(dir string) mark {
	b, err := os.ReadFile(filepath.Join(dir, markName))
	if err != nil {
		return mark{}
	}
	return parseMark(b)
}

func parseMark(b []byte) (m mark) {
	for turn := range 2 {
		if len(b) < turn*markSlot+8 {
			break
		}
		s := b[turn*markSlot:]
		n := binary.LittleEndian.Uint32(s)
		if n > markSlot-8 || int(n) > len(s)-8 || crc32.Checksum(s[8:8+n], castagnoli) != binary.LittleEndian.Uint32(s[4:]) {
			continue
		}
		var got mark
		if json.Unmarshal(s[8:8+n], &got) != nil {
			continue
		}
		if got.Writes > m.Writes {
			m = got
		}
	}
	return m
}

// begin opens the file to write and makes a new generation durable.
func (m *mark) begin(dir string, generation uint32) error {
	f, err := os.OpenFile(filepath.Join(dir, markName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	m.file, m.Generation = f, generation
	return errors.Join(m.write(), f.Sync(), syncDir(dir))
}

// write writes the next slot, not flushed.
func (m *mark) write() error {
	if m.file == nil {
		return nil
	}
	m.Writes++
	b, err := json.Marshal(m)
	if err != nil || len(b) > markSlot-8 {
		return err // more uplinks than fit: then there is no mark
	}
	s := make([]byte, 8, markSlot)
	binary.LittleEndian.PutUint32(s, uint32(len(b)))
	binary.LittleEndian.PutUint32(s[4:], crc32.Checksum(b, castagnoli))
	s = append(s, b...)
	_, err = m.file.WriteAt(s, int64(m.Writes%2)*markSlot)
	return err
}

func (m *mark) close() error {
	if m.file == nil {
		return nil
	}
	err := m.file.Close()
	m.file = nil
	return err
}
