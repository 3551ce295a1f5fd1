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
// A log is a folder of bbolt files, each a segment of the sequence. Only the last
// is written to; a new one is begun when it has grown to Options.SegmentSize, and
// a drained one is deleted: that bounds the damage of a bad file, the time to open
// one, and the memory it takes. No file is trusted before it is verified (see
// Inspect), and what is damaged is set aside and salvaged block by block.
//
// Where there is no disk (missing, read-only, failing), records wait in memory, up
// to Options.MaxPending, and move to the disk when it is back.
package buffer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	bolt "go.etcd.io/bbolt"
)

// Codec knows the records. Its methods may be called concurrently. It may also be
// a Namer, a Thinner and an Ager.
type Codec[R any] interface {
	// Check refuses a record that Append cannot pack.
	Check(R) error
	// Append packs records into the body of a block.
	Append(dst []byte, rs []R) ([]byte, error)
	// Decode returns exactly the n records that Append packed, or an error. It must
	// keep nothing of src.
	Decode(src []byte, n int) ([]R, error)
}

// Namer is a Codec that says whose a record is: drops are counted by it.
type Namer[R any] interface{ Name(R) string }

// Thinner is a Codec that chooses which of some consecutive records stay when a
// full log keeps half: in order, and of each R itself. Only with events set may
// it choose among records that each tell something of their own.
type Thinner[R any] interface {
	Thin(rs []R, events bool) []R
}

// Ager is a Codec that says how old a record is, if that is known.
type Ager[R any] interface {
	Age(R) (age time.Duration, known bool)
}

// Policy is what a full log does.
type Policy string

// The policies.
const (
	DropOldest Policy = "oldest" // forget the oldest; the default
	ThinOldest Policy = "thin"   // halve the resolution of the oldest, again and again; needs a Thinner
	DropNewest Policy = "newest" // refuse the new
)

// Options of a log. Zero values mean the defaults, but for Window.
type Options struct {
	Window      time.Duration // how long a record may wait in memory; 0: on disk before Put returns
	MaxSize     int64         // of all files together, in bytes, never exceeded; default 256 MiB, at least 8 MiB
	SegmentSize int64         // of a file, about; default a sixteenth of MaxSize, at most 64 MiB and an eighth of MaxSize
	MinFree     int64         // bytes of the disk left to others; with less the log does not grow
	Full        Policy        // default DropOldest
	MaxAge      time.Duration // of a record, as the Ager says; 0: any
	MaxPending  int           // records kept in memory while there is no disk; default 50,000
	MaxRejects  int           // the newest that are kept; default 1,000

	// Verify inspects a file, in a process that may end (see Inspect). Default:
	// Inspect in this one.
	Verify func(path string) (*Report, error)

	// Failing is told when commits begin to fail, and with nil when they succeed
	// again; from Open and from the goroutine that commits. It must not call the log.
	Failing func(error)
	// Damaged is told of each damaged file. It must not call the log.
	Damaged func(Damage)
}

// Log is an open log. All methods but Close may be called concurrently.
type Log[R any] struct {
	dir   string
	codec Codec[R]
	opt   Options
	step  int64 // by which a file grows

	looked atomic.Pointer[time.Time]

	commitMu sync.Mutex // one commit at a time; guards what is not guarded otherwise
	lock     *os.File   // held while the folder is ours; nil: there is no disk
	mark     mark
	suspect  bool // the last segment may not be what we think: a write failed
	retry    retry
	carried  map[uint64][]byte // rejects of segments that were drained, by running number
	clearing *clearing[R]
	ceiling  int64     // of the size, while the disk has less free than MinFree; 0: it has more
	aged     time.Time // when records were last looked at for their age

	// files guards the list of segments and what they hold; it is taken before mu.
	files    sync.RWMutex
	segments []*segment // in order; only the last may be writable

	mu       sync.Mutex
	arrivals []arrival // of what is not on disk
	recent   []R       // the newest records, in order: of the tail on disk, then what is not on disk
	next     uint64    // the sequence number of the next record
	onDisk   uint64    // before it, all is on disk or acknowledged
	tail     blockInfo // on disk, of records in recent; count 0: none
	packed   []byte    // the tail's block
	floor    uint64    // before it, all was dropped
	epoch    int       // how often the records in memory were renumbered
	cursors  map[string]*Cursor[R]
	stored   map[string]uint64 // positions as they are on disk
	rejects  []reject          // not on disk
	reject   uint64            // running number of the next
	stats    Stats
	failing  error // of the last commit
	closed   bool
}

// ErrVolatile wraps the error of a Put whose records were taken, but only into
// memory, since the disk fails. They are written when it is well; a power cut
// before that loses them.
var ErrVolatile = errors.New("kept in memory only")

// ErrFull is a log that takes nothing more, by its policy.
var ErrFull = errors.New("the log is full")

// errInUse is a folder that another process has.
var errInUse = errors.New("in use")

const (
	defaultMaxSize = 256 << 20
	leastMaxSize   = 8 << 20
	mostSegment    = 64 << 20
	largeSegment   = 2 << 20 // is not opened again for writing: that would cost time and memory
)

// Open opens the log in a folder, or makes it. No state of the folder makes it
// fail, but for another process that uses it: that comes within two seconds. A
// file that is damaged or foreign is set aside, never deleted, and what is whole
// in it is salvaged; without a disk the log is in memory until there is one.
// Stats tells both.
func Open[R any](dir string, codec Codec[R], opt Options) (*Log[R], error) {
	if opt.MaxSize == 0 {
		opt.MaxSize = defaultMaxSize
	}
	opt.MaxSize = max(opt.MaxSize, leastMaxSize)
	if opt.SegmentSize == 0 {
		opt.SegmentSize = min(opt.MaxSize/16, mostSegment)
	}
	opt.SegmentSize = min(opt.SegmentSize, opt.MaxSize/8)
	if opt.MaxPending == 0 {
		opt.MaxPending = 50_000
	}
	if opt.MaxRejects == 0 {
		opt.MaxRejects = 1000
	}
	if opt.Full == "" {
		opt.Full = DropOldest
	}
	if opt.Verify == nil {
		opt.Verify = func(path string) (*Report, error) { return Inspect(path, true) }
	}
	if opt.Failing == nil {
		opt.Failing = func(error) {}
	}
	if opt.Damaged == nil {
		opt.Damaged = func(Damage) {}
	}
	l := &Log[R]{
		dir: dir, codec: codec, opt: opt, step: min(max(opt.SegmentSize/16, 64<<10), 1<<20) &^ (pageSize - 1),
		next: 1, onDisk: 1, cursors: map[string]*Cursor[R]{}, stored: map[string]uint64{}, carried: map[uint64][]byte{},
	}
	l.stats.Dropped = map[string]map[string]uint64{}
	err := l.attach()
	if errors.Is(err, errInUse) {
		return nil, err
	}
	if err != nil {
		l.failing = fmt.Errorf("log %s: %w", dir, err)
		opt.Failing(l.failing)
	}
	return l, nil
}

// Put takes records. With a window of 0 they are on disk when it returns nil.
// An error that is ErrVolatile means that they are taken, but only into memory.
// Any other means that they are not taken: one cannot be packed, memory for
// waiting is used up, or the log is full and its policy is DropNewest.
func (l *Log[R]) Put(rs ...R) error {
	// What cannot be packed is refused here, where somebody can be told: in a
	// commit it would hold up all that came after it.
	for _, r := range rs {
		if err := l.codec.Check(r); err != nil {
			return fmt.Errorf("log %s: %w", l.dir, err)
		}
	}
	if err := l.admit(rs); err != nil {
		return err
	}
	l.mu.Lock()
	end, failing := l.next, l.failing
	l.mu.Unlock()
	if l.opt.Window == 0 && planted != plantedEarlyAck {
		failing = l.commit(end)
	}
	if failing != nil {
		return fmt.Errorf("%w: %w", ErrVolatile, failing)
	}
	return nil
}

// admit takes records into memory, or refuses them.
func (l *Log[R]) admit(rs []R) error {
	l.mu.Lock()
	tooMany := func() int { return int(l.next-l.onDisk) + len(rs) - l.opt.MaxPending }
	alone := false // no commit is under way, which would write what is to go
	if tooMany() > 0 && l.commitMu.TryLock() {
		defer l.commitMu.Unlock()
		l.mu.Unlock()
		l.files.Lock()
		defer l.files.Unlock()
		l.mu.Lock()
		alone = true
	}
	defer l.mu.Unlock()
	over := tooMany()
	switch {
	case l.closed:
		return fmt.Errorf("log %s: closed", l.dir)
	case errors.Is(l.failing, ErrFull):
		l.drop("full", rs)
		return l.failing
	case over > 0 && (!alone || l.failing == nil || l.opt.Full == DropNewest || len(rs) > l.opt.MaxPending):
		l.drop("memory", rs)
		return fmt.Errorf("log %s: %d records wait in memory and cannot be written: %w", l.dir, l.next-l.onDisk, orBusy(l.failing))
	case over > 0:
		// The oldest that are in memory alone go. Those on disk are older, and stay.
		l.sealTail()
		l.drop("memory", l.recent[:over])
		l.recent = slices.Clone(l.recent[over:])
		l.onDisk = l.recentFirst()
	}
	l.recent = append(l.recent, rs...)
	l.next += uint64(len(rs))
	l.arrived()
	for _, c := range l.cursors {
		c.signal()
	}
	return nil
}

func orBusy(err error) error {
	if err == nil {
		return errors.New("the disk is too slow")
	}
	return err
}

// recentFirst is the sequence number of the first record in recent. mu is held.
func (l *Log[R]) recentFirst() uint64 { return l.next - uint64(len(l.recent)) }

// raise drops everything before floor. mu is held. What an uplink has peeked at
// and not acknowledged by then counts as dropped, though it may yet arrive.
func (l *Log[R]) raise(floor uint64) {
	l.floor = max(l.floor, floor)
	for _, c := range l.cursors {
		c.pos = max(c.pos, l.floor)
	}
	l.trim(l.floor)
}

// trim forgets the records in memory before seq, all of which are acknowledged by
// every uplink, or dropped. mu is held.
func (l *Log[R]) trim(seq uint64) {
	if first := l.recentFirst(); seq > first {
		l.recent = without(l.recent, min(seq, l.next)-first)
		l.onDisk = max(l.onDisk, min(seq, l.next))
	}
}

// without is rs without the first n, in memory of their own if the others are fewer.
func without[R any](rs []R, n uint64) []R {
	rest := rs[n:]
	if n > uint64(len(rest)) {
		return slices.Clone(rest)
	}
	return rest
}

// Run commits what has waited for a window, until ctx ends; then once more, and
// returns nil. The log is kept even if that last commit fails: Stats tells.
func (l *Log[R]) Run(ctx context.Context) error {
	window := l.opt.Window
	if window == 0 {
		window = time.Second // for acknowledgements and rejects
	}
	// It looks four times a window, and takes what would be too old at the next
	// look: a broker has three quarters of a window to save the card a commit.
	t := time.NewTicker(max(window/4, 5*time.Millisecond))
	defer t.Stop()
	defer l.look(time.Time{})
	for last := time.Now(); ; {
		l.look(time.Now())
		select {
		case <-t.C:
			due := l.waited() >= window*3/4
			if !due && time.Since(last) < window {
				continue
			}
			// What is not due may yet be acknowledged: then only what the uplinks
			// have done to that on disk is written.
			_ = l.settle(due) // an error is kept in Stats, and it is tried again
			l.tend()
			last = time.Now()
		case <-ctx.Done():
			_ = l.commit(0)
			return nil
		}
	}
}

// look notes when Run was last seen to turn.
func (l *Log[R]) look(now time.Time) { l.looked.Store(&now) }

// Looked is when Run last looked at what waits, as it does four times a window; zero:
// it does not run. It waits for nothing, so that it tells of a log that is stuck.
func (l *Log[R]) Looked() time.Time {
	if at := l.looked.Load(); at != nil {
		return *at
	}
	return time.Time{}
}

// arrival is when records came: all up to end since the arrival before.
type arrival struct {
	end uint64
	at  time.Time
}

// arrived notes when records came, not every time to the last bit. mu is held.
func (l *Log[R]) arrived() {
	l.forgetArrivals()
	now := time.Now()
	if n := len(l.arrivals); n > 0 && now.Sub(l.arrivals[n-1].at) < l.opt.Window/16 {
		l.arrivals[n-1].end = l.next
		return
	}
	l.arrivals = append(l.arrivals, arrival{l.next, now})
}

// waited is how long the oldest record has waited that is neither on disk nor
// acknowledged; 0: there is none.
func (l *Log[R]) waited() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forgetArrivals()
	if len(l.arrivals) == 0 {
		return 0
	}
	return max(1, time.Since(l.arrivals[0].at))
}

// forgetArrivals forgets those of records that are on disk or acknowledged. mu is
// held.
func (l *Log[R]) forgetArrivals() {
	done := max(l.onDisk, l.acknowledged())
	for len(l.arrivals) > 0 && l.arrivals[0].end <= done {
		l.arrivals = l.arrivals[1:]
	}
}

// commit brings all records before until to disk, 0: all there are. It returns at
// once if another has done so meanwhile.
func (l *Log[R]) commit(until uint64) error {
	l.commitMu.Lock()
	defer l.commitMu.Unlock()
	l.mu.Lock()
	written := until > 0 && l.onDisk >= until
	l.mu.Unlock()
	if written {
		return nil
	}
	return l.try(true)
}

// settle is commit, with or without new records. While commits fail it tries all:
// that there was nothing else to write does not mean that the disk is well.
func (l *Log[R]) settle(fresh bool) error {
	l.commitMu.Lock()
	defer l.commitMu.Unlock()
	l.mu.Lock()
	fresh = fresh || l.failing != nil
	l.mu.Unlock()
	return l.try(fresh)
}

// try is the one place that writes: one transaction with the new blocks, the
// removals, the cursors and the rejects. commitMu is held.
func (l *Log[R]) try(fresh bool) error {
	err := l.attach()
	if err == nil {
		err = l.write(fresh)
	}
	if err != nil {
		err = fmt.Errorf("log %s: %w", l.dir, err)
	}
	l.mu.Lock()
	was := l.failing
	l.failing = err
	l.mu.Unlock()
	if (err == nil) != (was == nil) {
		l.opt.Failing(err)
	}
	return err
}

// acknowledged is the sequence number before which every uplink has acknowledged
// all, or it was dropped. An uplink that was but is not any more (its cursor is on
// disk, nobody has asked for it) holds nothing up. mu is held.
func (l *Log[R]) acknowledged() uint64 {
	if len(l.cursors) == 0 {
		return l.floor
	}
	least := l.next
	for _, c := range l.cursors {
		least = min(least, c.pos)
	}
	return max(least, l.floor)
}

// batch is what one commit writes.
type batch struct {
	fresh  bool        // there are records to write: sealed and tail say where
	full   *blockInfo  // the tail as it is on disk, which stays so
	sealed []blockInfo // new blocks
	blocks [][]byte
	tail   blockInfo // the block that the next commit may fill up; count 0: none
	packed []byte

	end       uint64
	drained   []blockInfo // to be deleted
	move      []blockInfo // from the top into blocks
	positions map[string]uint64
	rejects   []reject
}

// write writes if there is something to write. commitMu is held, the log attached.
func (l *Log[R]) write(fresh bool) error {
	l.mu.Lock()
	done := l.acknowledged()
	l.trim(done)
	b := batch{end: l.next, positions: map[string]uint64{}, rejects: l.rejects[:len(l.rejects):len(l.rejects)]}
	b.fresh = fresh && l.next > l.onDisk
	maps.Copy(b.positions, l.stored)
	for name, c := range l.cursors {
		b.positions[name] = c.pos
	}
	moved := l.moved()
	l.mu.Unlock()

	for _, s := range l.segments[:max(0, len(l.segments)-1)] {
		if s.end <= done {
			l.carry(s)
		}
	}
	if len(l.carried) == 0 { // even if nothing more can be written: it makes room
		if err := l.forget(done); err != nil {
			return err
		}
	}
	drained := l.active() != nil && l.active().drained(done) > 0
	if b.fresh || len(b.rejects) > 0 || len(l.carried) > 0 || drained || moved {
		if err := l.writeBatch(&b); err != nil {
			// The failed write may have landed, in part or whole: look again before
			// the next.
			l.suspect = l.suspect || !ofTheSystem(err) && !errors.Is(err, ErrFull)
			return err
		}
	}
	return l.forget(done)
}

// active is the segment that is written to; nil: there is none yet.
func (l *Log[R]) active() *segment {
	if n := len(l.segments); n > 0 && l.segments[n-1].writable {
		return l.segments[n-1]
	}
	return nil
}

func (l *Log[R]) writeBatch(b *batch) error {
	s, err := l.roll()
	if err != nil {
		return err
	}
	var full error
	if !b.fresh {
		b.end = s.end
	}
	if err := l.pack(b); err != nil {
		return err
	}
	bytes := int64(len(b.packed)) // of blocks
	for _, block := range b.blocks {
		bytes += int64(len(block))
	}
	if b.fresh {
		if err := l.room(s, len(b.sealed)+1, bytes); err != nil && !errors.Is(err, ErrFull) {
			return err
		} else if err != nil { // what has been delivered makes room for what comes next
			full, b.fresh, b.end = err, false, s.end
		}
	}
	l.mu.Lock()
	b.drained = s.blocks[:s.drained(l.acknowledged())]
	was := l.tail
	l.mu.Unlock()
	rest := s.blocks[len(b.drained):]
	near := slices.IndexFunc(rest, func(i blockInfo) bool { return i.near })
	if near >= 0 && len(rest)-near+len(b.sealed) >= maxNear {
		b.move = rest[near:]
	}
	reject := l.reject
	if err := s.use(func(db *bolt.DB) error {
		return db.Update(func(tx *bolt.Tx) error { return l.fill(tx, b, was, &reject) })
	}); err != nil {
		l.suspect = true
		return fmt.Errorf("write %s: %w", filepath.Base(s.path), err)
	}

	l.files.Lock()
	defer l.files.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	for k := range b.move {
		b.move[k].near = false
	}
	s.blocks = rest
	if b.fresh {
		if b.full != nil {
			s.blocks = append(s.blocks, *b.full)
		}
		s.blocks = append(s.blocks, b.sealed...)
		s.end = b.end
		l.tail, l.packed = b.tail, b.packed
		from := b.end
		if b.tail.count > 0 {
			from = b.tail.first
		}
		l.recent = without(l.recent, max(from, l.recentFirst())-l.recentFirst())
		l.onDisk = max(l.onDisk, b.end)
	}
	l.rejects = slices.Clone(l.rejects[len(b.rejects):])
	l.stored, l.reject = b.positions, reject
	clear(l.carried)
	l.stats.Written += bytes
	l.stats.Commits++
	l.mark.End, l.mark.Cursors = max(l.mark.End, b.end), b.positions
	_ = l.mark.write() // the one before says less, and stays true
	return full
}

// pack makes the blocks of a batch. Records that fill less than a page become the
// tail, which the next commit packs again with what has come; a tail that would
// outgrow its page stays as it is.
func (l *Log[R]) pack(b *batch) error {
	if !b.fresh {
		return nil
	}
	l.mu.Lock()
	first := l.recentFirst() // not what it was before roll
	rs := l.recent[: b.end-first : b.end-first]
	tail, onDisk := l.tail, max(l.onDisk, first)
	l.mu.Unlock()
	gen := l.mark.Generation
	if tail.count > 0 && onDisk > first { // else all of it is acknowledged
		if l.fits(tail, len(rs)) {
			block, i, err := pack(nil, l.codec, blockInfo{first: first, gen: gen, near: true}, rs)
			if err != nil {
				return err
			}
			if i.size <= maxTail {
				b.tail, b.packed = i, block
				return nil
			}
		}
		b.full = &tail
		rs, first = rs[onDisk-first:], onDisk
	}
	for len(rs) > 0 {
		n := min(len(rs), maxBlock)
		block, i, err := pack(nil, l.codec, blockInfo{first: first, gen: gen, near: true}, rs[:n])
		if err != nil {
			return err
		}
		rs, first = rs[n:], first+uint64(n)
		if len(rs) == 0 && i.size <= maxTail {
			b.tail, b.packed = i, block
			return nil
		}
		b.sealed, b.blocks = append(b.sealed, i), append(b.blocks, block)
	}
	return nil
}

// fits guesses whether n records fit where the tail is: a wrong guess costs a
// packing in vain, or a page not quite full.
func (l *Log[R]) fits(tail blockInfo, n int) bool {
	return n <= maxBlock && int(tail.size)*n/int(tail.count) < maxTail*3/2
}

// fill is the transaction. was is the tail as it is on disk.
func (l *Log[R]) fill(tx *bolt.Tx, b *batch, was blockInfo, reject *uint64) error {
	for _, d := range b.drained {
		if err := holderOf(tx, d).DeleteBucket(seqKey(d.first)); err != nil {
			return err
		}
	}
	blocks := tx.Bucket(bucketBlocks)
	blocks.FillPercent = 1 // keys only ever rise
	for _, i := range b.move {
		if err := tx.MoveBucket(seqKey(i.first), nil, blocks); err != nil {
			return err
		}
	}
	if b.fresh {
		if was.count > 0 && b.full == nil && was.first != b.tail.first {
			if err := tx.DeleteBucket(seqKey(was.first)); err != nil {
				return err
			}
		}
		for k, i := range b.sealed {
			if err := putBlock(tx, i.first, b.blocks[k]); err != nil {
				return err
			}
		}
		if b.tail.count > 0 {
			if err := putBlock(tx, b.tail.first, b.packed); err != nil {
				return err
			}
		}
	}
	if err := tx.Bucket(bucketMeta).Put([]byte("end"), seqKey(b.end)); err != nil {
		return err
	}
	c := tx.Bucket(bucketCursors)
	for name, pos := range b.positions {
		if err := c.Put([]byte(name), seqKey(pos)); err != nil {
			return err
		}
	}
	return l.fillRejects(tx.Bucket(bucketRejects), b.rejects, reject)
}

// fillRejects adds rejects and removes the oldest above the bound.
func (l *Log[R]) fillRejects(b *bolt.Bucket, rejects []reject, next *uint64) error {
	for n, v := range l.carried {
		if err := b.Put(seqKey(n), v); err != nil {
			return err
		}
	}
	for _, r := range rejects {
		v, err := json.Marshal(r)
		if err != nil {
			return err
		}
		if err := b.Put(seqKey(*next), v); err != nil {
			return err
		}
		*next++
	}
	if len(rejects)+len(l.carried) == 0 {
		return nil
	}
	c := b.Cursor()
	for k, _ := c.First(); k != nil && seqOf(k)+uint64(l.opt.MaxRejects) < *next; k, _ = c.First() {
		if err := b.Delete(k); err != nil {
			return err
		}
	}
	return nil
}

// moved reports whether a cursor must be written: only one that stands before
// what is on disk matters after a restart. mu is held.
func (l *Log[R]) moved() bool {
	if len(l.segments) == 0 {
		return false
	}
	end := l.segments[len(l.segments)-1].end
	for name, c := range l.cursors {
		if was := l.stored[name]; was != c.pos && was < end {
			return true
		}
	}
	return false
}

// roll returns the segment to write to: the last, or a new one.
func (l *Log[R]) roll() (*segment, error) {
	s := l.active()
	if s != nil {
		var used int64
		if err := s.use(func(db *bolt.DB) error {
			return db.View(func(tx *bolt.Tx) error {
				used = tx.Size()
				return nil
			})
		}); err != nil {
			return nil, err
		}
		// A large one that is drained is not worth keeping either.
		if used < l.opt.SegmentSize && (len(s.blocks) > 0 || used < largeSegment) {
			return s, nil
		}
	}
	const emptySegment = 64 << 10
	if err := l.makeRoom(emptySegment); err != nil {
		return nil, err
	}
	l.mu.Lock()
	first, after := l.onDisk, l.floor
	l.mu.Unlock()
	if n := len(l.segments); n > 0 {
		after = l.segments[n-1].end
		first = max(first, after)
	}
	fresh, err := createSegment(l.dir, after, first)
	if err != nil {
		return nil, err
	}
	if s != nil {
		l.seal(s)
		if err := s.close(); err != nil {
			return nil, err
		}
	}
	l.files.Lock()
	l.segments = append(l.segments, fresh)
	l.files.Unlock()
	return fresh, nil
}

// seal ends the writing to a segment.
func (l *Log[R]) seal(s *segment) {
	l.files.Lock()
	defer l.files.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sealTail()
	s.writable = false
}

// sealTail makes the tail an ordinary block of its segment: from then on it is on
// disk alone. files and mu are held.
func (l *Log[R]) sealTail() {
	if l.tail.count == 0 {
		return
	}
	if l.tail.end() > l.acknowledged() {
		s := l.segments[len(l.segments)-1]
		s.blocks = append(s.blocks, l.tail)
	}
	l.tail, l.packed = blockInfo{}, nil
	first := l.recentFirst()
	l.recent = slices.Clone(l.recent[max(l.onDisk, first)-first:])
}

// carry takes over the rejects of a segment that is about to be deleted.
func (l *Log[R]) carry(s *segment) { maps.Copy(l.carried, s.rejects()) }

// forget deletes drained segments, all but the last.
func (l *Log[R]) forget(done uint64) error {
	for len(l.segments) > 1 && l.segments[0].end <= done {
		if err := l.removeOldest(); err != nil {
			return err
		}
	}
	return nil
}

// removeOldest deletes the oldest segment. The mark is flushed before, or else
// what was in the segment would be missed after a power cut.
func (l *Log[R]) removeOldest() error {
	l.mu.Lock()
	for name, c := range l.cursors {
		l.stored[name] = max(l.stored[name], c.pos)
	}
	l.floor = max(l.floor, l.segments[0].end)
	l.mark.Cursors, l.mark.Floor = maps.Clone(l.stored), l.floor
	l.mu.Unlock()
	if l.mark.file != nil {
		_ = errors.Join(l.mark.write(), l.mark.file.Sync())
	}
	if l.clearing.of(l.segments[0]) {
		l.stopClearing()
	}
	l.files.Lock()
	defer l.files.Unlock()
	s := l.segments[0]
	l.segments = l.segments[1:]
	return s.remove()
}

// Close commits what waits and closes the files. Nothing may be called after it.
func (l *Log[R]) Close() error {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	err := l.commit(0)
	l.mu.Lock()
	if n := l.next - l.onDisk; err != nil && n > 0 {
		err = fmt.Errorf("%d records were in memory only and are lost: %w", n, err)
	}
	l.mu.Unlock()
	l.commitMu.Lock()
	defer l.commitMu.Unlock()
	return errors.Join(err, l.detach())
}
