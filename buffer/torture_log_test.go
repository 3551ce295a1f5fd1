package buffer_test

import (
	"errors"
	"os"
	"time"

	"campus-gateway/buffer"
)

// logOptions is what the processes of these tests open their logs with.
type logOptions struct {
	Window               time.Duration
	MaxSize, SegmentSize int64
}

// openLog is how all of these tests and their processes open a log.
func openLog(dir string, o logOptions) (*buffer.Log[record], *buffer.Cursor[record], error) {
	l, err := buffer.Open(dir, records{}, buffer.Options{Window: o.Window, MaxSize: o.MaxSize, SegmentSize: o.SegmentSize,
		Verify: buffer.Apart(os.Args[0], "inspect")})
	if err != nil {
		return nil, nil, err
	}
	c, err := l.Cursor("broker")
	if err != nil {
		return nil, nil, errors.Join(err, l.Close())
	}
	return l, c, nil
}

// dropped is the number of records that the log says are lost, since it was opened.
func dropped(l *buffer.Log[record]) uint64 {
	return l.Stats().Lost()
}

// setAside is the number of files that the log has found damaged.
func setAside(l *buffer.Log[record]) int { return len(l.Stats().Damage) }
