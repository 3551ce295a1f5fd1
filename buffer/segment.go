package buffer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// The buckets of a segment. Besides them each block has a bucket of its own, named
// by its first sequence number, big endian, with the block under blockKey: a page,
// or some in a row, that no other block shares. New ones lie at the top, where they
// cost a commit no more than that page, the top's and the meta page; when many have
// come they move into "blocks", all at once and without being copied.
var (
	bucketMeta    = []byte("meta")    // "format", "level": 1 byte; "after", "end": sequence numbers
	bucketBlocks  = []byte("blocks")  // blocks
	bucketCursors = []byte("cursors") // uplink → sequence number, big endian
	bucketRejects = []byte("rejects") // running number, big endian → JSON

	buckets  = [][]byte{bucketMeta, bucketBlocks, bucketCursors, bucketRejects}
	blockKey = []byte("b")
)

const (
	segmentFormat = 2
	pageSize      = 4096
	maxTail       = pageSize - 16 - 16 - 1 // a block that fills one page
	allocSize     = 64 << 10               // by which bbolt grows a file; commits make room before (see room)
	maxNear       = 48                     // blocks at the top: what fits into its page
)

// holder is what has blocks: a transaction (the top), or its bucket of blocks.
type holder interface {
	Bucket(name []byte) *bolt.Bucket
	CreateBucketIfNotExists(name []byte) (*bolt.Bucket, error)
	DeleteBucket(name []byte) error
}

func holderOf(tx *bolt.Tx, i blockInfo) holder {
	if i.near {
		return tx
	}
	return tx.Bucket(bucketBlocks)
}

func putBlock(h holder, first uint64, block []byte) error {
	b, err := h.CreateBucketIfNotExists(seqKey(first))
	if err != nil {
		return err
	}
	return b.Put(blockKey, block)
}

func getBlock(h holder, first uint64) []byte {
	b := h.Bucket(seqKey(first))
	if b == nil {
		return nil
	}
	return b.Get(blockKey)
}

// segment is one bbolt file of the log. Only the last of a log is written to.
type segment struct {
	path   string
	blocks []blockInfo // in order
	after  uint64      // where the segment before it had ended; 0: not known
	end    uint64      // the sequence number that came next at its last commit
	level  int         // how often it was thinned

	writable bool
	keep     bool // damage was seen: set it aside rather than delete it; guarded by the log's mu

	mu   sync.RWMutex // guards what follows
	db   *bolt.DB     // nil: not open
	read int64        // bytes, since it was opened
}

func segmentName(first uint64) string { return fmt.Sprintf("log-%020d.db", first) }

func boltOptions(readOnly bool) *bolt.Options {
	return &bolt.Options{
		Timeout:  time.Second, // for another process to let go of the file; the default is for ever
		ReadOnly: readOnly,
		PageSize: pageSize,
		// A freelist on disk would cost a page with every commit, and after a long
		// backlog many. Without it bbolt walks the pages when it opens a file to
		// write, where damage ends the process: so a file is verified before.
		NoFreelistSync: true,
		FreelistType:   bolt.FreelistMapType,
		NoStatistics:   false, // the count of free pages is needed
	}
}

// builder makes a segment. bbolt is not crash-safe while it makes a file, and does
// not sync the folder: so a file is made under another name, closed, renamed, and
// the folder synced.
type builder struct {
	path   string
	db     *bolt.DB
	blocks []blockInfo
	after  uint64
	end    uint64
	level  int
}

func newBuilder(dir string, first uint64) (*builder, error) {
	b := &builder{path: filepath.Join(dir, segmentName(first))}
	tmp := b.path + ".tmp"
	if err := ignoreMissing(os.Remove(tmp)); err != nil {
		return nil, err
	}
	err := guard(func() (err error) {
		if b.db, err = bolt.Open(tmp, 0o600, boltOptions(false)); err != nil {
			return err
		}
		b.db.AllocSize = allocSize
		b.db.NoSync = true // until it is whole
		return b.db.Update(func(tx *bolt.Tx) error {
			for _, name := range buckets {
				if _, err := tx.CreateBucket(name); err != nil {
					return err
				}
			}
			return tx.Bucket(bucketMeta).Put([]byte("format"), []byte{segmentFormat})
		})
	})
	if err != nil {
		b.abandon()
		return nil, fmt.Errorf("make %s: %w", filepath.Base(tmp), err)
	}
	return b, nil
}

// add appends blocks.
func (b *builder) add(infos []blockInfo, blocks [][]byte) error {
	err := b.db.Update(func(tx *bolt.Tx) error {
		bucket := tx.Bucket(bucketBlocks)
		bucket.FillPercent = 1 // keys only ever rise
		for k, i := range infos {
			if err := putBlock(bucket, i.first, blocks[k]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, i := range infos {
		i.near = false
		b.blocks = append(b.blocks, i)
	}
	b.end = b.blocks[len(b.blocks)-1].cover()
	return nil
}

// finish makes the segment durable, its name excepted.
func (b *builder) finish(cursors map[string]uint64) error {
	err := b.db.Update(func(tx *bolt.Tx) error {
		meta := tx.Bucket(bucketMeta)
		err := errors.Join(meta.Put([]byte("after"), seqKey(b.after)), meta.Put([]byte("end"), seqKey(b.end)), meta.Put([]byte("level"), []byte{byte(b.level)}))
		for name, pos := range cursors {
			err = errors.Join(err, tx.Bucket(bucketCursors).Put([]byte(name), seqKey(pos)))
		}
		return err
	})
	if err == nil {
		err = b.db.Sync()
	}
	err = errors.Join(err, b.db.Close())
	b.db = nil
	return err
}

// place gives it its name, in place of a file that has it, and makes that durable.
func (b *builder) place() (*segment, error) {
	if err := os.Rename(b.path+".tmp", b.path); err != nil {
		return nil, err
	}
	return &segment{path: b.path, blocks: b.blocks, after: b.after, end: b.end, level: b.level}, syncDir(filepath.Dir(b.path))
}

// abandon throws it away.
func (b *builder) abandon() {
	if b.db != nil {
		_ = guard(b.db.Close)
	}
	_ = os.Remove(b.path + ".tmp")
}

// createSegment makes an empty segment to write to, from first on. The one before
// it has ended at after.
func createSegment(dir string, after, first uint64) (*segment, error) {
	b, err := newBuilder(dir, first)
	if err != nil {
		return nil, err
	}
	b.after, b.end = after, first
	if err := b.finish(nil); err != nil {
		b.abandon()
		return nil, err
	}
	s, err := b.place()
	if err != nil {
		return nil, err
	}
	s.writable = true
	return s, nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// use opens the file if it is not open, and calls f.
func (s *segment) use(f func(*bolt.DB) error) error {
	s.mu.RLock()
	for s.db == nil { // another reader may close it right away
		s.mu.RUnlock()
		if err := s.open(); err != nil {
			return err
		}
		s.mu.RLock()
	}
	defer s.mu.RUnlock()
	return guard(func() error { return f(s.db) })
}

func (s *segment) open() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.db != nil {
		return nil
	}
	err := guard(func() error {
		db, err := bolt.Open(s.path, 0o600, boltOptions(!s.writable))
		if err != nil {
			return err
		}
		db.AllocSize = allocSize
		s.db, s.read = db, 0
		return nil
	})
	if errors.Is(err, berrors.ErrTimeout) {
		return fmt.Errorf("%s is in use by another process", s.path)
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", filepath.Base(s.path), err)
	}
	return nil
}

func (s *segment) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.db == nil {
		return nil
	}
	db := s.db
	s.db = nil
	return guard(db.Close)
}

// keepMapped is how much is read of a file that is only read before it is closed
// and opened again: what has been read stays in the process's memory until then.
const keepMapped = 1 << 20

// block returns a copy of a block, not checked.
func (s *segment) block(i blockInfo) (b []byte, err error) {
	err = s.use(func(db *bolt.DB) error {
		return db.View(func(tx *bolt.Tx) error {
			v := getBlock(holderOf(tx, i), i.first)
			if v == nil {
				return fmt.Errorf("%w: it is gone", errDamaged)
			}
			b = append(b, v...)
			return nil
		})
	})
	if s.writable {
		return b, err
	}
	s.mu.Lock()
	s.read += int64(len(b))
	enough := s.read > keepMapped
	s.mu.Unlock()
	if enough {
		err = errors.Join(err, s.close())
	}
	return b, err
}

// shortage is by how much the file must grow before n bytes more are written, in
// steps. What a commit writes beyond the end of a file costs the file system a
// journal entry each time, so a file grows by a step of zeros, ahead.
func (s *segment) shortage(n, step int64) (int64, error) {
	var used, free int64
	err := s.use(func(db *bolt.DB) error {
		st := db.Stats()
		free = int64(st.FreePageN+st.PendingPageN) * pageSize
		return db.View(func(tx *bolt.Tx) error {
			used = tx.Size()
			return nil
		})
	})
	if err != nil || used+n <= s.size() || free >= 4*n {
		return 0, err
	}
	return (used + n - s.size() + step - 1) / step * step, nil
}

// extend grows the file by zeros, durably.
func (s *segment) extend(by int64) error {
	f, err := os.OpenFile(s.path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(make([]byte, by), s.size())
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// start is the sequence number of the first block's first record, else its end.
func (s *segment) start() uint64 {
	if len(s.blocks) == 0 {
		return s.end
	}
	return s.blocks[0].first
}

// drained is how many of its blocks lie wholly before seq.
func (s *segment) drained(seq uint64) int {
	n := 0
	for n < len(s.blocks) && s.blocks[n].cover() <= seq {
		n++
	}
	return n
}

func (s *segment) size() int64 {
	i, err := os.Stat(s.path)
	if err != nil {
		return 0
	}
	return i.Size()
}

// remove closes and deletes the file, or sets it aside if damage was seen in it.
func (s *segment) remove() error {
	err := s.close()
	if s.keep {
		_, aside := setAside(s.path)
		return errors.Join(err, aside)
	}
	return errors.Join(err, ignoreMissing(os.Remove(s.path)), syncDir(filepath.Dir(s.path)))
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
	for _, e := range []error{fs.ErrPermission, fs.ErrNotExist, syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.EAGAIN, berrors.ErrTimeout} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// asideMark stands in the name of a file that was set aside.
const asideMark = ".damaged-"

// setAside renames a file that cannot be used; it is never deleted.
func setAside(path string) (string, error) {
	aside := path + asideMark + time.Now().UTC().Format("20060102T150405.000000Z")
	return aside, errors.Join(os.Rename(path, aside), syncDir(filepath.Dir(path)))
}

// syncDir makes a folder's entries durable: which files there are, under which
// names.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" { // which cannot be told to; NTFS keeps a journal of them
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// segmentFiles lists the files of a log's folder in order: its segments, and
// those that were never finished.
func segmentFiles(dir string) (segments, unfinished []string, err error) {
	entries, err := os.ReadDir(dir) // sorted; the sequence numbers in the names are of fixed width
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		switch name := e.Name(); {
		case !strings.HasPrefix(name, "log-") || e.IsDir():
		case strings.HasSuffix(name, ".db"):
			segments = append(segments, filepath.Join(dir, name))
		case strings.HasSuffix(name, ".db.tmp"):
			unfinished = append(unfinished, filepath.Join(dir, name))
		}
	}
	return segments, unfinished, nil
}

func seqOf(key []byte) uint64 {
	if len(key) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(key)
}

func seqKey(seq uint64) []byte { return binary.BigEndian.AppendUint64(nil, seq) }
