package buffer

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
)

// Each calls f with every record that some uplink has not acknowledged, oldest
// first, until f returns an error. Records may come and go meanwhile.
func (l *Log[R]) Each(f func(R) error) error {
	l.mu.Lock()
	pos := l.acknowledged()
	l.mu.Unlock()
	c := &Cursor[R]{log: l}
	for {
		l.files.RLock()
		rs, _, end, err := c.run(pos, maxBlock)
		l.files.RUnlock()
		if err != nil {
			return err
		}
		if end == pos {
			return nil
		}
		for _, r := range rs {
			if err := f(r); err != nil {
				return err
			}
		}
		pos = end
	}
}

// Last returns the newest record that is kept.
func (l *Log[R]) Last() (r R, ok bool) {
	l.files.RLock()
	defer l.files.RUnlock()
	l.mu.Lock()
	n := len(l.recent)
	if n > 0 {
		r = l.recent[n-1]
	}
	l.mu.Unlock()
	for k := len(l.segments) - 1; k >= 0 && n == 0; k-- {
		s := l.segments[k]
		for i := len(s.blocks) - 1; i >= 0; i-- {
			if rs, err := l.load(s, s.blocks[i]); err == nil && len(rs) > 0 {
				return rs[len(rs)-1], true
			}
		}
	}
	return r, n > 0
}

// Checked is what a look at every block has found.
type Checked struct {
	Blocks, Records   int
	Damaged, LostHere int // blocks, and records in them
}

// Check reads every block that is kept and checks it. What is damaged is passed
// over when its turn comes, and its file set aside then.
func (l *Log[R]) Check() (Checked, error) {
	var sum Checked
	for at := uint64(0); ; {
		l.files.RLock()
		info, s := l.find(at)
		if s == nil {
			l.files.RUnlock()
			return sum, nil
		}
		_, err := l.load(s, info)
		l.files.RUnlock()
		switch {
		case err == nil:
			sum.Blocks, sum.Records = sum.Blocks+1, sum.Records+int(info.count)
		case errors.Is(err, errDamaged):
			sum.Damaged, sum.LostHere = sum.Damaged+1, sum.LostHere+int(info.count)
		default:
			return sum, err
		}
		at = info.cover()
	}
}

// Repair verifies every file again, as Open does, and salvages those that are
// damaged. The log goes on meanwhile, in memory.
func (l *Log[R]) Repair() error {
	l.commitMu.Lock()
	defer l.commitMu.Unlock()
	if l.lock == nil {
		return l.attach()
	}
	if err := l.write(true); err != nil && !l.suspect {
		return err
	}
	l.stopClearing()
	if s := l.active(); s != nil {
		l.seal(s)
	}
	l.files.Lock()
	defer l.files.Unlock()
	var err error
	for _, s := range l.segments {
		err = errors.Join(err, s.close())
	}
	l.mu.Lock()
	stored := map[string]uint64{}
	for name, c := range l.cursors {
		stored[name] = c.pos
	}
	done, end := l.acknowledged(), l.recentFirst()
	l.mu.Unlock()
	if err != nil {
		return err
	}
	kept := l.segments[:0:0]
	for k, s := range l.segments {
		_, why := l.opt.Verify(s.path)
		if why == nil || errors.Is(why, ErrUnreadable) {
			kept = append(kept, s)
			continue
		}
		others := append(append([]*segment(nil), kept...), l.segments[k+1:]...)
		fresh, d, err := salvage(s.path, why, others, stored, done, end)
		if err != nil {
			return err
		}
		if fresh != nil {
			kept = append(kept, fresh)
		}
		l.mu.Lock()
		l.damaged(d)
		l.mu.Unlock()
	}
	l.segments = kept
	l.suspect = false
	return nil
}

// File is a file of a log that nobody runs on, as Export has found it.
type File struct {
	Path    string
	Damage  error // nil: it is whole
	Records int   // that were read from it
	Newer   int   // blocks that another version of the program has written, and this cannot read
}

// Export reads a log's folder, or one file of it, such as one that was set aside,
// without changing anything, and calls f with each record, oldest first, that some
// uplink has not acknowledged. Of a damaged file it reads every block that is
// whole: among them may be records that were delivered long ago.
func Export[R any](path string, codec Codec[R], verify func(path string) (*Report, error), f func(R) error) ([]File, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	paths := []string{path}
	stored := map[string]uint64{}
	if info.IsDir() {
		if err := inUse(path); err != nil {
			return nil, err
		}
		if paths, _, err = segmentFiles(path); err != nil {
			return nil, err
		}
		stored = readMark(path).Cursors
	}
	var files []File
	reports := map[string]*Report{}
	for _, path := range paths {
		r, err := verify(path)
		files = append(files, File{Path: path, Damage: err})
		if err == nil {
			reports[path] = r
			for name, pos := range r.Cursors {
				if stored == nil {
					stored = map[string]uint64{}
				}
				stored[name] = max(stored[name], pos)
			}
		}
	}
	for k := range files {
		from := leastOf(stored)
		if files[k].Damage != nil && strings.Contains(filepath.Base(files[k].Path), asideMark) {
			from = 0 // it may hold what its log has lost
		}
		if err := files[k].export(reports[files[k].Path], from, func(b []byte) (int, error) {
			i, rs, err := unpack(codec, b)
			if err != nil { // whole, as was checked
				files[k].Newer++
				return 0, nil
			}
			n := 0
			for k, r := range rs {
				if i.first+uint64(k) < from {
					continue
				}
				if err := f(r); err != nil {
					return n, err
				}
				n++
			}
			return n, nil
		}); err != nil {
			return files, err
		}
	}
	return files, nil
}

// export hands a file's blocks from a position on to f. r is nil if it is damaged.
func (x *File) export(r *Report, from uint64, f func(b []byte) (int, error)) error {
	hand := func(b []byte, err error) error {
		if err != nil {
			return err
		}
		n, err := f(b)
		x.Records += n
		return err
	}
	if r != nil {
		s := r.segment(x.Path)
		defer s.close()
		for _, i := range s.blocks {
			if i.cover() > from {
				if err := hand(s.block(i)); err != nil {
					return err
				}
			}
		}
		return nil
	}
	blocks, _, err := scanFile(x.Path)
	if err != nil {
		return err
	}
	file, err := os.Open(x.Path)
	if err != nil {
		return err
	}
	defer file.Close()
	for _, b := range blocks {
		if b.cover() > from {
			if err := hand(b.read(file)); err != nil {
				return err
			}
		}
	}
	return nil
}

// ExportRejects reads the records that were set aside from the folder of a log
// that nobody runs on, as Rejects does, without changing anything.
func ExportRejects[R any](dir string, codec Codec[R], verify func(path string) (*Report, error)) ([]Rejected[R], error) {
	if err := inUse(dir); err != nil {
		return nil, err
	}
	paths, _, err := segmentFiles(dir)
	if err != nil {
		return nil, err
	}
	var segments []*segment
	for _, path := range paths {
		if r, err := verify(path); err == nil {
			s := r.segment(path)
			defer s.close()
			segments = append(segments, s)
		}
	}
	return openRejects(codec, segments, nil, nil, math.MaxInt), nil
}
