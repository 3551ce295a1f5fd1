package ngsi

import "time"

const (
	ldHead = `[`
	ldTail = `]`
)

// AppendLD appends the body of POST /ngsi-ld/v1/entityOperations/upsert: NGSI-LD,
// normalized form, without an @context: it goes in the Link header.
func AppendLD(dst []byte, es []Entity) []byte {
	return appendAll(dst, es, ldHead, ldTail, appendLD)
}

func appendLD(dst []byte, e *Entity) []byte {
	dst = appendHead(dst, e)
	for i := range e.Attrs {
		a := &e.Attrs[i]
		dst = append(dst, ',')
		dst = appendString(dst, a.Name)
		dst = append(dst, ':')
		at := a.At
		if a.Kind == Time { // its At is what it says
			at = time.Time{}
		}
		dst = appendInstance(dst, a, at)
	}
	return append(dst, '}')
}

// appendInstance appends what a says, observed at that time; zero: it was not.
func appendInstance(dst []byte, a *Attr, at time.Time) []byte {
	switch a.Kind {
	case Time:
		dst = append(dst, `{"type":"Property","value":{"@type":"DateTime","@value":`...)
		dst = appendTime(dst, a.At)
		dst = append(dst, '}')
	case Point:
		dst = append(dst, `{"type":"GeoProperty","value":`...)
		dst = appendValue(dst, a)
	case Ref, Refs: // a list of one is that one: not every broker takes lists here
		dst = append(dst, `{"type":"Relationship","object":`...)
		dst = appendString(dst, a.Text)
	default:
		dst = append(dst, `{"type":"Property","value":`...)
		dst = appendValue(dst, a)
	}
	if a.Unit != "" {
		dst = append(dst, `,"unitCode":`...)
		dst = appendString(dst, a.Unit)
	}
	if !at.IsZero() {
		dst = append(dst, `,"observedAt":`...)
		dst = appendTime(dst, at)
	}
	if !at.IsZero() || a.Kind == Time {
		dst = appendUncertainLD(dst, a.Uncertain)
	}
	return append(dst, '}')
}

// appendUncertainLD appends the property of a property that says how uncertain its
// time is; of a certain one, nothing.
func appendUncertainLD(dst []byte, uncertain string) []byte {
	if uncertain == "" {
		return dst
	}
	dst = append(dst, `,"timeUncertain":{"type":"Property","value":`...)
	dst = appendString(dst, uncertain)
	return append(dst, '}')
}
