package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"

	"campus-gateway/ngsi"

	"github.com/spf13/cobra"
)

// provisioning is what a new Pi is told on its card. Every value is checked before
// anything is written; a secret is never among the flags' values.
type provisioning struct {
	ID          string // of the gateway, and host name of the Pi
	Broker      string
	API         string
	Service     string
	ServicePath string
	Tenant      string
	Location    string // longitude,latitude; empty: none
	User        string
	KeyFile     string // ssh public keys; empty: no user is made
	Timezone    string
	Deb         string // URL of the package; empty: it lies on the boot partition
	SHA256      string
	TokenFile   string // on the Pi
	EmbedToken  string // file here, whose token goes onto the card
	Bookworm    bool
}

func newProvision() *cobra.Command {
	var p provisioning
	cmd := &cobra.Command{
		Use:   "provision",
		Short: "Print the first-boot file that makes a fresh Pi a gateway",
		Long: `Prints the file that Raspberry Pi OS reads from the card's boot partition at its
first boot, so that the Pi comes up as a gateway: host name, I2C and 1-Wire,
package and configuration, and a user who may log in by ssh. For Raspberry Pi OS
13 (Trixie) it is cloud-init's user-data; with --bookworm it is firstrun.sh for
Raspberry Pi OS 12.

The network is left alone: set up Wi-Fi in Raspberry Pi Imager (2.0 or later for
Trixie), which writes network-config, and replace only user-data. The package,
gateway_…_arm64.deb or gateway_…_armhf.deb, goes beside the file, unless --deb
tells where to get it. The Pi installs it, reboots once, and writes what it did
to gateway-first-boot.log on the boot partition.

A token is best copied to the Pi afterwards: --token-file names its place there.`,
		Example: `  gateway provision --id gw-a101 --broker http://orion.campus.example:1026 \
      --location -7.62,33.00 --timezone Africa/Casablanca \
      --ssh-key ~/.ssh/id_ed25519.pub > user-data
  gateway provision --id gw-a101 --broker http://orion.campus.example:1026 \
      --ssh-key ~/.ssh/id_ed25519.pub --bookworm > firstrun.sh`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, next, err := p.render()
			if err != nil {
				return err
			}
			if _, err := io.WriteString(cmd.OutOrStdout(), text); err != nil {
				return err
			}
			for _, line := range next {
				fmt.Fprintln(cmd.ErrOrStderr(), line)
			}
			return nil
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&p.ID, "id", "", "the gateway's `id`, which becomes the Pi's host name, too")
	fl.StringVar(&p.Broker, "broker", "", "the broker's `URL`")
	fl.StringVar(&p.API, "api", "", "ngsi-v2 (default), ngsi-ld, orion, orion-ld, scorpio or stellio")
	fl.StringVar(&p.Service, "service", "", "the tenant, NGSIv2 (Fiware-Service)")
	fl.StringVar(&p.ServicePath, "service-path", "", "NGSIv2 (Fiware-ServicePath)")
	fl.StringVar(&p.Tenant, "tenant", "", "the tenant, NGSI-LD (NGSILD-Tenant)")
	fl.StringVar(&p.Location, "location", "", "where it stands: `longitude,latitude` (WGS 84)")
	fl.StringVar(&p.User, "user", "pi", "the `name` of the user who may log in by ssh, and use sudo")
	fl.StringVar(&p.KeyFile, "ssh-key", "", "the `file` of that user's public key, such as ~/.ssh/id_ed25519.pub")
	fl.StringVar(&p.Timezone, "timezone", "Etc/UTC", "the Pi's time `zone`, for its log; readings are sent in UTC anyway")
	fl.StringVar(&p.Deb, "deb", "", "the package's `URL`, if it does not lie on the card; with --sha256")
	fl.StringVar(&p.SHA256, "sha256", "", "the package's SHA-256 `sum`, as SHA256SUMS shows it")
	fl.StringVar(&p.TokenFile, "token-file", "", "the `path` on the Pi of the broker's token, such as "+tokenPath)
	fl.StringVar(&p.EmbedToken, "embed-token-file", "", "the `file` here of the broker's token, to be written onto the card, where everybody who holds it can read it")
	fl.BoolVar(&p.Bookworm, "bookworm", false, "firstrun.sh for Raspberry Pi OS 12, instead of user-data for 13")
	return cmd
}

// tokenPath is where a token is kept on the Pi: systemd hands the daemon the files of
// that folder.
const tokenPath = "/etc/gateway/secrets/token"

var (
	hostName   = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)
	userName   = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)
	zoneName   = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2}$`)
	sha256Sum  = regexp.MustCompile(`^[0-9a-fA-F]{64}$`)
	secretPath = regexp.MustCompile(`^/etc/gateway/secrets/[A-Za-z0-9][A-Za-z0-9_-]*$`)
	// A public key: its kind, itself, and perhaps a comment. Options before it, which
	// could run commands, are not taken.
	publicKey = regexp.MustCompile(`^(ssh-(ed25519|rsa)|ecdsa-sha2-nistp(256|384|521)|sk-(ssh-ed25519|ecdsa-sha2-nistp256)@openssh\.com) [A-Za-z0-9+/]{32,}={0,3}( .*)?$`)
)

// render returns the file, and what a person has to know and do next.
func (p provisioning) render() (text string, next []string, err error) {
	switch {
	case p.ID == "":
		err = errors.New("--id is missing: the gateway's name, such as --id gw-a101")
	case !hostName.MatchString(p.ID):
		err = fmt.Errorf("--id %q: it becomes a host name: want up to 63 letters, digits, and - inside, such as gw-a101", p.ID)
	case p.Broker == "":
		err = errors.New("--broker is missing: the broker's URL, such as --broker http://orion.campus.example:1026")
	case p.API == iotaJSON:
		err = fmt.Errorf("--api %s: its API key and MQTT login are written into the configuration by hand: see `gateway init`", iotaJSON)
	case !userName.MatchString(p.User) || p.User == "root" || p.User == "gateway":
		err = fmt.Errorf("--user %q: want up to 32 lower-case letters, digits and -, and neither root nor gateway, which is the service's", p.User)
	case !zoneName.MatchString(p.Timezone):
		err = fmt.Errorf("--timezone %q: want a name of the time zone database, such as Africa/Casablanca", p.Timezone)
	case p.TokenFile != "" && p.EmbedToken != "":
		err = errors.New("--token-file and --embed-token-file: keep one of the two")
	case p.TokenFile != "" && !secretPath.MatchString(p.TokenFile):
		err = errors.New("--token-file: want the path on the Pi, such as " + tokenPath + "; the service is handed the files of that folder and no others. The token itself is never written here")
	case (p.Deb == "") != (p.SHA256 == ""):
		err = errors.New("--deb and --sha256 belong together: SHA256SUMS beside the package has its sum")
	case p.Deb != "" && p.Bookworm:
		err = errors.New("--deb with --bookworm: at its first boot it has no network yet: copy the package beside firstrun.sh instead")
	case p.Deb != "":
		err = checkDeb(p.Deb, p.SHA256)
	}
	if err != nil {
		return "", nil, usage(err)
	}
	keys, err := readKeys(p.KeyFile)
	if err != nil {
		return "", nil, usage(fmt.Errorf("--ssh-key: %w", err))
	}
	var token string
	if p.EmbedToken != "" {
		if token, err = (ngsi.Secret{File: p.EmbedToken}).Token(); err != nil {
			return "", nil, usage(fmt.Errorf("--embed-token-file: %w", err))
		}
		p.TokenFile = tokenPath
	}
	conf, err := p.configuration()
	if err != nil {
		return "", nil, err
	}
	if p.Bookworm {
		text = p.firstRun(conf, keys, token)
	} else {
		text = p.userData(conf, keys, token)
	}
	return text, p.next(keys, token), nil
}

func checkDeb(deb, sum string) error {
	if !sha256Sum.MatchString(sum) {
		return errors.New("--sha256: want the 64 digits that SHA256SUMS shows for the package")
	}
	u, err := url.Parse(deb)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || strings.ContainsFunc(deb, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return errors.New("--deb: want http:// or https:// and no user or blank in it, such as https://files.campus.example/gateway_1.0.0_arm64.deb")
	}
	return nil
}

// readKeys reads a file of public keys, one a line.
func readKeys(file string) ([]string, error) {
	if file == "" {
		return nil, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return nil, err
	}
	var keys []string
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line[0] == '#':
		case strings.Contains(line, "PRIVATE KEY"):
			return nil, fmt.Errorf("%s is a private key, which stays here: name the public one, %s.pub", file, file)
		case !publicKey.MatchString(line) || strings.ContainsFunc(line, func(r rune) bool { return !strconv.IsPrint(r) || r == '\ufffd' }):
			return nil, fmt.Errorf("%s: a line of it is no public key: want what ssh-keygen writes, such as `ssh-ed25519 AAAA… name`", file)
		default:
			keys = append(keys, line)
		}
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%s: there is no public key in it", file)
	}
	return keys, nil
}

// provisionFlags tells by which flag a value came into the configuration.
var provisionFlags = map[string]string{
	"gateway.id": "id", "gateway.location.longitude": "location", "gateway.location.latitude": "location", "broker.url": "broker", "broker.api": "api",
	"broker.service": "service", "broker.service_path": "service-path", "broker.tenant": "tenant",
}

// configuration is the gateway's, checked as the daemon on the Pi will check it but
// for the token's file, which is there and not here.
func (p provisioning) configuration() (string, error) {
	var b strings.Builder
	b.WriteString("# Made by `gateway provision`. Every key there is: gateway init\n" +
		"# After a change: sudo gateway check /etc/gateway/gateway.yaml && sudo systemctl reload gateway\n")
	fmt.Fprintf(&b, "gateway:\n  id: %s\n", yamlString(p.ID))
	if p.Location != "" {
		lon, lat, _ := strings.Cut(p.Location, ",")
		x, err1 := strconv.ParseFloat(strings.TrimSpace(lon), 64)
		y, err2 := strconv.ParseFloat(strings.TrimSpace(lat), 64)
		if err1 != nil || err2 != nil {
			return "", usage(fmt.Errorf("--location %q: want longitude,latitude in degrees, such as -7.62,33.00", p.Location))
		}
		fmt.Fprintf(&b, "  location: {longitude: %s, latitude: %s}\n", strconv.FormatFloat(x, 'f', -1, 64), strconv.FormatFloat(y, 'f', -1, 64))
	}
	b.WriteString("broker:\n")
	for _, k := range []struct{ key, value string }{{"url", p.Broker}, {"api", p.API}, {"service", p.Service}, {"service_path", p.ServicePath}, {"tenant", p.Tenant}} {
		if k.value != "" {
			fmt.Fprintf(&b, "  %s: %s\n", k.key, yamlString(k.value))
		}
	}
	live := "live:\n  http:\n    listen: \":8080\"   # readings are shown to the whole network; 127.0.0.1:8080: to this machine alone\n" +
		"# sensors:                # what is plugged in: gateway drivers\n#   - {name: room, driver: bme280, bus: i2c-1}\n"
	if _, err := readConfig("gateway.yaml", []byte(b.String()+live)); err != nil {
		f, ok := errors.AsType[*faults](err)
		if !ok {
			return "", err
		}
		var all []string
		for _, x := range f.list {
			all = append(all, fmt.Sprintf("--%s: %s", cmp.Or(provisionFlags[x.path], x.path), x.text))
		}
		return "", usage(errors.New(strings.Join(all, "; ")))
	}
	if p.TokenFile != "" {
		fmt.Fprintf(&b, "  auth:\n    token_file: %s\n", yamlString(p.TokenFile))
	}
	return b.String() + live, nil
}

// yamlString quotes a string for YAML, in ASCII: every escape that Go writes is
// YAML's, too.
func yamlString(s string) string { return strconv.QuoteToASCII(s) }

// shString quotes a string for sh.
func shString(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// indented sets every line of a text in, except empty ones.
func indented(text, by string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if line != "\n" {
			b.WriteString(by)
		}
		b.WriteString(line)
	}
	return b.String()
}

// next is what stands on standard error.
func (p provisioning) next(keys []string, token string) (lines []string) {
	name := "user-data"
	if p.Bookworm {
		name = "firstrun.sh"
	}
	say := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	if token != "" {
		say("Warning: the token is in this file as it is: whoever holds the card, or the file, can read it. Afterwards remove both copies, and on the Pi cloud-init's, below /var/lib/cloud/instances.")
	}
	if len(keys) == 0 {
		say("Warning: without --ssh-key nobody can log in to the Pi, until somebody makes a user at its console.")
	}
	say("Next:")
	say("  1. copy it to the card's boot partition, as %s (in the place of the one that is there)", name)
	if p.Deb == "" {
		say("  2. copy the package beside it: gateway_…_arm64.deb, or gateway_…_armhf.deb for a 32-bit system")
	}
	if p.Bookworm {
		say("  3. there, add this to the end of the one line in cmdline.txt, behind a blank:\n     %s", firstRunHook)
	}
	say("After some minutes http://%s.local:8080/api/v1/sensors answers. If not: gateway-first-boot.log on the boot partition says why.", p.ID)
	switch {
	case p.TokenFile == "" || token != "":
	case len(keys) == 0:
		say("Readings wait on the Pi until it has the token, as %s.", p.TokenFile)
	default:
		say("Readings wait on the Pi until it has the token:\n  ssh %s@%s.local 'sudo install -m 0600 /dev/stdin %s && sudo systemctl restart gateway' < token", p.User, p.ID, p.TokenFile)
	}
	return lines
}
