package sim

import (
	"iter"
	"math"
	"time"
)

// Conditions are the state of the room at one instant.
type Conditions struct {
	Temperature float64 // °C
	Humidity    float64 // %, relative
	Pressure    float64 // Pa
	CO2         float64 // ppm
	Illuminance float64 // lx, at the window-side desk
	Soil        float64 // %, volumetric water of the plant experiment
	Flow        float64 // L/min, at the room's tap
	People      int
	Motion      bool // the PIR's output
	DoorOpen    bool
}

// Room is the simulated world: one laboratory of a faculty at Settat, Morocco
// (33.0° N, 7.6° W, 370 m), with its timetable, its weather and its tap. All of
// it is a function of time: the same instant is the same room, on every run.
// Safe for concurrent use.
type Room struct {
	start, began time.Time // of the room's time and of ours
	speed        float64
}

// settat is UTC+0 all year since 20 September 2026, which a Pi's zone database
// may not know yet.
var settat = time.FixedZone("+00", 0)

// NewRoom returns a room whose clock shows start now and runs speed times as
// fast as ours. A speed that is no number above 0 counts as 1; the limit is a
// million.
func NewRoom(start time.Time, speed float64) *Room {
	if !(speed > 0) {
		speed = 1
	}
	return &Room{start: start.Round(0), began: time.Now(), speed: min(speed, 1e6)}
}

// Now is the room's time.
func (r *Room) Now() time.Time { return r.Time(time.Now()) }

// Time is the room's time at an instant of ours.
func (r *Room) Time(real time.Time) time.Time {
	// In seconds, not as a Duration: at full speed that would overflow in a day.
	s, frac := math.Modf(real.Sub(r.began).Seconds() * r.speed)
	return time.Unix(r.start.Unix()+int64(s), int64(r.start.Nanosecond())+int64(frac*1e9)).In(settat)
}

// Until is how long, in our time, it takes the room's clock to reach t: 0 or
// less if it has.
func (r *Room) Until(t time.Time) time.Duration {
	d := math.Ceil(float64(t.Sub(r.Now())) / r.speed)
	return time.Duration(max(math.MinInt64/2, min(d, math.MaxInt64/2)))
}

// At is the state of the room at an instant of its own time.
func (r *Room) At(t time.Time) Conditions { return conditions(t.UnixMilli()) }

// Air is the state of the room as it reaches one sensor, by our time, as the
// chips of this package take it.
type Air func(real time.Time) Conditions

// Air returns the air at one place of the room. Each place has noise of its
// own, of the order of what good chips resolve: 0.02 °C, 0.05 %, 1.5 Pa, 3 ppm,
// 0.3 %, 0.03 %.
func (r *Room) Air(place uint64) Air {
	return func(real time.Time) Conditions {
		t := r.Time(real).UnixMilli()
		c := conditions(t)
		n := uint64(0)
		noise := func(amplitude float64) float64 {
			n++
			return amplitude * (2*hash(place<<8+n, t) - 1)
		}
		c.Temperature += noise(0.02)
		c.Humidity += noise(0.05)
		c.Pressure += noise(1.5)
		c.CO2 += noise(3)
		c.Illuminance *= 1 + noise(0.003)
		c.Soil += noise(0.03)
		return c
	}
}

// Inside, time is in milliseconds since 1970, UTC.
const (
	second = 1000
	minute = 60 * second
	hour   = 60 * minute
	dayms  = 24 * hour
	zone   = 0 // UTC+0
)

// Seeds of what chance decides.
const (
	seedWeather uint64 = iota + 1
	seedDamp
	seedPressure
	seedCloud
	seedBreeze
	seedAir
	seedLecture
	seedAttendance
	seedGuard
	seedWatering
	seedDose
	seedMotion
	seedDoor
	seedTap
)

func conditions(t int64) Conditions {
	local := t + zone
	clock := float64(mod(local, dayms)) / hour // hours since midnight
	year := math.Mod(float64(local)/dayms/365.2425, 1)
	day := year * 365.2425 // since 1 January, to a day
	season := math.Cos(2 * math.Pi * (day - 205) / 365.2425)
	weather := drift(seedWeather, t, 50*hour)
	heads := occupancy(t)
	c := Conditions{
		People:   int(math.Round(heads)),
		Motion:   motion.active(t),
		DoorOpen: door.active(t),
	}

	// The walls pass a quarter of the outside's swing (10 °C in January, 26 °C in
	// July), late by hours; each person brings some 80 W.
	outside := 7.5*season + 2*math.Cos(2*math.Pi*(clock-18)/24) + 3*weather
	x := 0.25*outside + 0.075*lagged(t, 40*minute) + 0.2*drift(seedBreeze, t, 12*minute) + 0.06*drift(seedAir, t, 45*second)
	c.Temperature = 23 + 4*math.Tanh(x/4)

	// Vapour in hPa: the season's, the weather's, and what people breathe out.
	vapour := 12.4 + 3*season + 1.3*drift(seedDamp, t, 30*hour) + 0.12*lagged(t, 30*minute) + 0.12*drift(seedDamp+100, t, 9*minute) + 0.03*drift(seedDamp+200, t, 40*second)
	c.Humidity = 50 + 15*math.Tanh((100*vapour/saturation(c.Temperature)-50)/15)

	// Around 970 hPa, with the tide of the atmosphere (two crests a day, at 10 and 22).
	x = 350*drift(seedPressure, t, 40*hour) + 80*math.Cos(4*math.Pi*(clock-10)/24) + 12*drift(seedPressure+100, t, 20*minute) + 3*drift(seedPressure+200, t, 50*second)
	c.Pressure = 97000 + 500*math.Tanh(x/500)

	c.CO2 = 424 + 30*lagged(t, 45*minute) + 7*drift(seedAir+100, t, 11*minute) + 3*drift(seedAir+200, t, 70*second)

	// Daylight by the height of the sun (the equation of time left out), and
	// lamps while somebody is in and the daylight is poor.
	const latitude = 33.0 * math.Pi / 180
	declination := -23.44 * math.Pi / 180 * math.Cos(2*math.Pi*(day+10)/365.2425)
	angle := 2 * math.Pi * (clock - 1 - 7.6/15 - 12) / 24
	height := math.Sin(latitude)*math.Sin(declination) + math.Cos(latitude)*math.Cos(declination)*math.Cos(angle)
	sky := min(1, max(0.25, 0.7+0.35*drift(seedCloud, t, 150*minute)+0.08*drift(seedCloud+100, t, 6*minute)))
	daylight := 520 * math.Pow(max(0, height), 0.7) * sky
	lamps := 300 * min(1, heads) * min(1, max(0, (450-daylight)/200))
	c.Illuminance = (daylight + lamps) * (1 + 0.005*drift(seedAir+300, t, 25*second))

	c.Soil = soil(t) + 0.08*drift(seedAir+400, t, 15*minute)
	if from, to, rate := tap(div(t, tapSlot)); from <= t && t < to {
		c.Flow = rate
	}
	return c
}

// saturation is the vapour pressure of saturated air in hPa (Magnus).
func saturation(celsius float64) float64 {
	return 6.112 * math.Exp(17.62*celsius/(243.12+celsius))
}

// visit is n people in the room: they come between from and all, and leave
// between until and gone.
type visit struct {
	from, all, until, gone int64
	n                      float64
}

// visits are those of one day, counted from 1970 in local time.
func visits(day int64) iter.Seq[visit] {
	return func(yield func(visit) bool) {
		midnight := day*dayms - zone
		at := func(from, until int64, before, after int64, n float64) bool {
			return yield(visit{midnight + from - before, midnight + from + after, midnight + until, midnight + until + after, n})
		}
		weekday := mod(day+4, 7) // 1 January 1970 was a Thursday; Sunday is 0
		if water, ok := watering(day); ok && holiday(day) {
			// In August the guard waters the plants.
			if !at(water-midnight-minute, water-midnight+5*minute, minute, minute, 1) {
				return
			}
		}
		if !holiday(day) && weekday >= 1 && weekday <= 5 { // the technician
			if !at(8*hour, 12*hour+30*minute, minute, minute, 1) || !at(14*hour, 18*hour+15*minute, minute, minute, 1) {
				return
			}
		}
		chance := [7]float64{0, .8, .8, .8, .8, .65, .35}[weekday]
		for i, begin := range [4]int64{8*hour + 30*minute, 10*hour + 30*minute, 14 * hour, 16 * hour} {
			seed := seedLecture + uint64(i)<<32
			if weekday == 5 && i >= 2 {
				begin += 15 * minute // the Friday prayer
			}
			if holiday(day) || hash(seed, day) > chance || weekday == 6 && i > 1 {
				continue
			}
			n := 10 + math.Floor(16*hash(seedAttendance+uint64(i)<<32, day))
			if !at(begin, begin+100*minute, 8*minute, 5*minute, n) {
				return
			}
		}
		// The guard's round.
		round := 22*hour + 20*minute + int64(20*minute*hash(seedGuard, day))
		at(round, round+4*minute, minute, minute, 1)
	}
}

// holiday says whether the faculty is closed: in August.
func holiday(day int64) bool { return time.Unix(day*dayms/second, 0).UTC().Month() == time.August }

// occupancy is how many people are in: between whole numbers while somebody is
// at the door.
func occupancy(t int64) float64 {
	n := 0.0
	for v := range visits(div(t+zone, dayms)) {
		in := float64(t-v.from) / float64(v.all-v.from)
		out := float64(v.gone-t) / float64(v.gone-v.until)
		n += v.n * min(1, max(0, min(in, out)))
	}
	return n
}

// lagged is the occupancy behind a first-order lag: heat, vapour and carbon
// dioxide pile up and are aired away with time constant tau. In closed form: a
// visit is a sum of four ramps, and the answer of a lag to a ramp that began
// x ago is x - tau (1 - exp(-x/tau)).
func lagged(t int64, tau float64) float64 {
	ramp := func(x int64) float64 {
		if x <= 0 {
			return 0
		}
		return float64(x) + tau*math.Expm1(-float64(x)/tau)
	}
	today, n := div(t+zone, dayms), 0.0
	for day := today - 1; day <= today; day++ {
		for v := range visits(day) {
			n += v.n * ((ramp(t-v.from)-ramp(t-v.all))/float64(v.all-v.from) -
				(ramp(t-v.until)-ramp(t-v.gone))/float64(v.gone-v.until))
		}
	}
	return n
}

// watering is when the plants get water on a day: Mondays and Thursdays, for
// pouring milliseconds, beginning with a slot of the tap.
func watering(day int64) (t int64, ok bool) {
	weekday := mod(day+4, 7)
	return day*dayms - zone + 8*hour + 20*minute + tapSlot*int64(4*hash(seedWatering, day)), weekday == 1 || weekday == 4
}

const pouring = 4 * minute

// soil is its moisture: up to field capacity while water is poured, then
// drying towards the wilting point.
func soil(t int64) float64 {
	const wilting, tau = 20.5, 60 * hour
	drying := func(day, from int64, t int64) float64 {
		full := 41 + 3*hash(seedDose, day)
		return wilting + (full-wilting)*math.Exp(-float64(t-from)/tau)
	}
	day := div(t+zone, dayms)
	var began int64
	last := func() { // the watering of day or the last before it
		for ; ; day-- {
			if w, ok := watering(day); ok && w <= t {
				began = w
				return
			}
		}
	}
	last()
	ended := began + pouring
	if t >= ended {
		return drying(day, ended, t)
	}
	wet := drying(day, ended, ended)
	poured := float64(t-began) / pouring
	day--
	last()
	dry := drying(day, began+pouring, ended-pouring)
	return dry + (wet-dry)*poured
}

// tapSlot is the grid of the tap's uses: one use, at most, in each.
const tapSlot = 5 * minute

// tap is the use of the tap in a slot: rate in L/min, 0 if there is none. It
// ends within its slot.
func tap(slot int64) (from, to int64, rate float64) {
	from = slot * tapSlot
	if w, ok := watering(div(from+zone, dayms)); ok && w == from {
		return from, from + pouring, 2
	}
	if hash(seedTap, slot) > 0.5*min(1, occupancy(from+tapSlot/2)) {
		return 0, 0, 0
	}
	from += int64(4 * minute * hash(seedTap+100, slot))
	return from, from + int64(8*second+40*second*hash(seedTap+200, slot)), 3 + 5*hash(seedTap+300, slot)
}

// spells is a line that is active now and then: each slot of time holds one
// spell, at most, that starts in it and lasts for reach, at most.
type spells struct {
	slot, reach int64
	spell       func(slot int64) (from, to int64, ok bool)
}

// motion is the output of a PIR (HC-SR501 with its delay turned to 20 s,
// retriggered by each movement).
var motion = spells{10 * second, 20 * second, func(slot int64) (from, to int64, ok bool) {
	from = slot*10*second + int64(10*second*hash(seedMotion+100, slot))
	return from, from + 20*second, hash(seedMotion, slot) < -math.Expm1(-0.25*occupancy(from))
}}

// door opens when somebody comes or goes, and now and then in between.
var door = spells{20 * second, 20 * second, func(slot int64) (from, to int64, ok bool) {
	begin := slot * 20 * second
	was, is := occupancy(begin), occupancy(begin+20*second)
	from = begin + int64(10*second*hash(seedDoor+100, slot))
	to = from + int64(3*second+5*second*hash(seedDoor+200, slot))
	return from, to, math.Round(was) != math.Round(is) || hash(seedDoor, slot) < 0.01*min(1, is)
}}

func (s spells) active(t int64) bool {
	for k := div(t-s.reach, s.slot); k <= div(t, s.slot); k++ {
		if from, to, ok := s.spell(k); ok && from <= t && t < to {
			return true
		}
	}
	return false
}

// next is the line's first change after t. There always is one: the guard comes
// every night.
func (s spells) next(t int64) int64 {
	end := t // of the spell that covers t, as far as seen
	for k := div(t-s.reach, s.slot); ; k++ {
		if end > t && k*s.slot > end {
			return end
		}
		from, to, ok := s.spell(k)
		switch {
		case !ok:
		case from <= t || end > t && from <= end:
			end = max(end, to)
		case end > t:
			return end
		default:
			return from
		}
	}
}

// drift is a smooth wandering between -1 and 1: a value by chance at every
// multiple of every, and a curve with steady first and second derivative
// between.
func drift(seed uint64, t, every int64) float64 {
	k := div(t, every)
	x := float64(t-k*every) / float64(every)
	a, b := hash(seed, k), hash(seed, k+1)
	return 2*(a+(b-a)*x*x*x*(10+x*(6*x-15))) - 1
}

// hash is a number in [0, 1) that looks like chance (splitmix64).
func hash(seed uint64, k int64) float64 {
	z := seed*0xd1342543de82ef95 + uint64(k)*0x9e3779b97f4a7c15 + 0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	z ^= z >> 31
	return float64(z>>11) / (1 << 53)
}

// div and mod round towards minus infinity.
func div(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

func mod(a, b int64) int64 { return a - div(a, b)*b }
