package buffer

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Damage is a file of the log that was not what it should be.
type Damage struct {
	File     string // where it is kept now; empty: it is gone
	Why      string
	Salvaged uint64 // records that were whole and undelivered: they are delivered
	Lost     uint64 // records that are not, as far as the sequence numbers tell
}

// retry spaces the tries to get at a disk that fails: from 100 ms to 10 s.
type retry struct {
	wait time.Duration
	next time.Time
	why  error
}

func (r *retry) due() bool { return !time.Now().Before(r.next) }

func (r *retry) failed(err error) {
	r.wait = min(max(2*r.wait, 100*time.Millisecond), 10*time.Second)
	r.next, r.why = time.Now().Add(r.wait), err
}

// attach makes sure that there is a folder to write to, and that its last segment
// is what we think it is. commitMu is held, or nobody knows of l yet.
func (l *Log[R]) attach() error {
	if l.lock != nil && !l.suspect {
		return nil
	}
	if !l.retry.due() {
		return l.retry.why
	}
	var err error
	if l.lock == nil {
		err = l.open()
	} else {
		err = l.recheck()
	}
	if err != nil {
		l.retry.failed(err)
		return err
	}
	l.retry = retry{}
	return nil
}

// open takes over a folder. Records that wait in memory come after those in it.
func (l *Log[R]) open() (err error) {
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return err
	}
	lock, err := lockFolder(l.dir)
	if err != nil {
		return err
	}
	var segments []*segment
	m := readMark(l.dir)
	defer func() {
		if err != nil {
			_ = m.close()
			_ = lock.Close()
		}
	}()
	paths, unfinished, err := segmentFiles(l.dir)
	if err != nil {
		return err
	}
	for _, path := range unfinished { // a power cut while it was made: nothing is in it
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	stored, rejects := maps.Clone(m.Cursors), uint64(0)
	if stored == nil {
		stored = map[string]uint64{}
	}
	bad := map[string]error{}
	for _, path := range paths {
		r, err := l.opt.Verify(path)
		if errors.Is(err, ErrUnreadable) {
			return err
		}
		if err != nil {
			bad[path] = err
			continue
		}
		segments = append(segments, r.segment(path))
		for name, pos := range r.Cursors {
			stored[name] = max(stored[name], pos)
		}
		rejects = max(rejects, r.Rejects)
	}
	slices.SortFunc(segments, func(a, b *segment) int { return cmp.Compare(a.start(), b.start()) })
	if segments, err = withoutLeftovers(segments); err != nil {
		return err
	}
	done := max(leastOf(stored), m.Floor)
	var damage []Damage
	for k := len(segments) - 1; k >= 0; k-- {
		s, want := segments[k], m.End // where it must have come to
		if k+1 < len(segments) {
			want = segments[k+1].after
		}
		next := slices.Index(paths, s.path) + 1
		if want > max(done, s.end) && (next == len(paths) || bad[paths[next]] == nil) {
			bad[s.path] = fmt.Errorf("it ends before record %d, but had come to %d: its newest pages are gone, or an old copy was put back", s.end, want)
		}
	}
	if len(segments) > 0 && bad[paths[0]] == nil && segments[0].after > max(done, 1) {
		damage = append(damage, Damage{Why: "the file before " + filepath.Base(paths[0]) + " is gone", Lost: segments[0].after - max(done, 1)})
	}
	segments = slices.DeleteFunc(segments, func(s *segment) bool { return bad[s.path] != nil })
	for _, path := range paths {
		if why := bad[path]; why != nil {
			s, d, err := salvage(path, why, segments, stored, done, m.End)
			if err != nil {
				return err
			}
			if s != nil {
				segments = append(segments, s)
				slices.SortFunc(segments, func(a, b *segment) int { return cmp.Compare(a.start(), b.start()) })
			}
			damage = append(damage, d)
		}
	}
	if len(paths) == 0 && m.End > max(done, 1) {
		damage = append(damage, Damage{Why: "its files are gone", Lost: m.End - max(done, 1)})
	}
	generation := m.Generation
	next := max(m.End, 1)
	for _, s := range segments {
		next = max(next, s.end)
		for _, b := range s.blocks {
			generation = max(generation, b.gen)
		}
	}
	for _, pos := range stored {
		next = max(next, pos)
	}
	m.End, m.Cursors = next, stored
	if err := m.begin(l.dir, generation+1); err != nil {
		return err
	}
	// A small segment goes on. To open a large one for writing costs time and
	// memory, and a file that is not written to any more cannot be hurt.
	if n := len(segments); n > 0 && segments[n-1].size() <= largeSegment && segments[n-1].end == next {
		segments[n-1].writable = true
	}

	l.files.Lock()
	defer l.files.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.trim(l.acknowledged()) // while numbers still mean what they did in memory
	l.lock, l.mark, l.segments, l.stored, l.floor = lock, m, segments, stored, m.Floor
	l.reject = max(l.reject, rejects)
	for _, d := range damage {
		l.damaged(d)
	}
	l.renumber(next)
	return nil
}

// renumber puts the records that were taken into memory before there was a disk
// after those on it, before next. files and mu are held.
func (l *Log[R]) renumber(next uint64) {
	first := l.recentFirst()
	by := next - first
	l.next += by
	l.onDisk = next
	for k := range l.arrivals {
		l.arrivals[k].end += by
	}
	for name, c := range l.cursors {
		waits := false
		for _, s := range l.segments {
			waits = waits || s.end > l.stored[name] && len(s.blocks) > 0
		}
		if waits {
			c.pos = max(l.stored[name], l.floor)
		} else {
			c.pos = max(c.pos, first) + by
		}
		c.signal()
	}
	l.epoch++ // what was peeked at before means other records now
}

// recheck looks at the last segment again after a write to it has failed. What the
// system has of the file then need not be what the disk has, and to write to it
// again could cost what the disk has: so it is only read from now on, and what is
// in memory goes to a new one, even what was in the old.
func (l *Log[R]) recheck() error {
	s := l.active()
	if s == nil {
		l.suspect = false
		return nil
	}
	if err := s.close(); err != nil && !errors.Is(err, errDamaged) {
		return err
	}
	r, err := l.opt.Verify(s.path)
	if errors.Is(err, ErrUnreadable) {
		return err
	}
	if err == nil && r.End < s.end {
		err = fmt.Errorf("it ends before record %d, but had come to %d: its newest pages are gone", r.End, s.end)
	}
	l.mu.Lock()
	stored, done, first := maps.Clone(l.stored), l.acknowledged(), min(l.recentFirst(), s.end)
	for name, c := range l.cursors {
		stored[name] = c.pos
	}
	l.mu.Unlock()
	others := l.segments[:len(l.segments)-1]
	var fresh *segment
	var d Damage
	if err == nil {
		fresh = r.segment(s.path)
	} else if fresh, d, err = salvage(s.path, err, others, stored, done, first); err != nil {
		return err
	}
	switch {
	case fresh == nil:
	case s.end == seqOfName(s.path): // nothing was ever in it for sure, and its name is wanted
		l.carry(fresh)
		if err := fresh.remove(); err != nil {
			return err
		}
		fresh = nil
	default:
		// It stays until what it alone has for sure is acknowledged, or on disk anew.
		fresh.blocks = slices.DeleteFunc(fresh.blocks, func(i blockInfo) bool { return i.first >= first })
		fresh.end = s.end
	}
	l.files.Lock()
	defer l.files.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.segments = slices.Clone(others)
	if fresh != nil {
		l.segments = append(l.segments, fresh)
	}
	if d.File != "" {
		l.damaged(d)
	}
	l.onDisk = l.recentFirst()
	l.tail, l.packed = blockInfo{}, nil
	l.suspect = false
	return nil
}

// detach closes everything. commitMu is held.
func (l *Log[R]) detach() (err error) {
	l.stopClearing()
	l.files.Lock()
	defer l.files.Unlock()
	for _, s := range l.segments {
		err = errors.Join(err, s.close())
	}
	l.segments = nil
	err = errors.Join(err, l.mark.close())
	if l.lock != nil {
		err = errors.Join(err, l.lock.Close())
		l.lock = nil
	}
	return err
}

// damaged counts a damaged file. mu is held.
func (l *Log[R]) damaged(d Damage) {
	l.stats.Damage = append(l.stats.Damage, d)
	if d.Lost > 0 {
		l.count("damaged", "", d.Lost)
	}
	l.opt.Damaged(d)
}

// leastOf is the position before which every uplink has acknowledged all.
func leastOf(positions map[string]uint64) uint64 {
	least := uint64(0)
	for _, pos := range positions {
		if least == 0 || pos < least {
			least = pos
		}
	}
	return least
}

// withoutLeftovers removes segments whose sequence numbers another has all: a
// crash came between the two steps that put a thinned segment in their place.
func withoutLeftovers(segments []*segment) ([]*segment, error) {
	var kept []*segment
	for _, s := range segments {
		if n := len(kept); n > 0 && len(s.blocks) > 0 && s.end <= kept[n-1].end {
			if err := s.remove(); err != nil {
				return nil, err
			}
			continue
		}
		kept = append(kept, s)
	}
	return kept, nil
}

// salvage sets a damaged file aside and makes a segment of the blocks in it that
// are whole, were not delivered to all uplinks, and are in no other segment. It is
// nil if there are none. Before done all is delivered; end is where the log had
// come to, as far as it is known.
func salvage(path string, why error, others []*segment, stored map[string]uint64, done, end uint64) (*segment, Damage, error) {
	d := Damage{Why: why.Error()}
	blocks, torn, err := scanFile(path)
	if err != nil {
		return nil, d, err
	}
	// The numbers that can have been in this file: from the end of the segment
	// before it to the beginning of the one after it.
	own := seqOfName(path)
	lo, hi, last := done, end, true
	for _, s := range others {
		if seqOfName(s.path) <= own {
			lo = max(lo, s.end)
		} else if last {
			hi, last = cmp.Or(s.after, s.start()), false
		}
	}
	blocks = slices.DeleteFunc(blocks, func(b found) bool { return b.cover() <= lo || !last && b.cover() > hi })
	for _, b := range blocks {
		d.Salvaged += b.end() - min(max(b.first, lo), b.end())
	}
	begin := lo
	if begin == 0 && len(blocks) > 0 {
		begin = blocks[0].first
		if own > 0 {
			begin = min(begin, own)
		}
	}
	if last {
		hi = max(hi, begin+torn)
		if len(blocks) > 0 {
			hi = max(hi, blocks[len(blocks)-1].cover()+torn)
		}
	}
	covered := uint64(0)
	for _, b := range blocks {
		covered += b.cover() - max(b.first, begin)
	}
	if span := hi - min(begin, hi); span > covered {
		d.Lost = span - covered
	}
	d.File = path + asideMark + time.Now().UTC().Format("20060102T150405.000000Z")
	if len(blocks) == 0 {
		return nil, d, errors.Join(os.Rename(path, d.File), syncDir(filepath.Dir(path)))
	}
	s, err := rescue(path, d.File, blocks, max(hi, blocks[len(blocks)-1].cover()), stored)
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		// What else is in the log must go out, or there will never be room.
		d.Why += fmt.Sprintf("; nothing is salvaged: %v: `gateway buffer export` reads it", err)
		d.Lost, d.Salvaged = d.Lost+d.Salvaged, 0
		return nil, d, errors.Join(os.Rename(path, d.File), syncDir(filepath.Dir(path)))
	}
	return s, d, err
}

// rescue copies blocks to a new segment and then gives the old file its new name.
// A crash at any point leaves a folder in which the next salvage does the same.
func rescue(path, aside string, blocks []found, end uint64, stored map[string]uint64) (*segment, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := newBuilder(filepath.Dir(path), blocks[0].first)
	if err != nil {
		return nil, err
	}
	for some := range slices.Chunk(blocks, 100) {
		var infos []blockInfo
		var values [][]byte
		for _, s := range some {
			v, err := s.read(f)
			if err != nil {
				b.abandon()
				return nil, err
			}
			infos, values = append(infos, s.blockInfo), append(values, v)
		}
		if err := b.add(infos, values); err != nil {
			b.abandon()
			return nil, err
		}
	}
	b.end = max(b.end, end)
	if err := b.finish(stored); err != nil {
		b.abandon()
		return nil, err
	}
	if err := os.Link(path, aside); err != nil && b.path == path { // a file system without links
		if err := os.Rename(path, aside); err != nil {
			b.abandon()
			return nil, err
		}
	}
	s, err := b.place()
	if err == nil && b.path != path {
		if _, missing := os.Stat(aside); missing != nil {
			err = os.Rename(path, aside)
		} else {
			err = os.Remove(path)
		}
		err = errors.Join(err, syncDir(filepath.Dir(path)))
	}
	return s, err
}

// seqOfName is the sequence number in a segment's name.
func seqOfName(path string) uint64 {
	name := strings.TrimPrefix(filepath.Base(path), "log-")
	n, _ := strconv.ParseUint(name[:min(len(name), 20)], 10, 64)
	return n
}

// lockFolder takes the folder for this process. It is let go of when the file is
// closed, also by the end of the process.
func lockFolder(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for begun := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		err = tryLock(f, true)
		if err == nil {
			break
		}
		if !errors.Is(err, errInUse) {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
		if time.Since(begun) > time.Second {
			_ = f.Close()
			return nil, usedBy(f.Name())
		}
	}
	_ = f.Truncate(0)
	_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0) // for the message above; not worth an error
	return f, nil
}

func usedBy(lock string) error {
	who := ""
	if b, err := os.ReadFile(lock); err == nil && len(b) > 0 {
		who = " (process " + strings.TrimSpace(string(b)) + ")"
	}
	return fmt.Errorf("log %s is %w: another gateway%s runs on this folder; stop it (systemctl stop gateway), or give this one a folder of its own", filepath.Dir(lock), errInUse, who)
}

// inUse returns an error if a process has the folder, and changes nothing.
func inUse(dir string) error {
	f, err := os.Open(filepath.Join(dir, "lock"))
	if err != nil {
		return nil // there never was one
	}
	defer f.Close()
	if err := tryLock(f, false); errors.Is(err, errInUse) {
		return usedBy(f.Name())
	}
	return nil
}
