package main

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"runtime"
	"runtime/debug"
	"strings"
	"text/tabwriter"

	"campus-gateway"
	"campus-gateway/drivers"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
)

// Set by the linker (see the Makefile).
var (
	version = "devel"
	commit  = ""
)

func newVersion() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print version, commit, Go and architecture",
		Example: "  gateway version\n  gateway version --json",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := struct {
				Version string `json:"version"`
				Commit  string `json:"commit"`
				Go      string `json:"go"`
				OS      string `json:"os"`
				Arch    string `json:"arch"`
			}{version, commit, runtime.Version(), runtime.GOOS, runtime.GOARCH}
			if b, ok := debug.ReadBuildInfo(); ok {
				for _, s := range b.Settings {
					if s.Key == "GOARM" {
						v.Arch += "v" + s.Value
					}
				}
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), v)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "gateway %s, commit %s, %s, %s/%s\n", v.Version, orUnknown(v.Commit), v.Go, v.OS, v.Arch)
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return cmd
}

// plural is a number of things: "1 sensor", "3 sensors".
func plural[N int | uint64](n N, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

func newCheck() *cobra.Command {
	return &cobra.Command{
		Use:   "check FILE",
		Short: "Check a configuration and show every fault at once",
		Long: `Checks a configuration file. Every fault is shown with its line, its column, the
line itself and what to write instead. Exit status 0: none.`,
		Example: "  gateway check gateway.yaml",
		Args:    exactly("the configuration file"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := loadConfig(args[0])
			if err == nil {
				err = c.whole()
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s is good: gateway %s, %s, %s\n", args[0], c.Gateway.ID, plural(len(c.Sensors), "sensor"), destinations(c))
			return nil
		},
	}
}

func newDrivers() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "drivers",
		Short:   "List the chips and lines this gateway can read",
		Example: "  gateway drivers\n  gateway drivers --json | jq -r '.[].name'",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), driverRows())
			}
			return driversTable(cmd.OutOrStdout())
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return cmd
}

type driverRow struct {
	Name         string             `json:"name"`
	Quantities   []gateway.Quantity `json:"quantities"`
	Bus          drivers.Kind       `json:"bus"`
	Addresses    []string           `json:"addresses"`
	Doc          string             `json:"doc"`
	Experimental bool               `json:"experimental"`
}

func driverRows() []driverRow {
	rows := []driverRow{}
	for _, d := range drivers.All() {
		r := driverRow{Name: d.Name, Quantities: d.Quantities, Bus: d.Kind, Addresses: []string{}, Doc: d.Doc, Experimental: d.Experimental}
		for _, a := range d.Addresses {
			r.Addresses = append(r.Addresses, fmt.Sprintf("%#02x", a))
		}
		rows = append(rows, r)
	}
	return rows
}

func driversTable(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tBUS\tADDRESS\tSENSES\tWHAT")
	for _, r := range driverRows() {
		doc := r.Doc
		if r.Experimental {
			doc += " (experimental)"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", r.Name, r.Bus, shorten(r.Addresses, 2), shorten(r.Quantities, 3), doc)
	}
	return t.Flush()
}

// shorten joins a list's first n entries and tells of the rest.
func shorten[T any](list []T, n int) string {
	var words []string
	for i, x := range list {
		if i == n && len(list) > n+1 {
			words = append(words, fmt.Sprintf("… %v", list[len(list)-1]))
			break
		}
		words = append(words, fmt.Sprint(x))
	}
	if len(words) == 0 {
		return "-"
	}
	return strings.Join(words, " ")
}

func newInit() *cobra.Command {
	return &cobra.Command{
		Use:     "init",
		Short:   "Print a configuration to start from",
		Long:    `Prints a commented configuration with every key, and an example for every driver.`,
		Example: "  gateway init > gateway.yaml",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := io.WriteString(cmd.OutOrStdout(), sample())
			return err
		},
	}
}

// starter is the configuration that a fresh install begins with: the package's, and
// that of gateway install.
//
//go:embed starter.yaml
var starter string

const sampleHead = `# The campus gateway. Check this file with: gateway check gateway.yaml
# Everything but the broker's URL has a default; what is commented out shows it.

gateway:
  id: gw-a101                    # of this gateway; default: the host name
  # site: indoor                 # indoor or outdoor: which data models fit
  location:                      # where it stands (WGS 84): most data models ask for it
    longitude: -7.62
    latitude: 33.00

broker:                          # or a list of several, each with a name: uplinks: [{name: campus, url: …}, …]
  url: http://orion.campus.example:1026
  # api: ngsi-v2                 # or ngsi-ld: which broker it is, the gateway asks (orion, orion-ld, scorpio and
  #                              # stellio say it); or iota-json: an IoT Agent over MQTT, see the end of this part
  # service: campus              # the tenant, NGSIv2 (Fiware-Service)
  # service_path: /              # NGSIv2 (Fiware-ServicePath)
  # tenant: campus               # NGSI-LD (NGSILD-Tenant)
  # auth:                        # a token is kept in a file or the environment, never here
  #   token_file: /etc/gateway/secrets/token
  #   token_env: GATEWAY_TOKEN   # one of the two
  #   header: bearer             # bearer, x-auth-token, or a header's name, such as X-Api-Key
  #   oauth2: {token_url: https://keyrock.campus.example/oauth2/token, client_id: …, client_secret_file: …}
  #                              # instead of a token; also grant: password (username, password_file)
  #                              # or refresh-token (refresh_token_file)
  # ca_file: /etc/gateway/ca.pem # a private certificate authority
  # cert_file: …                 # and key_file: our own certificate, where the broker asks for one
  # pin: [sha256/…]              # keys of which the broker's chain must have one
  # timeout: 30s                 # of one request
  # history: all                 # latest: after an outage only the newest state is sent, the backlog is passed over
  # linger: 200ms                # how long a reading waits for others, to go in one request
  # latency: 500ms               # that a request may have: batch and lanes are tuned to it, unless both are written
  # batch: 100                   # readings of a request, at most: 1..500
  # lanes: 1                     # requests at a time while a backlog is drained, at most: 1..8
  # rate: 64KiB                  # in a second, at most; unset: no limit
  # spread: 60s                  # over which a campus of gateways spreads its first tries after a lost connection
  # flow_control: false          # true for an Orion that runs with -notifFlowControl
  #
  # api: iota-json               # with url: mqtt://mqtt.campus.example:1883 (or mqtts://)
  # api_key_file: /etc/gateway/secrets/api-key   # of the agent's device group; or api_key_env
  # username: gw-a101            # and password_file or password_env, where the MQTT broker wants them
  # max_payload: 100000          # bytes of a message: no more than the MQTT broker takes
  # client_id: …                 # default: campus-gateway-<gateway id>-<name of the uplink>

log:                             # keeps readings while the broker is away
  # dir: /var/lib/gateway/log
  window: 1s                     # a reading acknowledged within it is never written to the card
  # max_size: 256MiB             # never exceeded
  # full: oldest                 # what a full log does: oldest drops the oldest readings, thin halves
                                 # their resolution again and again, newest refuses new ones
  # max_age: 0s                  # older readings are dropped; 0s: kept whatever their age
  # min_free_disk: 200MiB        # of the card, that the log leaves free

clock:                           # a Pi starts with a wrong clock: readings wait until it is set
  hold: 10m                      # so long at most while the broker can be reached; 0s: do not wait

live:
  http:
    # listen: 127.0.0.1:8080     # :8080 shows readings to the whole network; off
    listen: 127.0.0.1:8080

# contexts:                      # NGSI-LD: where the broker reads @contexts, if it has no internet
#   base: http://gw-a101.campus.example:8080/contexts   # this gateway's, or what gateway contexts has written
#   types: {AgriGreenhouse: "http://gw-a101.campus.example:8080/contexts/dataModel.Agrifood.jsonld"}   # for types of your own

sensors:
  # Every sensor has these keys. Further ones are its driver's.
  - name: room                   # yours, unique
    driver: bme280               # see: gateway drivers
    bus: i2c-1                   # I2C; default i2c-1
    address: 0x76                # I2C; default: the driver's first
    # shared: false              # I2C: talk to it although a kernel driver owns it
    # pin: GPIO17                # GPIO drivers, instead of bus and address
    # interval: 10s
    # site: indoor               # default: the gateway's
    # location: {longitude: -7.62, latitude: 33.00}
    # placement: northWall       # where in the room
    # parcel: urn:ngsi-ld:AgriParcel:field-1   # what a soil probe belongs to
    # parking: {site: north-lot, category: offStreet, occupied_below: 1500}   # of a ParkingSpot: mm
    # entity: {type: IndoorEnvironmentObserved, id: room-a101}   # several sensors may feed one
    # attributes:                # what is sent otherwise than the data model has it
    #   temperature: {name: airTemperature}                  # under another name
    #   pressure: {name: pressure, unit: KPA, scale: 1000}   # in another unit: 1000 Pa make one
    #   humidity: {skip: true}                               # not sent, only shown
`

// sample is a commented configuration: the head, and every driver with all its
// options, taken from the registry.
func sample() string {
	var b strings.Builder
	b.WriteString(sampleHead)
	for i, d := range drivers.All() {
		fmt.Fprintf(&b, "\n  # %s: %s\n", d.Name, d.Doc)
		fmt.Fprintf(&b, "  # - name: my-%s\n  #   driver: %s\n", d.Name, d.Name)
		if d.Kind == drivers.GPIO {
			fmt.Fprintf(&b, "  #   pin: GPIO%d\n", 4+i)
		} else {
			fmt.Fprintf(&b, "  #   bus: i2c-1\n  #   address: %#02x\n", d.Addresses[0])
		}
		for _, o := range optionLines(d) {
			b.WriteString("  #   " + o + "\n")
		}
	}
	return b.String()
}

// optionLines shows a driver's options with their defaults and meanings. One
// that is empty by default is shown as a remark: writing it out would set it.
func optionLines(d *drivers.Driver) []string {
	v := reflect.ValueOf(d.Options()).Elem()
	var lines []string
	for i := range v.NumField() {
		f := v.Type().Field(i)
		name, doc := f.Tag.Get("yaml"), f.Tag.Get("doc")
		if name == "" || name == "-" {
			continue
		}
		value, err := yaml.Marshal(v.Field(i).Interface())
		text := strings.TrimSpace(string(value))
		if err != nil || text == "null" || text == `""` || strings.Contains(text, "\n") {
			lines = append(lines, fmt.Sprintf("# %s: …   # %s", name, doc))
			continue
		}
		lines = append(lines, fmt.Sprintf("%s: %s   # %s", name, text, doc))
	}
	return lines
}
