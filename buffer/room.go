package buffer

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
)

// room makes a segment ready to take so many blocks, of n bytes together.
func (l *Log[R]) room(s *segment, blocks int, n int64) error {
	// A commit also writes the top, now and then the pages of the bucket of blocks,
	// and of each block's last page only a part is used.
	need := n + int64(blocks+16)*pageSize
	for {
		by, err := s.shortage(need, l.step)
		if err != nil || by == 0 {
			return err
		}
		if err := l.makeRoom(by); err == nil {
			return s.extend(by)
		} else if !errors.Is(err, errOnlyOne) {
			return err
		}
		if err := l.dropBlocks(s); err != nil {
			return err
		}
	}
}

// errOnlyOne is a full log of which the segment that is written to is all.
var errOnlyOne = errors.New("only one segment")

// makeRoom sees to it that the log may grow by n bytes: within MaxSize, and
// without taking what MinFree leaves to others. It drops the oldest segments if
// need be. commitMu is held.
func (l *Log[R]) makeRoom(n int64) error {
	limit := l.opt.MaxSize - overhead
	if l.opt.MinFree > 0 {
		if free, err := freeSpace(l.dir); err == nil && free-n < l.opt.MinFree {
			// What others have filled is not ours to give back: we stay as large as
			// we were when it became scarce.
			l.ceiling = max(l.ceiling, l.size())
			limit = min(limit, l.ceiling)
		} else {
			l.ceiling = 0
		}
	}
	for l.size()+n > limit {
		if l.opt.Full == DropNewest {
			return fmt.Errorf("%w: %d bytes of at most %d, and its policy is to refuse the new", ErrFull, l.size(), limit)
		}
		if len(l.segments) == 0 {
			return fmt.Errorf("the disk has less free than is to be left to others: %w", syscall.ENOSPC)
		}
		if len(l.segments) == 1 && l.segments[0].writable {
			return errOnlyOne
		}
		if err := l.dropOldest(); err != nil {
			return err
		}
	}
	return nil
}

// overhead is what the mark and the lock take of MaxSize, and the steps by which
// bbolt grows a file whose free pages are too scattered.
const overhead = 4*markSlot + 2*allocSize

func (l *Log[R]) size() (n int64) {
	for _, s := range l.segments {
		n += s.size()
	}
	if l.clearing != nil && l.clearing.to != nil {
		n += l.clearing.size()
	}
	return n
}

// dropOldest forgets the oldest segment and counts what is lost with it.
func (l *Log[R]) dropOldest() error {
	s := l.segments[0]
	if planted == plantedNewest && len(l.segments) > 1 {
		n := len(l.segments) - 2
		s, l.segments[0], l.segments[n] = l.segments[n], l.segments[n], s
	}
	l.mu.Lock()
	done := l.acknowledged()
	l.mu.Unlock()
	l.tally("full", s, s.blocks, done)
	l.carry(s)
	l.mu.Lock()
	l.raise(s.end)
	l.mu.Unlock()
	return l.removeOldest()
}

// tally counts the records of blocks, from a sequence number on, as dropped.
func (l *Log[R]) tally(reason string, s *segment, blocks []blockInfo, from uint64) {
	for _, i := range blocks {
		if i.end() <= from {
			continue
		}
		rs, err := l.load(s, i)
		if err != nil {
			rs = nil // damaged: nobody knows whose they were
		}
		l.mu.Lock()
		if rs == nil {
			l.count(reason, "", i.end()-max(i.first, from))
		} else {
			l.drop(reason, rs[max(i.first, from)-i.first:])
		}
		l.mu.Unlock()
	}
}

// dropBlocks forgets a quarter of the only segment, so that its pages can be
// written again.
func (l *Log[R]) dropBlocks(s *segment) error {
	n := (len(s.blocks) + 3) / 4
	if n == 0 {
		return fmt.Errorf("the disk has less free than is to be left to others: %w", syscall.ENOSPC)
	}
	l.mu.Lock()
	done := l.acknowledged()
	l.mu.Unlock()
	l.tally("full", s, s.blocks[:n], done)
	l.mu.Lock()
	l.raise(s.blocks[n-1].cover())
	l.mu.Unlock()
	err := s.use(func(db *bolt.DB) error {
		return db.Update(func(tx *bolt.Tx) error {
			for _, i := range s.blocks[:n] {
				if err := holderOf(tx, i).DeleteBucket(seqKey(i.first)); err != nil {
					return err
				}
			}
			return nil
		})
	})
	if err != nil {
		l.suspect = true
		return fmt.Errorf("write %s: %w", filepath.Base(s.path), err)
	}
	l.files.Lock()
	s.blocks = slices.Clone(s.blocks[n:])
	l.files.Unlock()
	return nil
}

// count counts drops. mu is held.
func (l *Log[R]) count(reason, whose string, n uint64) {
	if l.stats.Dropped[reason] == nil {
		l.stats.Dropped[reason] = map[string]uint64{}
	}
	l.stats.Dropped[reason][whose] += n
}

// drop counts records as dropped. mu is held.
func (l *Log[R]) drop(reason string, rs []R) {
	for _, r := range rs {
		whose := ""
		if n, ok := l.codec.(Namer[R]); ok {
			whose = n.Name(r)
		}
		l.count(reason, whose, 1)
	}
}

// tendFor is how long tend may work at a time: what waits for it in the meantime
// is the next commit.
const tendFor = 50 * time.Millisecond

// tend does what need not be done in a commit: it forgets records for their age,
// and thins the oldest before the log is full.
func (l *Log[R]) tend() {
	l.commitMu.Lock()
	defer l.commitMu.Unlock()
	if l.lock == nil || l.suspect {
		return
	}
	until := time.Now().Add(tendFor)
	if l.opt.MaxAge > 0 && time.Since(l.aged) >= time.Minute {
		l.aged = time.Now()
		l.expire(until)
	}
	if err := l.thin(until); err != nil {
		l.stopClearing() // it is tried again; if the disk fails, commits tell
	}
}

// expire forgets the records at the head that are older than MaxAge, by whole
// blocks.
func (l *Log[R]) expire(until time.Time) {
	ager, ok := l.codec.(Ager[R])
	if !ok {
		return
	}
	for time.Now().Before(until) {
		l.mu.Lock()
		done := l.acknowledged()
		l.mu.Unlock()
		i, s := l.find(done)
		if s == nil {
			return
		}
		rs, err := l.load(s, i)
		if err != nil || len(rs) == 0 {
			return
		}
		if age, known := ager.Age(rs[len(rs)-1]); !known || age <= l.opt.MaxAge {
			return
		}
		l.mu.Lock()
		l.drop("age", rs[max(i.first, done)-i.first:])
		l.raise(i.cover())
		l.mu.Unlock()
	}
	l.aged = time.Time{} // there is more
}

// clearing is a thinning under way: segments that are read, and the one that will
// take their place.
type clearing[R any] struct {
	from   []*segment
	blocks []located
	next   int
	to     *builder
	events bool

	group []R // of the blocks from first on, not yet written
	first uint64
	cover uint64
	gen   uint32
	spans [][2]uint64 // what was thinned
	lost  []lost
}

type located struct {
	blockInfo
	s *segment
}

type lost struct {
	whose string
	n     uint64
}

func (c *clearing[R]) of(s *segment) bool { return c != nil && slices.Contains(c.from, s) }

func (c *clearing[R]) size() int64 {
	s := segment{path: c.to.path + ".tmp"}
	return s.size()
}

func (l *Log[R]) stopClearing() {
	if l.clearing != nil {
		l.clearing.to.abandon()
		l.clearing = nil
	}
}

// thin halves the resolution of the oldest segments, two into one, when the log
// comes near its limit. It works until the time given, and goes on next time.
func (l *Log[R]) thin(until time.Time) error {
	thinner, ok := l.codec.(Thinner[R])
	if !ok || l.opt.Full != ThinOldest {
		return nil
	}
	if l.clearing == nil {
		if l.size() < l.opt.MaxSize-3*l.opt.SegmentSize-2*l.step {
			return nil
		}
		if err := l.beginClearing(); err != nil || l.clearing == nil {
			return err
		}
	}
	for c := l.clearing; time.Now().Before(until); {
		if c.next == len(c.blocks) {
			if err := l.writeGroup(thinner); err != nil {
				return err
			}
			return l.endClearing()
		}
		b := c.blocks[c.next]
		c.next++
		if err := l.thinBlock(thinner, b); err != nil {
			return err
		}
	}
	return nil
}

// beginClearing chooses two neighbours in the older half that have been thinned
// least, the oldest of such.
func (l *Log[R]) beginClearing() error {
	var from []*segment
	best := 0
	l.mu.Lock() // for keep
	for k := 0; k+1 < len(l.segments) && k+1 < max(2, (len(l.segments)+1)/2); k++ {
		a, b := l.segments[k], l.segments[k+1]
		if a.writable || b.writable || a.keep || b.keep {
			continue
		}
		if level := max(a.level, b.level); from == nil || level < best {
			from, best = []*segment{a, b}, level
		}
	}
	l.mu.Unlock()
	if from == nil {
		return nil
	}
	to, err := newBuilder(l.dir, seqOfName(from[0].path))
	if err != nil {
		return err
	}
	to.after, to.level = from[0].after, min(best+1, 255)
	c := &clearing[R]{from: from, to: to}
	for _, s := range from {
		for _, i := range s.blocks {
			c.blocks = append(c.blocks, located{i, s})
		}
	}
	// Thinned many times, hardly anything is left but what must go last.
	c.events = best >= eventsLast
	l.clearing = c
	return nil
}

// eventsLast is how often numbers are halved before events are thinned too.
const eventsLast = 8

// thinBlock takes one block over: into the group that is thinned, or as it is
// where an uplink stands in it or has its records under way. What every uplink
// has is left out.
func (l *Log[R]) thinBlock(thinner Thinner[R], b located) error {
	c := l.clearing
	l.mu.Lock()
	done, busy := l.acknowledged(), l.busy(b.first, b.cover())
	l.mu.Unlock()
	if b.cover() <= done {
		return nil
	}
	if busy {
		if err := l.writeGroup(thinner); err != nil {
			return err
		}
		v, err := b.s.block(b.blockInfo)
		if err != nil {
			return err
		}
		if i, err := parseBlock(v); err != nil || i.first != b.first {
			return l.leave(b, errDamaged)
		}
		return c.to.add([]blockInfo{b.blockInfo}, [][]byte{v})
	}
	rs, err := l.load(b.s, b.blockInfo)
	if err != nil {
		return l.leave(b, err)
	}
	if len(c.group) == 0 {
		c.first = b.first
	}
	c.group = append(c.group, rs...)
	c.cover, c.gen = b.cover(), max(c.gen, b.gen)
	if len(c.group) >= maxBlock {
		return l.writeGroup(thinner)
	}
	return nil
}

// leave gives a thinning up over a block that cannot be read. A damaged file stays
// as it is: what is lost counts when its turn comes.
func (l *Log[R]) leave(b located, err error) error {
	if errors.Is(err, errDamaged) {
		l.mu.Lock()
		b.s.keep = true
		l.mu.Unlock()
	}
	return err
}

// busy reports whether an uplink stands within a stretch or goes by the numbers of
// its records. mu is held.
func (l *Log[R]) busy(first, cover uint64) bool {
	for _, c := range l.cursors {
		if c.pos > first && c.pos < cover || c.before > first && c.pos < cover && c.before > c.pos || c.from < cover && c.to > first {
			return true
		}
	}
	return false
}

// writeGroup thins the group and writes what stays.
func (l *Log[R]) writeGroup(thinner Thinner[R]) error {
	c := l.clearing
	if len(c.group) == 0 {
		return nil
	}
	kept := thinner.Thin(c.group, c.events)
	c.lose(l.codec, c.group, kept)
	c.spans = append(c.spans, [2]uint64{c.first, c.cover})
	first := c.first
	c.group = c.group[:0]
	for rs := range slices.Chunk(kept, maxBlock) {
		i := blockInfo{first: first, gen: c.gen}
		first += uint64(len(rs))
		if first == c.first+uint64(len(kept)) { // the last stands for the rest too
			i.span = uint32(c.cover - i.first)
		}
		b, i, err := pack(nil, l.codec, i, rs)
		if err != nil {
			return err
		}
		if err := c.to.add([]blockInfo{i}, [][]byte{b}); err != nil {
			return err
		}
	}
	return nil
}

// lose notes whose records are not kept: they count when the thinning is done.
func (c *clearing[R]) lose(codec Codec[R], was, kept []R) {
	n := map[string]uint64{}
	namer, _ := codec.(Namer[R])
	name := func(r R) string {
		if namer == nil {
			return ""
		}
		return namer.Name(r)
	}
	for _, r := range was {
		n[name(r)]++
	}
	for _, r := range kept {
		n[name(r)]--
	}
	for whose, n := range n {
		if n > 0 {
			c.lost = append(c.lost, lost{whose, n})
		}
	}
}

// endClearing puts the thinned segment in the place of the others, if no uplink
// has come to what was thinned meanwhile. A crash between the two steps leaves a
// file that withoutLeftovers removes.
func (l *Log[R]) endClearing() error {
	c := l.clearing
	l.mu.Lock()
	busy := slices.ContainsFunc(c.spans, func(s [2]uint64) bool { return l.busy(s[0], s[1]) })
	stored := l.stored
	l.mu.Unlock()
	if busy || len(c.to.blocks) == 0 {
		l.stopClearing()
		return nil
	}
	c.to.end = c.from[len(c.from)-1].end
	if err := c.to.finish(stored); err != nil {
		return err
	}
	for _, s := range c.from {
		l.carry(s)
	}
	l.files.Lock()
	defer l.files.Unlock()
	l.mu.Lock()
	busy = slices.ContainsFunc(c.spans, func(s [2]uint64) bool { return l.busy(s[0], s[1]) })
	l.mu.Unlock()
	if busy {
		l.stopClearing()
		return nil
	}
	err := c.from[0].close()
	s, placed := c.to.place()
	if err = errors.Join(err, placed); s == nil {
		return err
	}
	l.clearing = nil
	k := slices.Index(l.segments, c.from[0])
	l.segments = slices.Replace(slices.Clone(l.segments), k, k+len(c.from), s)
	for _, old := range c.from[1:] {
		err = errors.Join(err, old.remove())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, lost := range c.lost {
		l.count("thinned", lost.whose, lost.n)
	}
	return err
}
