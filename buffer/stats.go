package buffer

import (
	"maps"
	"slices"
)

// Stats is the state of a log.
type Stats struct {
	Depth      int                          // records that some uplink has not acknowledged
	Cursors    map[string]int               // the same of each uplink
	Size       int64                        // bytes of the files
	Segments   int                          // files
	Written    int64                        // bytes of blocks, since Open
	Commits    uint64                       // since Open
	Rejected   uint64                       // set aside since Open
	Failing    error                        // of the last commit; nil: it succeeded
	Volatile   string                       // why a power cut would empty the log: "memory", "tmpfs", "overlay"; "": it would not
	Damage     []Damage                     // files that were damaged, since Open
	Generation uint32                       // how often the log has been opened
	Dropped    map[string]map[string]uint64 // reason → whose → records, since Open
}

// Lost is the number of records that were dropped, for any reason.
func (s Stats) Lost() (n uint64) {
	for reason := range s.Dropped {
		n += s.DroppedFor(reason)
	}
	return n
}

// DroppedFor is the number of records that were dropped for a reason: "full",
// "thinned", "age", "memory", "damaged".
func (s Stats) DroppedFor(reason string) (n uint64) {
	for _, k := range s.Dropped[reason] {
		n += k
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
	s.Dropped = make(map[string]map[string]uint64, len(l.stats.Dropped))
	for reason, n := range l.stats.Dropped {
		s.Dropped[reason] = maps.Clone(n)
	}
	s.Damage = slices.Clone(l.stats.Damage)
	s.Failing, s.Generation, s.Segments = l.failing, l.mark.Generation, len(l.segments)
	for _, f := range l.segments {
		s.Size += f.size()
	}
	s.Depth = l.depth(l.acknowledged())
	s.Cursors = map[string]int{}
	for name, c := range l.cursors {
		s.Cursors[name] = l.depth(c.pos)
	}
	s.Volatile = "memory"
	if l.lock != nil {
		s.Volatile = volatileFS(l.dir)
	}
	return s
}

// depth is the number of records from a position on. files and mu are held.
func (l *Log[R]) depth(pos uint64) int {
	n := 0
	for _, s := range l.segments {
		if s.end <= pos {
			continue
		}
		for i := len(s.blocks) - 1; i >= 0 && s.blocks[i].end() > pos; i-- {
			n += int(s.blocks[i].end() - max(pos, s.blocks[i].first))
		}
	}
	return n + int(l.next-min(l.next, max(pos, l.recentFirst())))
}
