package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"campus-gateway/buffer"
	"campus-gateway/drivers"
	"campus-gateway/ngsi"

	"go.yaml.in/yaml/v3"
)

// config is a valid configuration: what readConfig returns has every default
// filled in and every part checked.
type config struct {
	Gateway gatewayConfig `yaml:"gateway"`
	Broker  *uplinkConfig `yaml:"broker"` // one uplink; it is in Uplinks, too

	Uplinks []*uplinkConfig `yaml:"uplinks"`

	Log      logConfig      `yaml:"log"`
	Clock    clockConfig    `yaml:"clock"`
	Live     liveConfig     `yaml:"live"`
	Contexts contextsConfig `yaml:"contexts"`
	Sensors  []sensorConfig `yaml:"-"`

	source    []byte // that it was read from
	temporary bool   // the log is thrown away at the end

	absent *faults // files that it names and that cannot be read: their uplinks wait for them; nil: none
}

// whole is nil if every file is there that the configuration names.
func (c *config) whole() error {
	if c.absent == nil {
		return nil
	}
	return c.absent
}

type gatewayConfig struct {
	ID       string    `yaml:"id"`
	Site     string    `yaml:"site"` // indoor or outdoor
	Location *location `yaml:"location"`
}

// location is WGS 84. The names leave no doubt about the order.
type location struct {
	Longitude float64 `yaml:"longitude"`
	Latitude  float64 `yaml:"latitude"`
}

type logConfig struct {
	Dir     string        `yaml:"dir"`
	Window  time.Duration `yaml:"window"`
	MaxSize byteSize      `yaml:"max_size"`
	MinFree byteSize      `yaml:"min_free_disk"`
	MaxAge  time.Duration `yaml:"max_age"`
	Full    string        `yaml:"full"`
}

type clockConfig struct {
	Hold time.Duration `yaml:"hold"`
}

type liveConfig struct {
	HTTP httpConfig `yaml:"http"`
}

type httpConfig struct {
	Listen string `yaml:"listen"`
}

// sensorConfig is one sensor: what all sensors have, its driver, and the
// driver's own options, which stand among the other keys in the file.
type sensorConfig struct {
	Name       string                      `yaml:"name"`
	Driver     string                      `yaml:"driver"`
	Bus        string                      `yaml:"bus"`
	Address    uint16                      `yaml:"address"`
	Shared     bool                        `yaml:"shared"`
	Pin        string                      `yaml:"pin"`
	Interval   time.Duration               `yaml:"interval"`
	Site       string                      `yaml:"site"`
	Location   *location                   `yaml:"location"`
	Placement  string                      `yaml:"placement"`
	Parcel     string                      `yaml:"parcel"`
	Parking    *parkingConfig              `yaml:"parking"`
	Entity     entityConfig                `yaml:"entity"`
	Attributes map[string]*attributeConfig `yaml:"attributes"`

	driver  *drivers.Driver
	options any
}

type entityConfig struct {
	Type string `yaml:"type"`
	ID   string `yaml:"id"`
}

func (s *sensorConfig) place() drivers.Place {
	return drivers.Place{Bus: s.Bus, Address: s.Address, Shared: s.Shared, Pin: s.Pin}
}

// stateDir is where the log lives unless told otherwise: what systemd gives the
// service, else this system's folder.
func stateDir() string {
	if d := os.Getenv("STATE_DIRECTORY"); d != "" {
		return filepath.Join(d, "log")
	}
	return filepath.Join(homeDir(), "log")
}

func defaultConfig() config {
	host, _ := os.Hostname() // empty: then the id must be configured
	return config{
		Gateway: gatewayConfig{ID: host, Site: "indoor"},
		Log:     logConfig{Dir: stateDir(), Window: time.Second, MaxSize: 256 << 20, MinFree: 200 << 20, Full: string(buffer.DropOldest)},
		Clock:   clockConfig{Hold: 10 * time.Minute},
		Live:    liveConfig{HTTP: httpConfig{Listen: "127.0.0.1:8080"}},
	}
}

// loadConfig reads and checks a file. The error is a *faults with everything
// that is wrong, or says why the file cannot be read.
func loadConfig(file string) (*config, error) {
	f, err := os.Open(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: there is no such file: make one with `gateway init > %s`", file, file)
	}
	if errors.Is(err, os.ErrPermission) {
		return nil, fmt.Errorf("%w: use sudo; that the service may read it: `sudo chgrp gateway %s && sudo chmod 0640 %s`", err, file, file)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if i, err := f.Stat(); err == nil && i.IsDir() {
		return nil, fmt.Errorf("%s: this is a folder: name the YAML file in it", file)
	}
	src, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return readConfig(file, src)
}

// readConfig checks a configuration. file is its name in messages. What is wrong is
// an error, but for files that are named and not there: see whole.
func readConfig(file string, src []byte) (*config, error) {
	d := &decoder{faults: &faults{file: file}, nodes: map[any]*yaml.Node{}}
	if len(src) > maxFile {
		d.list = append(d.list, fault{line: 1, column: 1, text: fmt.Sprintf("the file is larger than %d MiB: this cannot be a configuration", maxFile>>20)})
		return nil, d.err()
	}
	root := d.parse(src)
	if root == nil {
		return nil, d.err()
	}
	c := defaultConfig()
	c.source = src
	var sensors struct {
		List yaml.Node `yaml:"sensors"`
	}
	d.document(root, &c, &sensors.List)
	d.gateway(root, &c.Gateway)
	d.uplinks(root, &c)
	d.log(root, &c.Log)
	d.clock(root, &c.Clock)
	d.live(root, &c.Live)
	if sensors.List.Kind != 0 {
		d.sensors(&sensors.List, &c)
	}
	d.contexts(root, &c)
	if slices.ContainsFunc(d.list, func(x fault) bool { return !x.absent }) {
		return nil, d.faults
	}
	if len(d.list) > 0 {
		c.absent = d.faults
	}
	return &c, nil
}

// document decodes all but the sensors, whose keys depend on their drivers.
func (d *decoder) document(root *yaml.Node, c *config, sensors *yaml.Node) {
	if root.Kind == yaml.MappingNode {
		rest := *root
		rest.Content = nil
		for i := 0; i+1 < len(root.Content); i += 2 {
			if root.Content[i].Value == "sensors" && sensors.Kind == 0 {
				*sensors = *root.Content[i+1]
				continue
			}
			rest.Content = append(rest.Content, root.Content[i], root.Content[i+1])
		}
		root = &rest
	}
	before := len(d.list)
	d.mapping(root, "", false, c)
	for i := before; i < len(d.list); i++ { // "sensors" is known too, but not to config's tags
		if x := &d.list[i]; x.path == "sensors" {
			x.text = "the key is here a second time: keep one"
		} else if strings.HasPrefix(x.text, "unknown key") && !strings.Contains(x.path, ".") {
			x.text = "unknown key" + suggest(x.path, []string{"broker", "clock", "contexts", "gateway", "live", "log", "sensors", "uplinks"})
		}
	}
}

// Ids become parts of entity ids: letters, digits and these travel through
// every broker as they are.
var plainID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

func (d *decoder) gateway(root *yaml.Node, g *gatewayConfig) {
	at := d.at(&g.ID, root)
	if g.ID == "" {
		d.addf(at, "gateway.id", "the machine has no host name: write an id, such as gw-a101")
	} else if !plainID.MatchString(g.ID) {
		d.addf(at, "gateway.id", "%q: want up to 64 letters, digits, and . _ - inside, such as gw-a101", g.ID)
	}
	d.oneOf(&g.Site, root, "gateway.site", "indoor", "outdoor")
	d.location(g.Location, root, "gateway.location")
}

func (d *decoder) location(l *location, n *yaml.Node, path string) {
	if l == nil {
		return
	}
	if l.Longitude < -180 || l.Longitude > 180 {
		d.addf(d.at(&l.Longitude, n), path+".longitude", "%v is outside -180..180 (Settat lies at -7.62)", l.Longitude)
	}
	if l.Latitude < -90 || l.Latitude > 90 {
		d.addf(d.at(&l.Latitude, n), path+".latitude", "%v is outside -90..90 (Settat lies at 33.00)", l.Latitude)
	}
}

// oneOf checks a word against the words allowed.
func (d *decoder) oneOf(v *string, n *yaml.Node, path string, words ...string) {
	if !slices.Contains(words, *v) {
		d.addf(d.at(v, n), path, "%q is not one of %s", *v, strings.Join(words, ", "))
	}
}

func (d *decoder) log(root *yaml.Node, l *logConfig) {
	if l.Dir == "" {
		d.addf(d.at(&l.Dir, root), "log.dir", "there is no folder: remove the key to have the default")
	}
	if l.Window < 0 || l.Window > time.Minute {
		d.addf(d.at(&l.Window, root), "log.window", "%v is outside 0s..1m", l.Window)
	}
	if l.MaxSize < 8<<20 || l.MaxSize > 1<<30 {
		d.addf(d.at(&l.MaxSize, root), "log.max_size", "want between 8MiB and 1GiB")
	}
	if l.MaxAge < 0 || l.MaxAge > 0 && l.MaxAge < time.Minute {
		d.addf(d.at(&l.MaxAge, root), "log.max_age", "%v is less than a minute; 0s keeps readings of any age, 2160h three months", l.MaxAge)
	}
	d.oneOf(&l.Full, root, "log.full", string(buffer.DropOldest), string(buffer.ThinOldest), string(buffer.DropNewest))
}

func (d *decoder) clock(root *yaml.Node, c *clockConfig) {
	if c.Hold < 0 || c.Hold > 30*24*time.Hour {
		d.addf(d.at(&c.Hold, root), "clock.hold", "%v is outside 0s..720h", c.Hold)
	}
}

func (d *decoder) live(root *yaml.Node, l *liveConfig) {
	if err := checkListen(l.HTTP.Listen); err != nil {
		d.addf(d.at(&l.HTTP.Listen, root), "live.http.listen", "%v", err)
	}
}

// checkListen accepts host:port, :port, and "off".
func checkListen(s string) error {
	if s == "off" {
		return nil
	}
	_, port, err := net.SplitHostPort(s)
	if err == nil {
		_, err = net.LookupPort("tcp", port)
	}
	if err != nil {
		return fmt.Errorf("%q: want an address and a port, such as 127.0.0.1:8080, or off", s)
	}
	return nil
}

var i2cBus = regexp.MustCompile(`^i2c-\d{1,3}$`)

func (d *decoder) sensors(list *yaml.Node, c *config) {
	n, ok := d.resolve(list, "sensors")
	if !ok || n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return
	}
	if n.Kind != yaml.SequenceNode {
		d.addf(n, "sensors", "want a list, each sensor behind a `-`, got %s", kindOf(n))
		return
	}
	names, places := map[string]int{}, map[string]int{}
	var sound []placed
	for i, item := range n.Content {
		path := fmt.Sprintf("sensors[%d]", i)
		item, ok := d.resolve(item, path)
		if !ok {
			return
		}
		before := len(d.list)
		s := d.sensor(item, path, c)
		if s == nil {
			continue
		}
		if len(d.list) == before {
			sound = append(sound, placed{item, path, s.thing(c)})
		}
		if first, twice := names[s.Name]; twice && s.Name != "" {
			d.addf(d.at(&s.Name, item), path+".name", "%q is the name of the sensor on line %d already: each needs its own", s.Name, first)
		} else {
			names[s.Name] = item.Line
		}
		if s.driver != nil {
			if first, twice := places[s.spot()]; twice && s.spot() != "" {
				d.addf(item, path, "the sensor on line %d is attached at %s already", first, s.spot())
			} else {
				places[s.spot()] = item.Line
			}
		}
		c.Sensors = append(c.Sensors, *s)
	}
	d.conflicts(sound)
}

// spot is where a sensor is attached, in words; empty while that is not known.
func (s *sensorConfig) spot() string {
	if s.driver.Kind == drivers.GPIO {
		return s.Pin
	}
	if s.Address == 0 {
		return ""
	}
	spot := fmt.Sprintf("%s address %#02x", s.Bus, s.Address)
	if part := s.driver.Part(s.options); part != "" {
		spot += " channel " + part
	}
	return spot
}

const (
	shortestInterval = 100 * time.Millisecond
	longestInterval  = 24 * time.Hour
)

// sensor decodes and checks one sensor; nil if it is not even a mapping.
func (d *decoder) sensor(n *yaml.Node, path string, c *config) *sensorConfig {
	s := &sensorConfig{Bus: "i2c-1", Interval: 10 * time.Second, Site: c.Gateway.Site, Location: c.Gateway.Location}
	if n.Kind != yaml.MappingNode {
		d.mapping(n, path, false, s)
		return nil
	}
	if name := key(n, "driver"); name != nil {
		s.driver, _ = drivers.Lookup(name.Value)
	}
	if s.driver == nil {
		d.mapping(n, path, true, s)
		if s.Driver == "" {
			d.addf(n, path+".driver", "there is no driver: write one of %s", strings.Join(driverNames(), ", "))
		} else {
			d.addf(d.at(&s.Driver, n), path+".driver", "unknown driver %q%s", s.Driver, suggest(s.Driver, driverNames()))
		}
		return s
	}
	s.options = s.driver.Options()
	d.mapping(n, path, false, s, s.options)
	if s.Name == "" {
		d.addf(d.at(&s.Name, n), path+".name", "the sensor needs a name, such as room-temperature")
	} else if utf8.RuneCountInString(s.Name) > 64 || strings.ContainsFunc(s.Name, unicode.IsControl) {
		d.addf(d.at(&s.Name, n), path+".name", "want up to 64 characters, none of them a control character")
	}
	d.attachment(n, path, s)
	if s.Interval < shortestInterval || s.Interval > longestInterval {
		d.addf(d.at(&s.Interval, n), path+".interval", "%v is outside %v..24h", s.Interval, shortestInterval)
	}
	d.oneOf(&s.Site, n, path+".site", "indoor", "outdoor")
	if key(n, "location") != nil {
		d.location(s.Location, n, path+".location")
	}
	for _, err := range s.driver.Check(s.options) {
		at, field := n, path
		if o, ok := errors.AsType[*drivers.OptionError](err); ok {
			if v := key(n, o.Field); v != nil {
				at = v
			}
			field, err = join(path, o.Field), errors.New(o.Reason)
		}
		d.addf(at, field, "%v", err)
	}
	if !d.attributes(n, path, s, c) {
		return s
	}
	if err := ngsi.Check(s.thing(c)); err != nil {
		at := n
		if e := key(n, "entity"); e != nil {
			at = e
		}
		d.addf(at, path, "%v", err)
	}
	return s
}

// attachment checks bus, address and pin against what the driver needs.
func (d *decoder) attachment(n *yaml.Node, path string, s *sensorConfig) {
	if s.driver.Kind == drivers.GPIO {
		for _, k := range []string{"bus", "address", "shared"} {
			if v := key(n, k); v != nil {
				d.addf(v, path+"."+k, "a %s is attached to a GPIO line: remove this, and write `pin: GPIO17`", s.Driver)
			}
		}
		if s.Pin == "" {
			d.addf(n, path+".pin", "there is no pin: write the line's name, such as GPIO17")
		}
		return
	}
	if v := key(n, "pin"); v != nil {
		d.addf(v, path+".pin", "a %s is attached to an I2C bus: remove this, and write `bus: i2c-1`", s.Driver)
	}
	if !i2cBus.MatchString(s.Bus) {
		d.addf(d.at(&s.Bus, n), path+".bus", "%q: want i2c-1, or another that `ls /dev/i2c-*` shows", s.Bus)
	}
	switch addresses := s.driver.Addresses; {
	case key(n, "address") == nil:
		s.Address = addresses[0]
	case s.Address < 0x08 || s.Address > 0x77:
		d.addf(d.at(&s.Address, n), path+".address", "%#02x is outside 0x08..0x77: a %s answers at %s", s.Address, s.Driver, hexList(addresses))
		s.Address = 0
	case !slices.Contains(addresses, s.Address):
		d.addf(d.at(&s.Address, n), path+".address", "%#02x: a %s answers at %s", s.Address, s.Driver, hexList(addresses))
	}
}

func hexList(addresses []uint16) string {
	words := make([]string, len(addresses))
	for i, a := range addresses {
		words[i] = fmt.Sprintf("%#02x", a)
	}
	return strings.Join(words, ", ")
}

func driverNames() []string {
	var names []string
	for _, d := range drivers.All() {
		names = append(names, d.Name)
	}
	return names
}

// thing is what ngsi is told of a sensor.
func (s *sensorConfig) thing(c *config) ngsi.Thing {
	t := ngsi.Thing{
		Name: s.Name, Driver: s.driver.Name, Doc: s.driver.Doc, Quantities: s.driver.Senses(s.options),
		EntityType: s.Entity.Type, EntityID: s.Entity.ID, Attributes: s.wanted(), Parking: s.Parking.thing(),
		Outdoor: s.Site == "outdoor", Placement: s.Placement, Parcel: s.Parcel, Interval: s.Interval,
	}
	if s.Location != nil {
		t.Location = &[2]float64{s.Location.Longitude, s.Location.Latitude}
	}
	return t
}
