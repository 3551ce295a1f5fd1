// Package buffer is a store-and-forward log on bbolt: records go in at one end,
// each uplink reads them in order at its own pace, and what every uplink has
// acknowledged is forgotten. It knows records, not what is in them.
//
// What is durable when: a record waits in memory for up to Options.Window, then
// it is on disk. What every uplink acknowledges within the window is never
// written. With a window of 0 it is on disk before Put returns. So a power cut
// loses at most the last window of what had not been acknowledged, and never a
// record that came before one that is kept.
//
// A log is a folder of bbolt files, each a segment of the sequence. A new one is
// begun when the last has grown to Options.SegmentSize, and a drained one is
// deleted: that bounds the damage of a bad file and the time to open one.
package buffer

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
)

// Codec packs records into the body of a block and back. Its methods may be
// called concurrently.
type Codec[R any] interface {
	Append(dst []byte, rs []R) ([]byte, error)
	// Decode returns exactly the n records that Append packed, or an error.
	Decode(src []byte, n int) ([]R, error)
}

// Options of a log. Zero values mean the defaults, but for Window.
type Options struct {
	Window      time.Duration // how long a record may wait in memory; 0: on disk before Put returns
	MaxSize     int64         // of all files together, in bytes, never exceeded; default 256 MiB, at least 8 MiB
	SegmentSize int64         // a file's, about; default 64 MiB, at most an eighth of MaxSize
	MaxPending  int           // records kept in memory while the disk fails; default 50,000
	MaxRejects  int           // the newest that are kept; default 1,000

	// Failing is told when commits begin to fail, and with nil when they succeed
	// again; from the goroutine that commits. It must not call the log.
	Failing func(error)
}

// Log is an open log. All methods but Close may be called concurrently.
type Log[R any] struct {
	dir   string
	codec Codec[R]
	opt   Options

	commitMu sync.Mutex // one commit at a time

	// files guards the list of segments and their being open; it is taken
	// before mu.
	files    sync.RWMutex
	segments []*segment // in order; the last is written to

	mu      sync.Mutex
	pending []R    // not on disk, in order
	next    uint64 // the sequence number of the next record
	cursors map[string]*Cursor[R]
	stored  map[string]uint64 // positions as they are on disk
	rejects []reject          // not on disk
	reject  uint64            // running number of the next
	stats   Stats
	failing error // of the last commit
	closed  bool
}

// Stats is the state of a log.
type Stats struct {
	Depth    int               // records that some uplink has not acknowledged
	Size     int64             // of the files, bytes
	Written  int64             // bytes of blocks committed since Open
	Commits  uint64            // transactions since Open
	Dropped  map[string]uint64 // records that no uplink will ever get, by reason: "full", "damaged"
	Rejected uint64            // set aside since Open
	SetAside []string          // damaged files, by their new names
	Failing  error             // of the last commit; nil: it succeeded
}

// reject is a record that a broker will never take, as it is kept.
type reject struct {
	Uplink string    `json:"uplink"`
	At     time.Time `json:"at"`
	Why    string    `json:"why"`
	Record []byte    `json:"record"` // a block of one
}

const (
	defaultMaxSize     = 256 << 20
	leastMaxSize       = 8 << 20
	defaultSegmentSize = 64 << 20
)

// Open opens the log in a folder, or makes it. A file that is damaged or foreign
// is renamed, never deleted, and the rest is used: Stats tells. The error of a
// folder that another process uses comes within seconds.
func Open[R any](dir string, codec Codec[R], opt Options) (*Log[R], error) {
	if opt.MaxSize == 0 {
		opt.MaxSize = defaultMaxSize
	}
	opt.MaxSize = max(opt.MaxSize, leastMaxSize)
	if opt.SegmentSize == 0 {
		opt.SegmentSize = defaultSegmentSize
	}
	opt.SegmentSize = min(opt.SegmentSize, opt.MaxSize/8)
	if opt.MaxPending == 0 {
		opt.MaxPending = 50_000
	}
	if opt.MaxRejects == 0 {
		opt.MaxRejects = 1000
	}
	l := &Log[R]{dir: dir, codec: codec, opt: opt, next: 1, cursors: map[string]*Cursor[R]{}, stored: map[string]uint64{}}
	l.stats.Dropped = map[string]uint64{}
	if err := l.open(); err != nil {
		for _, s := range l.segments {
			_ = guard(s.db.Close)
		}
		return nil, fmt.Errorf("log %s: %w", dir, err)
	}
	return l, nil
}

func (l *Log[R]) open() error {
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return err
	}
	names, err := filepath.Glob(filepath.Join(l.dir, "log-*.db*"))
	if err != nil {
		return err
	}
	slices.Sort(names) // the first sequence number, of fixed width: in order
	for _, path := range names {
		if strings.HasSuffix(path, ".tmp") { // a power cut while it was made: nothing is in it
			if err := os.Remove(path); err != nil {
				return err
			}
			continue
		}
		if !strings.HasSuffix(path, ".db") {
			continue // set aside before
		}
		s, err := openSegment(path)
		if errors.Is(err, errNotOurs) {
			aside, err := setAside(path)
			if err != nil {
				return err
			}
			l.stats.SetAside = append(l.stats.SetAside, aside)
			continue
		}
		if err != nil {
			return err
		}
		l.segments = append(l.segments, s)
		if err := l.adopt(s); err != nil {
			return err
		}
	}
	for _, p := range l.stored {
		l.next = max(l.next, p)
	}
	if len(l.segments) == 0 {
		s, err := createSegment(l.dir, l.next)
		if err != nil {
			return err
		}
		l.segments = append(l.segments, s)
	}
	return nil
}

// adopt takes over a segment's cursors and the end of its sequence.
func (l *Log[R]) adopt(s *segment) error {
	l.next = max(l.next, s.end())
	if s.lost > 0 {
		l.stats.Dropped["damaged"] += s.lost
	}
	return s.view(func(tx *bolt.Tx) error {
		if k, _ := tx.Bucket(bucketRejects).Cursor().Last(); len(k) == 8 {
			l.reject = max(l.reject, binary.BigEndian.Uint64(k)+1)
		}
		return tx.Bucket(bucketCursors).ForEach(func(k, v []byte) error {
			if len(v) == 8 {
				l.stored[string(k)] = max(l.stored[string(k)], binary.BigEndian.Uint64(v))
			}
			return nil
		})
	})
}

// Put takes records. With a window of 0 they are on disk when it returns nil.
// An error means that they are not known to be kept: they cannot be packed, or
// the disk fails and memory for waiting is used up, or with a window of 0, the
// disk fails.
func (l *Log[R]) Put(rs ...R) error {
	// What cannot be packed is refused here, where somebody can be told: in a
	// commit it would hold up all that came after it.
	if _, err := l.codec.Append(nil, rs); err != nil {
		return fmt.Errorf("log %s: %w", l.dir, err)
	}
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return fmt.Errorf("log %s: closed", l.dir)
	}
	if len(l.pending)+len(rs) > l.opt.MaxPending {
		err := l.failing
		l.mu.Unlock()
		return fmt.Errorf("log %s: %d records wait in memory and cannot be written: %w", l.dir, l.opt.MaxPending, orBusy(err))
	}
	l.pending = append(l.pending, rs...)
	l.next += uint64(len(rs))
	end := l.next
	for _, c := range l.cursors {
		c.signal()
	}
	l.mu.Unlock()
	if l.opt.Window > 0 {
		return nil
	}
	return l.commit(end)
}

func orBusy(err error) error {
	if err == nil {
		return errors.New("the disk is too slow")
	}
	return err
}

// Run commits once a window, when there is something to commit, until ctx ends;
// then once more, and returns nil. The log is kept even if that last commit
// fails: Stats tells.
func (l *Log[R]) Run(ctx context.Context) error {
	t := time.NewTicker(max(l.opt.Window, 10*time.Millisecond))
	defer t.Stop()
	if l.opt.Window == 0 {
		t.Reset(time.Second) // for acknowledgements and rejects
	}
	for {
		select {
		case <-t.C:
			_ = l.commit(0) // kept in Stats, and tried again
		case <-ctx.Done():
			_ = l.commit(0)
			return nil
		}
	}
}

// commit is the one place that writes: one transaction with the new blocks, the
// removals, the cursors and the rejects. With until set it returns at once if
// another commit has brought all before until to disk meanwhile.
func (l *Log[R]) commit(until uint64) error {
	l.commitMu.Lock()
	defer l.commitMu.Unlock()
	if until > 0 && l.onDisk() >= until {
		return nil
	}
	err := l.write()
	l.mu.Lock()
	changed := (err == nil) != (l.failing == nil)
	l.failing = err
	l.mu.Unlock()
	if err != nil {
		err = fmt.Errorf("log %s: %w", l.dir, err)
	}
	if changed && l.opt.Failing != nil {
		l.opt.Failing(err)
	}
	return err
}

// onDisk is the sequence number before which all is on disk or acknowledged.
func (l *Log[R]) onDisk() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.next - uint64(len(l.pending))
}

// acknowledged is the sequence number before which every uplink has
// acknowledged all. An uplink that was but is not any more (its cursor is on
// disk, nobody has asked for it) holds nothing up. mu is held.
func (l *Log[R]) acknowledged() uint64 {
	if len(l.cursors) == 0 {
		return 0
	}
	least := l.next
	for _, c := range l.cursors {
		least = min(least, c.pos)
	}
	return least
}

// write is commit without its bookkeeping. commitMu is held.
func (l *Log[R]) write() error {
	l.mu.Lock()
	done := l.acknowledged()
	first := l.next - uint64(len(l.pending))
	if done > first { // acknowledged before it was written: never written
		l.pending = slices.Clone(l.pending[done-first:])
		first = done
	}
	batch := l.pending[:len(l.pending):len(l.pending)]
	rejects := l.rejects[:len(l.rejects):len(l.rejects)]
	positions := map[string]uint64{}
	for name, c := range l.cursors {
		positions[name] = c.pos
	}
	l.mu.Unlock()

	if err := l.forget(done); err != nil {
		return err
	}
	last := l.segments[len(l.segments)-1]
	drained := 0
	for drained < len(last.blocks) && last.blocks[drained].end() <= done {
		drained++
	}
	if len(batch) == 0 && len(rejects) == 0 && drained == 0 && !l.moved(positions) {
		return nil
	}
	blocks, infos, err := l.pack(first, batch)
	if err != nil {
		return err
	}
	var bytes int64
	for _, b := range blocks {
		bytes += int64(len(b))
	}
	s, err := l.room(first, bytes)
	if err != nil {
		return err
	}
	if s != last {
		drained = 0 // they go with their file
	}
	if err := s.update(func(tx *bolt.Tx) error {
		return l.fill(tx, s.blocks[:drained], blocks, infos, positions, rejects)
	}); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(s.path), err)
	}

	l.files.Lock()
	s.blocks = append(slices.Clone(s.blocks[drained:]), infos...)
	l.files.Unlock()
	l.mu.Lock()
	l.pending = slices.Clone(l.pending[len(batch):])
	l.rejects = slices.Clone(l.rejects[len(rejects):])
	l.stored = positions
	l.stats.Written += bytes
	l.stats.Commits++
	l.mu.Unlock()
	return nil
}

// fill is the transaction.
func (l *Log[R]) fill(tx *bolt.Tx, drained []blockInfo, blocks [][]byte, infos []blockInfo, positions map[string]uint64, rejects []reject) error {
	b := tx.Bucket(bucketBlocks)
	b.FillPercent = 1 // keys only ever rise
	for _, d := range drained {
		if err := b.Delete(seqKey(d.first)); err != nil {
			return err
		}
	}
	for i, block := range blocks {
		if err := b.Put(seqKey(infos[i].first), block); err != nil {
			return err
		}
	}
	c := tx.Bucket(bucketCursors)
	for name, pos := range positions {
		if err := c.Put([]byte(name), seqKey(pos)); err != nil {
			return err
		}
	}
	return l.fillRejects(tx.Bucket(bucketRejects), rejects)
}

// fillRejects adds rejects and removes the oldest above the bound.
func (l *Log[R]) fillRejects(b *bolt.Bucket, rejects []reject) error {
	if len(rejects) == 0 {
		return nil
	}
	n := l.reject
	for _, r := range rejects {
		v, err := json.Marshal(r)
		if err != nil {
			return err
		}
		if err := b.Put(seqKey(n), v); err != nil {
			return err
		}
		n++
	}
	c := b.Cursor()
	for k, _ := c.First(); k != nil && binary.BigEndian.Uint64(k)+uint64(l.opt.MaxRejects) < n; k, _ = c.First() {
		if err := b.Delete(k); err != nil {
			return err
		}
	}
	l.reject = n
	return nil
}

// moved reports whether a cursor must be written: only one that stands before
// what is on disk matters after a restart.
func (l *Log[R]) moved(positions map[string]uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	end := uint64(0)
	for _, s := range l.segments {
		end = max(end, s.end())
	}
	for name, pos := range positions {
		if was := l.stored[name]; was != pos && was < end {
			return true
		}
	}
	return false
}

// pack makes blocks of a batch.
func (l *Log[R]) pack(first uint64, batch []R) (blocks [][]byte, infos []blockInfo, err error) {
	for rs := range slices.Chunk(batch, maxBlock) {
		b, err := packBlock(l.codec, first, rs)
		if err != nil {
			return nil, nil, err
		}
		blocks = append(blocks, b)
		infos = append(infos, blockInfo{first, len(rs), len(b)})
		first += uint64(len(rs))
	}
	return blocks, infos, nil
}

// forget deletes drained segments, all but the last.
func (l *Log[R]) forget(done uint64) error {
	for len(l.segments) > 1 && l.segments[0].end() <= done {
		if err := l.removeOldest(); err != nil {
			return err
		}
	}
	return nil
}

func (l *Log[R]) removeOldest() error {
	l.files.Lock()
	defer l.files.Unlock()
	s := l.segments[0]
	l.segments = l.segments[1:]
	return s.remove()
}

// room returns the segment to write bytes more to: the last, or a new one. It
// drops the oldest segments so that the log stays below its size.
func (l *Log[R]) room(first uint64, bytes int64) (*segment, error) {
	s := l.segments[len(l.segments)-1]
	const step = 1 << 20 // by which a file grows
	if s.size()+bytes > l.opt.SegmentSize && len(s.blocks) > 0 {
		fresh, err := createSegment(l.dir, max(first, s.end()))
		if err != nil {
			return nil, err
		}
		l.files.Lock()
		l.segments = append(l.segments, fresh)
		l.files.Unlock()
		s = fresh
	}
	for len(l.segments) > 1 && l.size()+2*bytes+2*step > l.opt.MaxSize {
		l.mu.Lock()
		done := l.acknowledged()
		for _, b := range l.segments[0].blocks {
			if b.end() > done {
				l.stats.Dropped["full"] += b.end() - max(b.first, done)
			}
		}
		l.mu.Unlock()
		if err := l.removeOldest(); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (l *Log[R]) size() (n int64) {
	for _, s := range l.segments {
		n += s.size()
	}
	return n
}

// Stats returns the state of the log.
func (l *Log[R]) Stats() Stats {
	l.files.RLock()
	defer l.files.RUnlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.stats
	s.Dropped = map[string]uint64{}
	for reason, n := range l.stats.Dropped {
		s.Dropped[reason] = n
	}
	s.SetAside = slices.Clone(l.stats.SetAside)
	s.Size, s.Failing = l.size(), l.failing
	s.Depth = l.depth(l.acknowledged())
	return s
}

// depth is the number of records from a position on. files and mu are held.
func (l *Log[R]) depth(pos uint64) int {
	n := 0
	for _, s := range l.segments {
		if s.end() <= pos {
			continue
		}
		for i := len(s.blocks) - 1; i >= 0 && s.blocks[i].end() > pos; i-- {
			n += int(s.blocks[i].end() - max(pos, s.blocks[i].first))
		}
	}
	first := l.next - uint64(len(l.pending))
	return n + int(l.next-min(l.next, max(pos, first)))
}

// Close commits what waits and closes the files. Nothing may be called after it.
func (l *Log[R]) Close() error {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	err := l.commit(0)
	l.files.Lock()
	defer l.files.Unlock()
	for _, s := range l.segments {
		err = errors.Join(err, guard(s.db.Close))
	}
	l.segments = nil
	return err
}
