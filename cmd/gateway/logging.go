package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"sync"
)

// newLogger writes lines for people: to a terminal with the time, to the
// journal with the priority it asks for (sd-daemon(3)) and without the time it
// adds itself.
func newLogger(w io.Writer) *slog.Logger {
	h := &lineHandler{w: w, journal: os.Getenv("JOURNAL_STREAM") != "", mu: &sync.Mutex{}}
	h.text = slog.NewTextHandler(h, &slog.HandlerOptions{ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey || a.Key == slog.MessageKey) {
			return slog.Attr{} // written by Handle
		}
		return a
	}})
	return slog.New(h)
}

// lineHandler writes "time LEVEL message key=value …".
type lineHandler struct {
	w       io.Writer
	journal bool
	mu      *sync.Mutex
	text    slog.Handler
}

// Write takes a line's attributes from the text handler.
func (h *lineHandler) Write(attrs []byte) (int, error) { return h.w.Write(attrs) }

func (h *lineHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }

func (h *lineHandler) Handle(ctx context.Context, r slog.Record) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	head := r.Time.Format("2006-01-02 15:04:05 ") + r.Level.String()
	if h.journal {
		head = map[slog.Level]string{slog.LevelError: "<3>", slog.LevelWarn: "<4>", slog.LevelInfo: "<6>"}[r.Level]
	} else if r.Level == slog.LevelInfo || r.Level == slog.LevelWarn {
		head += "  "
	} else {
		head += " "
	}
	if _, err := io.WriteString(h.w, head+oneLine(r.Message)+" "); err != nil {
		return err
	}
	return h.text.Handle(ctx, r) // ends the line
}

func (h *lineHandler) WithAttrs(as []slog.Attr) slog.Handler {
	c := *h
	c.text = h.text.WithAttrs(as)
	return &c
}

func (h *lineHandler) WithGroup(name string) slog.Handler {
	c := *h
	c.text = h.text.WithGroup(name)
	return &c
}

// oneLine keeps a message from passing for several.
func oneLine(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c < ' ' {
			b[i] = ' '
		}
	}
	return string(b)
}
