package buffer

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sort"
	"time"

	bolt "go.etcd.io/bbolt"
)

// Cursor is one uplink's place in the log. Its methods may be called
// concurrently with everything but each other; Depth and Ready with all.
type Cursor[R any] struct {
	log   *Log[R]
	name  string
	ready chan struct{}

	// Guarded by log.mu.
	pos   uint64 // of the first record not acknowledged
	epoch int    // of the log, then

	before, from, to uint64 // which records keep their numbers, see Hold

	// The blocks last read: a drain reads many times in one, and may look at the
	// newest in between.
	blocks [2]loaded[R]
	turn   int // the one to be replaced next
}

// loaded is a block that is kept decoded.
type loaded[R any] struct {
	blockInfo
	records []R // nil: none
}

// Cursor returns the uplink of that name, the same each time. A new one begins
// at the oldest record kept. From now on it holds back what it has not
// acknowledged.
func (l *Log[R]) Cursor(name string) (*Cursor[R], error) {
	if name == "" {
		return nil, errors.New("log: an uplink needs a name")
	}
	l.files.RLock()
	defer l.files.RUnlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.cursors[name]
	if c == nil {
		c = &Cursor[R]{log: l, name: name, ready: make(chan struct{}, 1), pos: max(l.stored[name], l.floor), epoch: l.epoch}
		l.cursors[name] = c
	}
	if l.depth(c.pos) > 0 {
		c.signal()
	}
	return c, nil
}

func (c *Cursor[R]) signal() {
	select {
	case c.ready <- struct{}{}:
	default:
	}
}

// Ready receives after something new has come to peek at.
func (c *Cursor[R]) Ready() <-chan struct{} { return c.ready }

// Depth is the number of records waiting.
func (c *Cursor[R]) Depth() int {
	c.log.files.RLock()
	defer c.log.files.RUnlock()
	c.log.mu.Lock()
	defer c.log.mu.Unlock()
	return c.log.depth(c.pos)
}

// Ack forgets every record before end, for this uplink. It never goes back, and
// never beyond what was put. It is on disk after the next commit: after a crash
// before that, what was acknowledged is peeked again.
func (c *Cursor[R]) Ack(end uint64) {
	c.log.mu.Lock()
	defer c.log.mu.Unlock()
	if c.epoch == c.log.epoch { // else the number was of records that have other numbers now
		c.pos = max(c.pos, min(end, c.log.next))
	}
}

// Bounds are the numbers of the oldest record not acknowledged and of the next one
// to be put. Anew: since the last call the log has numbered its records anew, and
// numbers from before mean nothing now; an Ack with one is passed over.
func (c *Cursor[R]) Bounds() (first, end uint64, anew bool) {
	c.log.mu.Lock()
	defer c.log.mu.Unlock()
	anew = c.epoch != c.log.epoch
	if anew {
		c.epoch, c.before, c.from, c.to = c.log.epoch, 0, 0, 0
	}
	return c.pos, c.log.next, anew
}

// Hold has the numbers of the records before one, and of those from another until
// before a third, keep their meaning: a log that is full thins out only elsewhere.
// It holds until it is called again.
func (c *Cursor[R]) Hold(before, from, to uint64) {
	c.log.mu.Lock()
	defer c.log.mu.Unlock()
	c.before, c.from, c.to = before, from, to
}

// Read returns up to limit records from a number on, the number of the first of
// them, the others following without a gap, and where to read on. It never blocks
// for new ones. Damaged blocks are passed over and counted. The records must not be
// changed.
func (c *Cursor[R]) Read(from uint64, limit int) (rs []R, first, end uint64, err error) {
	l := c.log
	l.files.RLock()
	defer l.files.RUnlock()
	l.mu.Lock()
	anew := c.epoch != l.epoch
	l.mu.Unlock()
	if anew {
		return nil, from, from, nil // Bounds tells
	}
	first, end = from, from
	for len(rs) < limit {
		more, at, next, err := c.run(end, limit-len(rs))
		if len(rs) > 0 && (err != nil || len(more) > 0 && at != first+uint64(len(rs))) {
			break // these first
		}
		if err != nil {
			return nil, from, end, err
		}
		if len(rs) == 0 {
			first = at
		}
		rs = extend(rs, more)
		if next == end {
			break
		}
		end = next
		if len(rs) >= limit/2 {
			break // rather a part than a copy of it
		}
	}
	return rs, first, end, nil
}

// Peek returns up to limit of the oldest records not acknowledged, and the number
// after the last of them, to be given to Ack. It is Read and Hold for those who
// take one stretch after the other. It never blocks for new ones. A damaged block is
// passed over and counted. The records must not be changed.
func (c *Cursor[R]) Peek(limit int) (rs []R, end uint64, err error) {
	l := c.log
	l.files.RLock()
	defer l.files.RUnlock()
	l.mu.Lock()
	end = c.pos
	c.epoch = l.epoch
	l.mu.Unlock()
	for len(rs) < limit {
		more, _, next, err := c.run(end, limit-len(rs))
		if err != nil && len(rs) == 0 {
			return nil, end, err
		}
		if err != nil || next == end {
			break
		}
		rs, end = extend(rs, more), next
	}
	l.mu.Lock()
	c.before = end
	l.mu.Unlock()
	return rs, end, nil
}

// run reads up to limit records from a position on that follow each other without
// a gap, within one block or in memory, or passes over what is damaged. Nothing
// left: end is from. files is held.
func (c *Cursor[R]) run(from uint64, limit int) (rs []R, first, end uint64, err error) {
	l := c.log
	if info, s := l.find(from); s != nil {
		records, err := c.load(s, info)
		if errors.Is(err, errDamaged) {
			l.mu.Lock()
			l.count("damaged", "", info.end()-max(from, info.first))
			s.keep = true
			l.mu.Unlock()
			return nil, from, info.cover(), nil
		}
		if err != nil {
			return nil, from, from, fmt.Errorf("log %s: %w", l.dir, err)
		}
		first = max(from, info.first)
		at := int(first - info.first)
		take := min(len(records)-at, limit)
		if end = first + uint64(take); end == info.end() {
			end = info.cover()
		}
		return records[at : at+take : at+take], first, end, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	// What a commit takes from memory it has put among the blocks before, and it
	// waits with that for us: between the two nothing is missing.
	if len(l.recent) == 0 || from >= l.next {
		return nil, from, from, nil
	}
	first = max(from, l.recentFirst())
	at := int(first - l.recentFirst())
	take := min(len(l.recent)-at, limit)
	return l.recent[at : at+take : at+take], first, first + uint64(take), nil
}

// load is a block's records, decoded once while they are in use.
func (c *Cursor[R]) load(s *segment, info blockInfo) ([]R, error) {
	for i := range c.blocks {
		if b := &c.blocks[i]; b.records != nil && b.blockInfo == info {
			c.turn = 1 - i
			return b.records, nil
		}
	}
	records, err := c.log.load(s, info)
	if err != nil {
		return nil, err
	}
	c.blocks[c.turn] = loaded[R]{info, records}
	c.turn = 1 - c.turn
	return records, nil
}

// extend is append that takes over the first records as they are: records are
// never changed.
func extend[R any](rs, more []R) []R {
	if len(rs) == 0 {
		return more[:len(more):len(more)]
	}
	return append(rs, more...)
}

// find is the first block that ends after pos. files is held.
func (l *Log[R]) find(pos uint64) (blockInfo, *segment) {
	for _, s := range l.segments {
		i := sort.Search(len(s.blocks), func(i int) bool { return s.blocks[i].end() > pos })
		if i < len(s.blocks) {
			return s.blocks[i], s
		}
	}
	return blockInfo{}, nil
}

// load reads a block.
func (l *Log[R]) load(s *segment, info blockInfo) ([]R, error) {
	b, err := s.block(info)
	if err != nil {
		return nil, err
	}
	got, rs, err := unpack(l.codec, b)
	if err == nil && (got.first != info.first || got.count != info.count) {
		err = fmt.Errorf("%w: the header has changed", errDamaged)
	}
	return rs, err
}

// Reject sets records aside that the broker will never take, with its words. It
// is on disk after the next commit, with the Ack that follows it.
func (c *Cursor[R]) Reject(rs []R, why string) error {
	l := c.log
	var made []reject
	for _, r := range rs {
		b, _, err := pack(nil, l.codec, blockInfo{first: 1}, []R{r})
		if err != nil {
			return fmt.Errorf("log %s: set a record aside: %w", l.dir, err)
		}
		made = append(made, reject{c.name, time.Now().UTC(), why, b})
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rejects = append(l.rejects, made...)
	if over := len(l.rejects) - l.opt.MaxRejects; over > 0 {
		l.rejects = slices.Clone(l.rejects[over:])
	}
	l.stats.Rejected += uint64(len(rs))
	return nil
}

// Rejected is a record that a broker will never take.
type Rejected[R any] struct {
	Uplink string
	At     time.Time // when it was refused, by the clock of then
	Why    string    // the broker's own words
	Record R
}

// reject is one as it is kept.
type reject struct {
	Uplink string    `json:"uplink"`
	At     time.Time `json:"at"`
	Why    string    `json:"why"`
	Record []byte    `json:"record"` // a block of one
}

// Rejects returns the records that were set aside and are kept, oldest first.
// Those that this program cannot read, and those of a damaged file, are left out.
func (l *Log[R]) Rejects() []Rejected[R] {
	l.commitMu.Lock() // so that none is between memory and disk
	defer l.commitMu.Unlock()
	l.mu.Lock()
	waiting := l.rejects
	l.mu.Unlock()
	return openRejects(l.codec, l.segments, l.carried, waiting, l.opt.MaxRejects)
}

// openRejects reads rejects out of segments, and those that are in none.
func openRejects[R any](codec Codec[R], segments []*segment, carried map[uint64][]byte, waiting []reject, most int) []Rejected[R] {
	kept := map[uint64][]byte{}
	maps.Copy(kept, carried)
	for _, s := range segments {
		maps.Copy(kept, s.rejects())
	}
	var made []reject
	for _, n := range slices.Sorted(maps.Keys(kept)) {
		var r reject
		if json.Unmarshal(kept[n], &r) == nil {
			made = append(made, r)
		}
	}
	made = append(made, waiting...)
	var list []Rejected[R]
	for _, r := range made[max(0, len(made)-most):] {
		if _, rs, err := unpack(codec, r.Record); err == nil {
			list = append(list, Rejected[R]{r.Uplink, r.At, r.Why, rs[0]})
		}
	}
	return list
}

// rejects reads a segment's rejects; of a damaged one what can be read.
func (s *segment) rejects() map[uint64][]byte {
	found := map[uint64][]byte{}
	_ = s.use(func(db *bolt.DB) error {
		return db.View(func(tx *bolt.Tx) error {
			return tx.Bucket(bucketRejects).ForEach(func(k, v []byte) error {
				found[seqOf(k)] = slices.Clone(v)
				return nil
			})
		})
	})
	return found
}

// Only lets go of every uplink but these: nothing is held back for one that is no
// longer there. If it comes again, it begins at the oldest record kept. It returns
// the names of those it has let go of.
func (l *Log[R]) Only(names ...string) (released []string) {
	l.commitMu.Lock() // so that no commit brings them back
	defer l.commitMu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	known := maps.Clone(l.stored)
	for name := range l.cursors {
		known[name] = 0
	}
	for _, name := range slices.Sorted(maps.Keys(known)) {
		if slices.Contains(names, name) {
			continue
		}
		delete(l.cursors, name)
		delete(l.stored, name)
		released = append(released, name)
	}
	return released
}
