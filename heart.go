package gateway

import (
	"sync"
	"time"
)

// Heart tells from outside whether a loop still turns. Each time round the loop
// says when it will be back at the latest; one that is not back by then has hung.
// The zero value is at rest. Safe for concurrent use.
type Heart struct {
	mu  sync.Mutex
	due time.Time
}

// Beat says that the loop is back, and will be again within d.
func (h *Heart) Beat(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.due = time.Now().Add(d)
}

// Rest says that the loop has ended, or waits for what may never come.
func (h *Heart) Rest() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.due = time.Time{}
}

// Overdue is for how long the loop should have been back; 0: it need not be yet.
func (h *Heart) Overdue() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.due.IsZero() {
		return 0
	}
	return max(0, time.Since(h.due))
}

// grace is what a loop has beyond the time that it may take: a busy Pi with a slow
// card is no hung program.
const grace = time.Minute
