package buffer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// The buckets of a segment.
var (
	bucketMeta    = []byte("meta")    // "format": 1 byte
	bucketBlocks  = []byte("blocks")  // first sequence number, big endian → block
	bucketCursors = []byte("cursors") // uplink → sequence number, big endian
	bucketRejects = []byte("rejects") // running number, big endian → JSON
)

const segmentFormat = 1

// segment is one bbolt file of the log.
type segment struct {
	path   string
	db     *bolt.DB
	blocks []blockInfo // in order
	lost   uint64      // records of blocks passed over at opening, as far as the gaps tell
}

func segmentName(first uint64) string { return fmt.Sprintf("log-%020d.db", first) }

func boltOptions() *bolt.Options {
	return &bolt.Options{
		Timeout:    time.Second, // for another process to let go of the file; the default is for ever
		NoGrowSync: false,
		// The freelist is kept on disk (the default): without it a damaged page
		// ends the process at Open, in a goroutine of bbolt's own.
		FreelistType: bolt.FreelistMapType,
	}
}

// createSegment makes a file with its buckets. bbolt is not crash-safe while it
// makes a file, and does not sync the folder: so it is made under another name,
// closed, renamed, and the folder synced.
func createSegment(dir string, first uint64) (*segment, error) {
	path := filepath.Join(dir, segmentName(first))
	tmp := path + ".tmp"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	db, err := bolt.Open(tmp, 0o600, boltOptions())
	if err != nil {
		return nil, err
	}
	err = db.Update(func(tx *bolt.Tx) error {
		for _, name := range [][]byte{bucketMeta, bucketBlocks, bucketCursors, bucketRejects} {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		return tx.Bucket(bucketMeta).Put([]byte("format"), []byte{segmentFormat})
	})
	if err = errors.Join(err, db.Close()); err != nil {
		return nil, err
	}
	if err := os.Rename(tmp, path); err != nil {
		return nil, err
	}
	if err := syncDir(dir); err != nil {
		return nil, err
	}
	return openSegment(path)
}

// errNotOurs is a file that is no segment of a log, or a damaged one.
var errNotOurs = errors.New("not a segment of the log, or damaged")

// openSegment opens a file and reads the headers of its blocks. Damage of any
// kind is errNotOurs, never a panic: bbolt panics on bad pages, and a truncated
// file faults in its memory map.
func openSegment(path string) (s *segment, err error) {
	if i, err := os.Stat(path); err != nil {
		return nil, err
	} else if i.Size() < 4*4096 {
		return nil, fmt.Errorf("%w: %d bytes", errNotOurs, i.Size()) // bbolt would make a new one of an empty file
	}
	err = guard(func() error {
		db, err := bolt.Open(path, 0o600, boltOptions())
		if err != nil {
			return err
		}
		db.AllocSize = 1 << 20 // the default of 16 MiB would waste the log's size
		s = &segment{path: path, db: db}
		return nil
	})
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return nil, fmt.Errorf("%s is in use: another gateway runs on this folder; stop it (systemctl stop gateway), or give this one a folder of its own", path)
	case ofTheSystem(err):
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("%w: %w", errNotOurs, err)
	}
	err = s.view(func(tx *bolt.Tx) error {
		for _, name := range [][]byte{bucketMeta, bucketBlocks, bucketCursors, bucketRejects} {
			if tx.Bucket(name) == nil {
				return fmt.Errorf("%w: no bucket %s", errNotOurs, name)
			}
		}
		if f := tx.Bucket(bucketMeta).Get([]byte("format")); len(f) != 1 || f[0] != segmentFormat {
			return fmt.Errorf("%w: format %x, this program reads %d", errNotOurs, f, segmentFormat)
		}
		c, bad := tx.Bucket(bucketBlocks).Cursor(), 0
		for k, v := c.First(); k != nil; k, v = c.Next() {
			i, err := readHeader(k, v)
			if errors.Is(err, errNewer) {
				return err
			}
			// A commit that failed and yet landed may overlap with its repetition.
			if err != nil || i.first < s.start() || i.end() <= s.end() {
				bad++
				continue
			}
			if bad > 0 && len(s.blocks) > 0 && i.first > s.end() {
				s.lost, bad = s.lost+i.first-s.end(), 0
			}
			s.blocks = append(s.blocks, i)
		}
		s.lost += uint64(bad) // at the ends: at least one record each
		return nil
	})
	if err != nil {
		_ = guard(s.db.Close)
		return nil, fmt.Errorf("%w: %w", errNotOurs, err)
	}
	return s, nil
}

// view reads under guard.
func (s *segment) view(f func(*bolt.Tx) error) error {
	return guard(func() error { return s.db.View(f) })
}

// update writes under guard: bbolt rolls the transaction back when it panics.
func (s *segment) update(f func(*bolt.Tx) error) error {
	return guard(func() error { return s.db.Update(f) })
}

// guard turns panics and memory faults over a damaged file into errors.
func guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", errDamaged, p)
		}
	}()
	return f()
}

// ofTheSystem tells trouble of the system, which says nothing of the file: a file
// that is whole must not be set aside for it.
func ofTheSystem(err error) bool {
	for _, e := range []error{fs.ErrPermission, syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOSPC, syscall.EROFS} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// start is the sequence number of the last block's first record, 0 if there is none.
func (s *segment) start() uint64 {
	if len(s.blocks) == 0 {
		return 0
	}
	return s.blocks[len(s.blocks)-1].first
}

// end is the sequence number after the segment's last block, 0 if it has none.
func (s *segment) end() uint64 {
	if len(s.blocks) == 0 {
		return 0
	}
	return s.blocks[len(s.blocks)-1].end()
}

func (s *segment) size() int64 {
	i, err := os.Stat(s.path)
	if err != nil {
		return 0
	}
	return i.Size()
}

// remove closes and deletes the file.
func (s *segment) remove() error {
	return errors.Join(guard(s.db.Close), os.Remove(s.path), syncDir(filepath.Dir(s.path)))
}

// setAside renames a file that cannot be used; it is never deleted.
func setAside(path string) (string, error) {
	aside := path + ".damaged-" + time.Now().UTC().Format("20060102T150405.000Z")
	return aside, errors.Join(os.Rename(path, aside), syncDir(filepath.Dir(path)))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func seqKey(seq uint64) []byte { return binary.BigEndian.AppendUint64(nil, seq) }
