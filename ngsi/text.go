package ngsi

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
)

// text is the body of a request. It is read from where its entities stand, and
// never put together.
type text struct {
	dialect *dialect
	slots   []slot
	size    int
	open    *atomic.Int32 // counts the readers that may still read
}

func newText(d *dialect, slots []slot, open *atomic.Int32) *text {
	t := &text{dialect: d, slots: slots, size: len(d.head) + len(d.tail) - 1, open: open}
	for i := range slots {
		t.size += len(slots[i].body)
	}
	return t
}

// part is the nth of what t consists of; nil: there are no more.
func (t *text) part(n int) []byte {
	switch {
	case n == 0:
		return []byte(t.dialect.head)
	case n == 1:
		return t.slots[0].body[1:]
	case n <= len(t.slots):
		return t.slots[n-1].body
	case n == len(t.slots)+1:
		return []byte(t.dialect.tail)
	}
	return nil
}

func (t *text) parts() [][]byte {
	var parts [][]byte
	for n := 0; t.part(n) != nil; n++ {
		parts = append(parts, t.part(n))
	}
	return parts
}

// reader reads t from its beginning: it is what GetBody of an http.Request wants.
func (t *text) reader() (io.ReadCloser, error) {
	t.open.Add(1)
	return &textReader{text: t, rest: t.part(0)}, nil
}

type textReader struct {
	*text
	mu     sync.Mutex
	n      int
	rest   []byte // of the nth part
	closed bool
}

func (r *textReader) Read(p []byte) (n int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return 0, errTextClosed
	}
	for r.rest != nil {
		read := copy(p[n:], r.rest)
		n += read
		if r.rest = r.rest[read:]; len(r.rest) > 0 {
			return n, nil
		}
		r.n++
		r.rest = r.part(r.n)
	}
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

var errTextClosed = errors.New("read the text of a request: it is closed")

// Close ends all reading: after it the text may change. It may be called twice, by
// any goroutine, and long after the request has failed.
func (r *textReader) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed {
		r.closed = true
		r.open.Add(-1)
	}
	return nil
}
