package main

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// A bundle is never larger: what is not compressed is counted, so it is far smaller.
const (
	bundleSize = 19 << 20
	partSize   = 4 << 20
	readmeRoom = 64 << 10
	partLimit  = 15 * time.Second // of what one part may take to be had
)

func newBundle() *cobra.Command {
	var file, out string
	cmd := &cobra.Command{
		Use:   "bundle",
		Short: "Write one file with all that somebody needs who is to help, and no secret",
		Long: `Writes a .tar.gz with what doctor finds, the configuration, the state of daemon and
log, the unit, its journal and facts about the machine. Secrets are taken out: those
that this machine knows, in any encoding, and whatever looks like one. README.txt in
it lists what is inside, what could not be had, and how often something was removed.

As root it has more. What is in it are also names and addresses of brokers, and
readings that a broker has refused: look at it before you send it.`,
		Example: "  gateway bundle\n  sudo gateway bundle                      has more\n  gateway bundle -o /tmp/gateway.tar.gz\n  tar -xzOf gateway-bundle-*.tar.gz | less",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			path, n, err := bundle(cmd.Context(), thisPi(), file, out)
			if err != nil {
				return fmt.Errorf("bundle: %w", err)
			}
			size := int64(0)
			if i, err := os.Stat(path); err == nil {
				size = i.Size()
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %d files, %d KiB. Look at it before you send it: tar -xzOf %s | less\n", path, n, (size+1023)>>10, path)
			return nil
		},
	}
	cmd.Flags().StringVarP(&file, "config", "c", "/etc/gateway/gateway.yaml", "the configuration `FILE`")
	cmd.Flags().StringVarP(&out, "output", "o", "", "the `FILE` to write; default: gateway-bundle-ID-DATE.tar.gz in this folder")
	return cmd
}

// bundle writes one, and returns its name and how many files are in it. An existing
// file is never written over.
func bundle(ctx context.Context, m *computer, configFile, out string) (path string, n int, err error) {
	c, _ := loadConfig(configFile) // what is wrong with it, doctor tells
	id, _ := os.Hostname()
	if c != nil {
		id = c.Gateway.ID
	}
	if !plainID.MatchString(id) {
		id = "unknown"
	}
	name := "gateway-bundle-" + id + "-" + m.now().UTC().Format("20060102-150405")
	f, err := createNew(cmp.Or(out, name+".tar.gz"), out == "")
	if err != nil {
		return "", 0, err
	}
	b := &bundler{computer: m, configFile: configFile, c: c, name: name, room: bundleSize}
	n, err = b.write(ctx, f)
	// Who has said sudo is to send it.
	if uid, err := strconv.Atoi(os.Getenv("SUDO_UID")); err == nil && m.uid == 0 {
		if gid, err := strconv.Atoi(os.Getenv("SUDO_GID")); err == nil {
			_ = f.Chown(uid, gid) // else it stays root's; not by its name, which may be another's by now
		}
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", 0, errors.Join(err, os.Remove(f.Name()))
	}
	return f.Name(), n, nil
}

// createNew makes a file that only its owner can read. If there is one already, and
// others will do, it takes another name.
func createNew(path string, others bool) (*os.File, error) {
	for i := 1; ; i++ {
		try := path
		if i > 1 {
			try = strings.TrimSuffix(path, ".tar.gz") + "-" + strconv.Itoa(i) + ".tar.gz"
		}
		f, err := os.OpenFile(try, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		switch {
		case err == nil:
			return f, nil
		case !errors.Is(err, fs.ErrExist):
			return nil, err
		case !others:
			return nil, fmt.Errorf("%s is there already: choose another name with -o", path)
		case i == 100:
			return nil, err
		}
	}
}

// bundler puts parts into a bundle. Nothing goes in but through its scrubber.
type bundler struct {
	*computer
	scrubber
	configFile string
	c          *config
	name       string
	room       int // bytes left
	tar        *tar.Writer
	inside     []string // lines of the README
	missing    []string
}

// part is one file of a bundle.
type part struct {
	name, what string
	get        func(context.Context) (string, error)
}

func (b *bundler) write(ctx context.Context, w io.Writer) (n int, err error) {
	raw, _ := os.ReadFile(b.configFile) // if it cannot be read it is missing, see below
	dir := b.logDir(b.c)
	b.learn(b.computer, string(raw), dir)
	if b.c != nil {
		for _, u := range b.c.Uplinks {
			b.learnUplink(u)
		}
	}
	zip := gzip.NewWriter(w)
	b.tar = tar.NewWriter(zip)
	for _, p := range b.parts(dir) {
		if err := b.add(ctx, p); err != nil {
			return 0, err
		}
	}
	if err := b.put("README.txt", b.clean(b.readme())); err != nil {
		return 0, err
	}
	return len(b.inside) + 1, errors.Join(b.tar.Close(), zip.Close())
}

// add puts in a part, or a line why not.
func (b *bundler) add(ctx context.Context, p part) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	most := min(partSize, b.room-readmeRoom)
	if most <= 0 {
		b.missing = append(b.missing, fmt.Sprintf("%-24s there is no room left", p.name))
		return nil
	}
	limited, cancel := context.WithTimeout(ctx, partLimit)
	defer cancel()
	text, err := p.get(limited)
	if err != nil && text == "" {
		b.missing = append(b.missing, fmt.Sprintf("%-24s %v", p.name, err))
		return nil
	}
	// Cleaned as a whole, then cut: half a secret would not be known for one.
	text = b.clean(strings.ToValidUTF8(text, "\uFFFD"))
	cut := ""
	if len(text) > most {
		text, cut = text[len(text)-most:], fmt.Sprintf(" (its last %d KiB)", most>>10) // the newest is at the end
		text = strings.ToValidUTF8(text, "")
	}
	b.inside = append(b.inside, fmt.Sprintf("%-24s %s%s", p.name, p.what, cut))
	return b.put(p.name, text)
}

func (b *bundler) put(name, text string) error {
	b.room -= len(text) + 1024
	h := &tar.Header{Typeflag: tar.TypeReg, Name: b.name + "/" + name, Mode: 0o600, Size: int64(len(text)), ModTime: b.now().Truncate(time.Second)}
	if err := b.tar.WriteHeader(h); err != nil {
		return err
	}
	_, err := io.WriteString(b.tar, text)
	return err
}

func (b *bundler) readme() string {
	var t strings.Builder
	fmt.Fprintf(&t, "Support bundle of a campus gateway\n%s, gateway %s, %s\n\nInside\n", b.now().UTC().Format(time.RFC3339), version, oneLine(b.describe()))
	for _, l := range b.inside {
		fmt.Fprintf(&t, "  %s\n", oneLine(l))
	}
	t.WriteString("\nNot to be had\n")
	for _, l := range b.missing {
		fmt.Fprintf(&t, "  %s\n", oneLine(l))
	}
	if len(b.missing) == 0 {
		t.WriteString("  nothing: it is all there\n")
	}
	fmt.Fprintf(&t, "\nRemoved\n  %d places, each now %s: what was read from the files below, in plain, base64,\n  URL and hexadecimal form, and what looks like a password, a token or a key.\n", b.removed, removedMark)
	slices.Sort(b.sources)
	for _, s := range slices.Compact(b.sources) {
		fmt.Fprintf(&t, "  %s\n", s)
	}
	if len(b.sources) == 0 {
		t.WriteString("  No secret could be read: only what looks like one was removed.\n")
	}
	return t.String()
}

// kernelLines are those that tell of buses, power and the card.
var kernelLines = regexp.MustCompile(`(?i)i2c|spi|gpio|w1[-_ ]|volt|throttl|thermal|mmc|ext4|fsck|watchdog|oom|out of memory|gateway`)

// parts are what there is to be had here.
func (b *bundler) parts(logDir string) []part {
	file := func(path string) func(context.Context) (string, error) {
		return func(context.Context) (string, error) { return readEnd(path) }
	}
	run := func(name string, args ...string) func(context.Context) (string, error) {
		return func(ctx context.Context) (string, error) {
			out, err := b.command(ctx, name, args...)
			if err != nil {
				first, _, _ := strings.Cut(strings.TrimSpace(out), "\n")
				return "", fmt.Errorf("%s: %w %s", filepath.Base(name), err, first)
			}
			return out, nil
		}
	}
	page := func(path string) func(context.Context) (string, error) {
		return func(ctx context.Context) (string, error) {
			base, err := b.view()
			if err != nil {
				return "", err
			}
			text, err := fetchText(ctx, "", base+path)
			return string(text), err
		}
	}
	var examined *report
	doctor := func(ctx context.Context) *report {
		if examined == nil {
			examined = examine(ctx, b.computer, b.configFile)
			// Before it becomes JSON, which may write a secret in yet another way.
			examined.Machine = b.clean(examined.Machine)
			for i := range examined.Findings {
				f := &examined.Findings[i]
				f.Why, f.Mend = b.clean(f.Why), b.clean(f.Mend)
			}
		}
		return examined
	}
	list := []part{
		{"version.txt", "gateway's version", func(context.Context) (string, error) {
			return fmt.Sprintf("gateway %s, commit %s, %s, %s/%s\n", version, orUnknown(commit), runtime.Version(), runtime.GOOS, runtime.GOARCH), nil
		}},
		{"doctor.txt", "what gateway doctor says", func(ctx context.Context) (string, error) {
			var t bytes.Buffer
			r := doctor(ctx)
			err := r.print(&t)
			return t.String() + "\n" + r.count() + "\n", err
		}},
		{"doctor.json", "the same for programs", func(ctx context.Context) (string, error) { return jsonText(doctor(ctx)) }},
		{"gateway.yaml", "the configuration", file(b.configFile)},
		{"last-good.yaml", "the last one that worked", file(b.path("/var/lib/gateway/last-good.yaml"))},
		{"buffer-stat.json", "the log's state", func(ctx context.Context) (string, error) {
			s, err := statLog(ctx, logDir)
			if err != nil {
				return "", err
			}
			return jsonText(s)
		}},
		{"buffer-rejects.json", "readings that a broker refused", func(ctx context.Context) (string, error) {
			body, err := ask(ctx, logDir, http.MethodGet, "/rejects")
			if err != nil {
				return "", err
			}
			defer body.Close()
			text, err := io.ReadAll(io.LimitReader(body, partSize))
			return wholeLines(text), err
		}},
		{"boots.json", "what is known of starts of the machine", file(filepath.Join(logDir, bootsName))},
		{"tuned.json", "what is known of the brokers' speed", file(filepath.Join(logDir, tunedName))},
		{"sensors.json", "the sensors, as the page shows them", page("/api/v1/sensors")},
		{"uplinks.json", "the ways to the brokers", page("/api/v1/uplinks")},
		{"metrics.txt", "the daemon's metrics", page("/metrics")},
		{"state.txt", "the files of the state folder and the log", func(context.Context) (string, error) { return listing(b.path("/var/lib/gateway"), logDir) }},
	}
	if b.self != "" {
		list = append(list, part{"status.json", "what gateway status says", func(ctx context.Context) (string, error) {
			out, err := b.command(ctx, b.self, "status", "--json")
			if err != nil && strings.HasPrefix(out, "{") {
				err = nil // the status says that not all is well
			}
			if err != nil {
				return "", fmt.Errorf("%w: %s", err, oneLine(strings.TrimSpace(out)))
			}
			return out, nil
		}})
	}
	if b.os != "linux" {
		return list
	}
	return append(list,
		part{"unit.txt", "the unit file and its drop-ins", run("systemctl", "cat", "gateway.service", "--no-pager")},
		part{"service.txt", "the service's state", run("systemctl", "show", "gateway.service", "--no-pager", "--property=LoadState,ActiveState,SubState,UnitFileState,FragmentPath,DropInPaths,NRestarts,Result,ExecMainStatus,ExecMainStartTimestamp,MemoryCurrent,MemoryPeak,CPUUsageNSec,TasksCurrent,StatusText")},
		part{"journal.txt", "the service's last 5000 lines", run("journalctl", "--unit=gateway.service", "--lines=5000", "--no-pager", "--output=short-iso-precise", "--no-hostname")},
		part{"journal-boot.txt", "the service in this boot", run("journalctl", "--unit=gateway.service", "--boot=0", "--lines=5000", "--no-pager", "--output=short-monotonic", "--no-hostname")},
		part{"journal-boot-before.txt", "the service in the boot before", run("journalctl", "--unit=gateway.service", "--boot=-1", "--lines=5000", "--no-pager", "--output=short-monotonic", "--no-hostname")},
		part{"kernel.txt", "the kernel on buses, power and card", func(ctx context.Context) (string, error) {
			out, err := run("journalctl", "--dmesg", "--lines=20000", "--no-pager", "--no-hostname")(ctx)
			if err != nil || !kernelLines.MatchString(out) {
				if out, err = run("dmesg")(ctx); err != nil {
					return "", err
				}
			}
			var t strings.Builder
			for line := range strings.Lines(out) {
				if kernelLines.MatchString(line) {
					t.WriteString(line)
				}
			}
			return t.String(), nil
		}},
		part{"machine.txt", "system, kernel, model, memory", func(context.Context) (string, error) {
			var t strings.Builder
			for _, f := range []string{"/etc/os-release", "/etc/rpi-issue", "/proc/version", "/proc/device-tree/model", "/proc/cmdline", b.boot("config.txt"), "/proc/uptime", "/proc/loadavg", "/proc/meminfo", "/etc/timezone", "/sys/fs/cgroup/cgroup.controllers"} {
				fmt.Fprintf(&t, "== %s\n%s\n\n", f, b.read(f))
			}
			return t.String(), nil
		}},
		part{"package.txt", "the package", run("dpkg-query", "--status", "gateway")},
		part{"clock.txt", "the clock", run("timedatectl")},
		part{"df.txt", "free space", run("df", "-h")},
		part{"mounts.txt", "what is mounted", func(context.Context) (string, error) { return readEnd(b.path("/proc/self/mountinfo")) }},
		part{"network.txt", "interfaces, without addresses", func(context.Context) (string, error) { return b.network(), nil }},
		part{"devices.txt", "buses, lines and who may use them", func(context.Context) (string, error) { return b.devices(), nil }},
	)
}

func jsonText(v any) (string, error) {
	var t bytes.Buffer
	enc := json.NewEncoder(&t)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return t.String(), err
}

// view is where the daemon's page is.
func (b *bundler) view() (string, error) {
	listen := defaultConfig().Live.HTTP.Listen
	if b.c != nil {
		listen = b.c.Live.HTTP.Listen
	}
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "", errors.New("the live view is off")
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "http://" + net.JoinHostPort(host, port), nil
}

// readEnd reads a file, of a long one the end.
func readEnd(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if i, err := f.Stat(); err == nil && i.Size() > partSize {
		if _, err := f.Seek(-partSize, io.SeekEnd); err != nil {
			return "", err
		}
		text, err := io.ReadAll(io.LimitReader(f, partSize))
		_, rest, _ := strings.Cut(string(text), "\n") // the first line may begin within a secret
		return rest, err
	}
	text, err := io.ReadAll(io.LimitReader(f, partSize))
	return string(text), err
}

// wholeLines leaves out a last line that may have been cut within a secret.
func wholeLines(text []byte) string {
	if len(text) == partSize {
		text = text[:bytes.LastIndexByte(text, '\n')+1]
	}
	return string(text)
}

// listing names the files below folders, with size, mode and age.
func listing(dirs ...string) (string, error) {
	var t strings.Builder
	n := 0
	for _, dir := range dirs {
		if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if n++; n > 2000 {
				return filepath.SkipAll
			}
			if err != nil {
				fmt.Fprintf(&t, "%v\n", err) // names the path
				return nil
			}
			i, err := d.Info()
			if err != nil {
				return nil // gone meanwhile
			}
			fmt.Fprintf(&t, "%v %12d %s %s\n", i.Mode(), i.Size(), i.ModTime().UTC().Format(time.RFC3339), path)
			return nil
		}); err != nil {
			return t.String(), err
		}
		if strings.HasPrefix(dirs[len(dirs)-1], dir+string(filepath.Separator)) {
			break // the log is in it
		}
	}
	return t.String(), nil
}

// network are facts that tell nobody where the machine is.
func (m *computer) network() string {
	var t strings.Builder
	for _, dir := range m.glob("/sys/class/net/*") {
		name := filepath.Base(dir)
		fmt.Fprintf(&t, "%s: %s, carrier %s, mtu %s\n", name, m.read("/sys/class/net/"+name+"/operstate"),
			cmp.Or(m.read("/sys/class/net/"+name+"/carrier"), "?"), m.read("/sys/class/net/"+name+"/mtu"))
	}
	routes, servers := 0, 0
	for line := range strings.Lines(m.read("/proc/net/route")) {
		if w := strings.Fields(line); len(w) > 2 && w[1] == "00000000" {
			routes++
		}
	}
	for line := range strings.Lines(m.read("/etc/resolv.conf")) {
		if strings.HasPrefix(line, "nameserver") {
			servers++
		}
	}
	fmt.Fprintf(&t, "default routes (IPv4): %d\nname servers: %d\n", routes, servers)
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"} {
		fmt.Fprintf(&t, "%s is set: %t\n", name, os.Getenv(name) != "" || os.Getenv(strings.ToLower(name)) != "")
	}
	return t.String()
}

func (m *computer) devices() string {
	var t strings.Builder
	for _, pattern := range []string{"/dev/i2c-*", "/dev/spidev*", "/dev/gpiochip*"} {
		for _, path := range m.glob(pattern) {
			if i, err := os.Stat(path); err == nil {
				gid, _ := groupOf(i)
				fmt.Fprintf(&t, "%v group %s %s\n", i.Mode(), m.groupName(gid), filepath.Base(path))
			}
		}
	}
	for _, path := range m.glob("/sys/bus/i2c/devices/*") {
		driver, _ := os.Readlink(filepath.Join(path, "driver")) // none: no driver is bound
		fmt.Fprintf(&t, "%s driver %s\n", filepath.Base(path), cmp.Or(filepath.Base(driver), "none"))
	}
	return t.String()
}
