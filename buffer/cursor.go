package buffer

import (
	"errors"
	"fmt"
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

	pos uint64 // of the first record not acknowledged; guarded by log.mu

	// The block last read, since a drain peeks many times into one.
	block   blockInfo
	records []R
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
		c = &Cursor[R]{log: l, name: name, ready: make(chan struct{}, 1), pos: l.stored[name]}
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
	c.pos = max(c.pos, min(end, c.log.next))
}

// Peek returns up to limit of the oldest records not acknowledged, and the
// sequence number after the last of them, to be given to Ack. It never blocks
// for new ones. A damaged block is passed over and counted.
func (c *Cursor[R]) Peek(limit int) (rs []R, end uint64, err error) {
	l := c.log
	l.files.RLock()
	defer l.files.RUnlock()
	l.mu.Lock()
	end = c.pos
	l.mu.Unlock()
	for len(rs) < limit {
		info, s := l.find(end)
		if s == nil {
			break
		}
		records, err := c.load(s, info)
		if err != nil {
			if !errors.Is(err, errDamaged) {
				if len(rs) > 0 {
					return rs, end, nil // these first
				}
				return rs, end, fmt.Errorf("log %s: %w", l.dir, err)
			}
			l.lost(info, end)
			end = info.end()
			continue
		}
		from := int(max(end, info.first) - info.first)
		take := min(len(records)-from, limit-len(rs))
		rs = append(rs, records[from:from+take]...)
		end = info.first + uint64(from+take)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	first := l.next - uint64(len(l.pending))
	// What a commit takes from memory it has put among the blocks before, and it
	// waits with that for us: between the two nothing is missing.
	if len(rs) < limit && len(l.pending) > 0 {
		from := int(max(end, first) - first)
		take := min(len(l.pending)-from, limit-len(rs))
		rs = append(rs, l.pending[from:from+take]...)
		end = first + uint64(from+take)
	}
	return rs, end, nil
}

// find is the first block that ends after pos. files is held.
func (l *Log[R]) find(pos uint64) (blockInfo, *segment) {
	for _, s := range l.segments {
		if s.end() <= pos {
			continue
		}
		i := sort.Search(len(s.blocks), func(i int) bool { return s.blocks[i].end() > pos })
		return s.blocks[i], s
	}
	return blockInfo{}, nil
}

// load reads a block. files is held.
func (c *Cursor[R]) load(s *segment, info blockInfo) ([]R, error) {
	if c.block == info && c.records != nil {
		return c.records, nil
	}
	c.records = nil
	var rs []R
	err := s.view(func(tx *bolt.Tx) error {
		key := seqKey(info.first)
		v := tx.Bucket(bucketBlocks).Get(key)
		if v == nil {
			return fmt.Errorf("%w: it is gone", errDamaged)
		}
		got, records, err := unpackBlock(c.log.codec, key, v)
		if err == nil && got != info {
			err = fmt.Errorf("%w: the header has changed", errDamaged)
		}
		rs = records
		return err
	})
	if err != nil {
		return nil, err
	}
	c.block, c.records = info, rs
	return rs, nil
}

// lost counts the records of a damaged block.
func (l *Log[R]) lost(info blockInfo, from uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stats.Dropped["damaged"] += info.end() - max(from, info.first)
}

// Reject sets records aside that the broker will never take, with its words. It
// is on disk after the next commit, with the Ack that follows it.
func (c *Cursor[R]) Reject(rs []R, why string) error {
	l := c.log
	var made []reject
	for _, r := range rs {
		b, err := packBlock(l.codec, 0, []R{r})
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
