package ngsi

import "slices"

// Host is what the machine that the gateway runs on says of itself. All of it
// is optional.
type Host struct {
	Software string // the gateway's version
	OS       string // name and version of the operating system
	Serial   string // of the board
}

// On is m on that machine: the gateway's own Device tells of it.
func (m *Mapper) On(h Host) *Mapper {
	on := *m
	on.self.Attrs = known(slices.Clip(m.self.Attrs), "softwareVersion", h.Software, "osVersion", h.OS, "serialNumber", h.Serial)
	return &on
}

// known appends names and texts, in pairs, of which the text is known.
func known(as []Attr, pairs ...string) []Attr {
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			as = append(as, Attr{Name: pairs[i], Kind: Text, Text: pairs[i+1]})
		}
	}
	return as
}
