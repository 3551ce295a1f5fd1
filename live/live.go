// Package live shows the lab what the gateway senses at once, whatever becomes
// of the broker: the newest reading and the state of every sensor, in RAM,
// served over HTTP.
package live

import (
	"sync"
	"time"

	"campus-gateway"
)

// Board holds the newest reading and the state of every sensor. It is safe for
// concurrent use; putting never waits for who looks.
type Board struct {
	mu      sync.RWMutex
	sensors []Sensor // in the order of the configuration
	index   map[string]int
}

// Sensor is one line of the board.
type Sensor struct {
	Name    string
	Driver  string
	State   gateway.State
	Why     string    // of the last failure; empty when State is OK
	Changed time.Time // when State last changed
	Newest  *gateway.Reading
}

// Uplink is how one way to a broker is doing.
type Uplink struct {
	Name     string        `json:"name"`
	To       string        `json:"to"`
	Broker   string        `json:"broker,omitempty"` // what it has said it is
	Waiting  int           `json:"waiting_readings"`
	Draining bool          `json:"draining"` // a backlog
	Down     time.Time     `json:"down_since,omitzero"`
	Why      string        `json:"why,omitempty"`
	Sent     uint64        `json:"sent_readings"` // since start, as what follows
	Rejected uint64        `json:"rejected_readings"`
	Batch    int           `json:"batch_readings"` // as tuned, as what follows
	Lanes    int           `json:"lanes"`
	Latency  time.Duration `json:"-"`
	Seconds  float64       `json:"latency_seconds"`
}

// Reset lists anew which sensors there are. What is known of those that stay,
// by name and driver, stays.
func (b *Board) Reset(sensors []Sensor) {
	b.mu.Lock()
	defer b.mu.Unlock()
	index := make(map[string]int, len(sensors))
	list := make([]Sensor, len(sensors))
	for i, s := range sensors {
		if s.State == "" {
			s.State, s.Changed = gateway.Starting, time.Now()
		}
		if j, ok := b.index[s.Name]; ok && b.sensors[j].Driver == s.Driver {
			s = b.sensors[j]
		}
		list[i], index[s.Name] = s, i
	}
	b.sensors, b.index = list, index
}

// Put shows a reading. One of a sensor that is not listed is passed over.
func (b *Board) Put(r gateway.Reading) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if i, ok := b.index[r.Sensor]; ok {
		b.sensors[i].Newest = &r
	}
}

// SetState shows how a sensor is doing.
func (b *Board) SetState(sensor string, s gateway.State, why error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	i, ok := b.index[sensor]
	if !ok {
		return
	}
	b.sensors[i].State, b.sensors[i].Changed, b.sensors[i].Why = s, time.Now(), ""
	if why != nil {
		b.sensors[i].Why = why.Error()
	}
}

// Sensors is a copy of the board. Readings are shared and never changed.
func (b *Board) Sensors() []Sensor {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return append([]Sensor(nil), b.sensors...)
}
