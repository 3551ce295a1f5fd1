package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"campus-gateway"
	"campus-gateway/ngsi"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
)

// This file is how readings become entities otherwise than the data models would
// have it: attributes of a sensor, sensors that share an entity, @contexts.

// attributeConfig is one of a sensor's attributes, under its quantity's name.
type attributeConfig struct {
	Name     string  `yaml:"name"`
	Unit     string  `yaml:"unit"`     // UN/CEFACT code
	Scale    float64 `yaml:"scale"`    // how many of the gateway's units make one of the attribute's
	Decimals *int    `yaml:"decimals"` // kept
	Skip     bool    `yaml:"skip"`     // not sent
}

// parkingConfig is what a ParkingSpot has beside its distance sensor.
type parkingConfig struct {
	Site          string  `yaml:"site"`
	Category      string  `yaml:"category"`       // onStreet or offStreet
	OccupiedBelow float64 `yaml:"occupied_below"` // mm
}

func (p *parkingConfig) thing() *ngsi.Parking {
	if p == nil {
		return nil
	}
	return &ngsi.Parking{Site: p.Site, Category: p.Category, Below: p.OccupiedBelow}
}

// contextsConfig is where a broker finds @contexts, other than at their official
// places.
type contextsConfig struct {
	Base  string            `yaml:"base"`  // of the files that `gateway contexts` writes
	Types map[string]string `yaml:"types"` // URLs for types of one's own
}

// urls are what ngsi is told.
func (c *contextsConfig) urls() map[string]string {
	all := ngsi.ContextsAt(c.Base)
	for typ, at := range c.Types {
		all[typ] = at
	}
	return all
}

// wanted is what ngsi is told of the sensor's attributes.
func (s *sensorConfig) wanted() map[gateway.Quantity]ngsi.Attribute {
	if len(s.Attributes) == 0 {
		return nil
	}
	all := map[gateway.Quantity]ngsi.Attribute{}
	for q, a := range s.Attributes {
		if a == nil { // its fault is told already
			continue
		}
		all[gateway.Quantity(q)] = ngsi.Attribute(*a)
	}
	return all
}

// attributes checks a sensor's attributes, and that a type of one's own has an
// @context where that is needed. It reports whether they are sound.
func (d *decoder) attributes(n *yaml.Node, path string, s *sensorConfig, c *config) bool {
	t := s.thing(c)
	list := key(n, "attributes")
	if list == nil || len(t.Attributes) == 0 {
		return true
	}
	if r, ok := d.resolve(list, path); ok {
		list = r
	}
	before := len(d.list)
	for i := 0; i+1 < len(list.Content); i += 2 {
		q := list.Content[i].Value
		if scale := key(list.Content[i+1], "scale"); scale != nil && t.Attributes[gateway.Quantity(q)].Scale == 0 {
			d.addf(scale, join(path, "attributes")+"."+q+".scale", "0 makes nothing of a value: write how many %s make one of the attribute's unit, or remove it", cmp.Or(gateway.Quantity(q).Unit(), "ones"))
		}
	}
	for _, err := range ngsi.CheckAttributes(t) {
		at, field := list, join(path, "attributes")
		if a, ok := errors.AsType[*ngsi.AttributeError](err); ok {
			field, err = join(field, string(a.Quantity)), errors.New(a.Reason)
			for i := 0; i+1 < len(list.Content); i += 2 {
				if list.Content[i].Value == string(a.Quantity) {
					at = list.Content[i]
					if v := key(list.Content[i+1], a.Field); a.Field != "" && v != nil {
						at = v
					}
				}
			}
			if a.Field != "" {
				field = join(field, a.Field)
			}
			if !a.Quantity.Known() {
				err = fmt.Errorf("unknown quantity%s", suggest(string(a.Quantity), words(t.Quantities)))
			}
		}
		d.addf(at, field, "%v", err)
	}
	sound := len(d.list) == before
	if typ := t.EntityType; ngsi.Foreign(typ) && slices.ContainsFunc(c.Uplinks, (*uplinkConfig).linked) && c.Contexts.Types[typ] == "" {
		d.addf(d.at(&s.Entity.Type, n), join(path, "entity.type"), "NGSI-LD needs the @context of %s: write its URL under contexts, as `types: {%s: https://…}`", typ, typ)
	}
	return sound
}

func words(qs []gateway.Quantity) []string {
	all := make([]string, len(qs))
	for i, q := range qs {
		all[i] = string(q)
	}
	return all
}

// placed is a sensor without a fault, and where it is written.
type placed struct {
	node  *yaml.Node
	path  string
	thing ngsi.Thing
}

// conflicts tells of sensors that feed one entity and contradict each other.
func (d *decoder) conflicts(sound []placed) {
	things := make([]ngsi.Thing, len(sound))
	for i, p := range sound {
		things[i] = p.thing
	}
	for _, x := range ngsi.Conflicts(things) {
		second, at := sound[x.Second], sound[x.Second].node
		if e := key(at, "entity"); e != nil {
			at = e
		}
		d.addf(at, join(second.path, "entity"), "this sensor and the one on line %d (%s) %s", sound[x.First].node.Line, things[x.First].Name, x.Reason)
	}
}

// contexts checks where @contexts are.
func (d *decoder) contexts(root *yaml.Node, c *config) {
	section := key(root, "contexts")
	if c.Contexts.Base != "" {
		d.contextURL(d.at(&c.Contexts.Base, root), "contexts.base", c.Contexts.Base)
	}
	for _, typ := range sortedKeys(c.Contexts.Types) {
		at := section
		if types := key(section, "types"); types != nil && key(types, typ) != nil {
			at = key(types, typ)
		}
		d.contextURL(at, join("contexts.types", typ), c.Contexts.Types[typ])
	}
}

func (d *decoder) contextURL(at *yaml.Node, path, text string) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		d.addf(at, path, "%q: want a URL that the broker can reach, such as http://gw-a101.campus.example:8080/contexts", text)
	case u.User != nil || strings.ContainsAny(text, "<>\"'\\ \t\n?#"):
		d.addf(at, path, "want a plain URL: no user, no blanks, nothing after ? or #")
		d.list[len(d.list)-1].secret = u.User != nil
	}
}

func newContexts() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "contexts",
		Short: "List or write the @context files that a broker needs",
		Long: `Lists the official @context files of the data models, or writes them to a folder
for a web server near the broker. The gateway serves them too, at /contexts/ of
its HTTP address. The configuration names either as contexts.base. A broker
without the internet cannot read them at their official place.`,
		Example: "  gateway contexts\n  gateway contexts --out /var/www/html/contexts",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			files, err := fs.ReadDir(ngsi.Contexts(), ".")
			if err != nil {
				return err
			}
			if dir != "" {
				if err := os.MkdirAll(dir, 0o755); err != nil {
					return err
				}
			}
			for _, f := range files {
				path := f.Name()
				if dir != "" {
					b, err := fs.ReadFile(ngsi.Contexts(), path)
					if err != nil {
						return err
					}
					path = filepath.Join(dir, path)
					if err := os.WriteFile(path, b, 0o644); err != nil {
						return err
					}
				}
				if _, err := fmt.Fprintln(cmd.OutOrStdout(), path); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "out", "", "write them into this `FOLDER`")
	return cmd
}

// thisMachine is what the gateway's own Device says of the machine.
func thisMachine() ngsi.Host {
	h := ngsi.Host{Software: version}
	if b, err := os.ReadFile("/etc/os-release"); err == nil {
		h.OS = osName(string(b))
	}
	if b, err := os.ReadFile("/sys/firmware/devicetree/base/serial-number"); err == nil { // a Pi's
		h.Serial = strings.Trim(string(b), "\x00\n ")
	}
	return h
}

// osName is PRETTY_NAME of os-release(5).
func osName(release string) string {
	for line := range strings.Lines(release) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); ok {
			return strings.Trim(name, `"'`)
		}
	}
	return ""
}
