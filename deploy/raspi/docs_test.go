//go:build lifecycle

package raspi_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A new user follows the documents, word for word: each command in them is run, in
// order, on a new machine, and prints what stands there.

// home is the user's, with what he has before he begins.
const home = "/home/maker"

// standIns are the commands that are not run as they stand, since this machine is
// no Pi and nobody sits in front of it. Every other command is.
var standIns = []struct {
	command string // its begin
	why     string
	do      func(*user, step) string // returns what is run instead, or "": what was done is enough
}{
	{"ssh-keygen ", "its questions are answered by three empty lines", func(_ *user, s step) string { return `printf '\n\n\n' | ` + s.command }},
	{"scp ", "there is no second machine: the files are here already", nothing},
	{"ssh pi@", "there is no second machine: whoever types this is on the Pi already", nothing},
	{"sudo poweroff", "run as it stands; the machine is then switched on again", (*user).powerCycle},
	{"gateway read ", "a container has no I2C: once the chip is wired, the driver reads a simulated one (--simulate)", (*user).read},
	{"sudo raspi-config ", "this is no Pi: a script of that name makes a null device the bus", asItStands},
	{"sudo nano ", "an editor wants hands: the block that follows is written into the file", (*user).edit},
	{"sudo systemctl edit ", "the same; into the file that systemd would have edited", (*user).edit},
	{"sudo install -m 0600 /dev/stdin ", "what is pasted comes through a pipe", (*user).paste},
}

func nothing(*user, step) string { return "" }

func asItStands(_ *user, s step) string { return s.command }

// hands are what people do that is no command.
var hands = map[string]func(*user){
	"the release is on the computer": func(u *user) {
		u.g.run("install -d -o maker /media/maker /media/maker/bootfs") // where a desktop mounts the card
	},
	"the chip is wired and the Pi is on again": func(u *user) {
		u.wired = true
		u.g.write("/usr/lib/systemd/system/gateway.service.d/simulated.conf", 0o644, strings.ReplaceAll(simulated, program, "gateway")) // wherever it is installed
		u.g.run("systemctl daemon-reload; systemctl restart gateway")
	},
	"the broker lets in nobody without the token": func(u *user) {
		u.broker.mu.Lock()
		defer u.broker.mu.Unlock()
		u.broker.refuse = "Bearer " + token
	},
	"an older package is there, too": func(u *user) {
		p := made(u.g.t)
		u.g.put(p.older, home+"/older/"+strings.Replace(filepath.Base(p.newer), p.newerVersion, p.olderVersion, 1), 0o644)
	},
	"the card of a dead Pi is mounted at /mnt/card": func(u *user) {
		u.g.await("a reading on the card", func() bool {
			_, ok := u.g.try("gateway buffer export --format csv --dir " + logDir + " | grep climate && ls " + logDir + "/*.db")
			return ok
		})
		u.g.run("sleep 2; mkdir -p /mnt/card/var/lib; cp -a /var/lib/gateway /mnt/card/var/lib/; rm -f /mnt/card/var/lib/gateway/log/*.sock")
	},
	"one file of it was damaged": func(u *user) {
		u.g.run("cd /mnt/card/var/lib/gateway/log && f=$(ls *.db | head -n 1) && cp $f $f.damaged-20261126 && truncate -s -4096 $f.damaged-20261126")
	},
	"the network is away": func(u *user) { u.unplug() },
	"the network is back": func(u *user) { u.plug() },
}

// mayFail are the commands that show that something is wrong, and so end with a
// status that says so.
var mayFail = []string{"gateway doctor", "sudo gateway doctor", "gateway read bme280", "systemctl status", "sudo gateway check", "gateway status", "systemctl is-enabled"}

// again are the commands that are asked again until they print what is said: they
// tell what becomes so by itself, and change nothing.
var again = []string{"gateway status", "sudo gateway doctor", "curl ", "journalctl ", "sudo journalctl ", "sudo gateway buffer stat"}

// soon is how long that may take. After an outage a gateway tries again within a
// minute (spread).
const soon = 100 * time.Second

// raspiConfig stands in for the Pi's: a null device takes the bus's place.
const raspiConfig = `#!/bin/sh
[ "$*" = 'nonint do_i2c 0' ] || { echo "raspi-config: what is $*?" >&2; exit 1; }
[ -e /dev/i2c-1 ] || mknod -m 0660 /dev/i2c-1 c 1 3
chgrp i2c /dev/i2c-1
`

// user is at a machine. Its methods are for one goroutine.
type user struct {
	g      *guest
	broker *broker
	server *http.Server // nil: the network is away
	wired  bool
	rest   []part         // of the document, behind the block that is at hand
	typed  int            // commands
	stood  map[string]int // of them, by a stand-in
}

// newUser has a machine as Raspberry Pi OS makes it: a user who may use sudo and
// the buses' groups, and the release in his folder. The broker is at its
// documented address.
func newUser(t *testing.T) *user {
	g := newGuest(t)
	deb, _, err := newer()
	if err != nil {
		t.Fatal(err)
	}
	g.write("/etc/hostname", 0o644, "raspberrypi\n")
	g.write("/etc/hosts", 0o644, "127.0.0.1 localhost\n127.0.1.1 raspberrypi\n127.0.0.2 orion.campus.example\n")
	g.write("/usr/bin/raspi-config", 0o755, raspiConfig)
	g.write("/etc/sudoers.d/010_maker", 0o440, "maker ALL=(ALL) NOPASSWD: ALL\n")
	g.boot()
	g.run("groupadd -r i2c; groupadd -r gpio; groupadd -r spi; useradd -m -K HOME_MODE=0700 -s /bin/bash -G adm,sudo,i2c,gpio,spi maker")
	u := &user{g: g, broker: newBroker(g), stood: map[string]int{}}
	for _, pattern := range []string{"gateway_*.deb", "gateway_*_linux-amd64.tar.gz", "SHA256SUMS"} {
		files, err := filepath.Glob(filepath.Join(filepath.Dir(deb), pattern))
		if err != nil || len(files) == 0 {
			t.Fatalf("build/ has no %s: `make package` makes it (%v)", pattern, err)
		}
		for _, f := range files {
			g.put(f, filepath.Join(home, filepath.Base(f)), 0o644)
		}
	}
	g.put("install.sh", home+"/install.sh", 0o755)
	u.plug()
	return u
}

// plug has the broker reached.
func (u *user) plug() {
	u.g.t.Helper()
	u.unplug()
	var ln net.Listener
	if err := u.g.inNetwork(func() (err error) {
		ln, err = net.Listen("tcp", "127.0.0.2:1026")
		return err
	}); err != nil {
		u.g.t.Fatal(err)
	}
	server := &http.Server{Handler: u.broker}
	u.server = server
	u.g.t.Cleanup(func() { server.Close() })
	go func() { _ = server.Serve(ln) }() // until it is closed
}

func (u *user) unplug() {
	if u.server != nil {
		u.server.Close()
		u.server = nil
	}
}

func (u *user) powerCycle(step) string {
	u.unplug()
	u.g.try("sudo -u maker sudo poweroff")
	u.g.waitOff()
	u.g.boot()
	u.plug()
	return ""
}

func (u *user) read(s step) string {
	if !u.wired || strings.Contains(strings.Join(s.prints, "\n"), "gateway: ") {
		return s.command
	}
	return s.command + " --simulate 2>/dev/null"
}

// edit writes the configuration or the drop-in that follows.
func (u *user) edit(s step) string {
	u.g.t.Helper()
	file, isDropIn := strings.CutPrefix(s.command, "sudo systemctl edit ")
	if isDropIn {
		file = "/etc/systemd/system/" + file + ".service.d/override.conf"
	} else {
		file = strings.TrimPrefix(s.command, "sudo nano ")
	}
	if len(u.rest) == 0 || u.rest[0].kind != "yaml" && u.rest[0].kind != "ini" {
		u.g.t.Fatalf("line %d: no block follows that says what is written", s.line)
	}
	// As an editor does: the file's owner and mode stay.
	u.g.write("/root/written", 0o600, u.rest[0].text)
	text := "mkdir -p " + filepath.Dir(file) + "; cat /root/written > " + file
	if isDropIn {
		text += "; systemctl daemon-reload"
	}
	u.g.run(text)
	return ""
}

// token is what the broker wants.
const token = "what-the-broker-gave"

func (u *user) paste(s step) string { return "echo " + token + " | " + s.command }

// try runs a command as the user, in a new shell in his folder.
func (u *user) try(command string) (output string, status int) {
	u.g.t.Helper()
	ctx, cancel := context.WithTimeout(u.g.t.Context(), 3*time.Minute)
	defer cancel()
	out, err := u.shell(ctx, command).CombinedOutput()
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return string(out), e.ExitCode()
	} else if err != nil {
		u.g.t.Fatal(err)
	}
	return string(out), 0
}

func (u *user) shell(ctx context.Context, command string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", "-t", fmt.Sprint(u.g.pid), "-a", "--", "runuser", "-u", "maker", "--", "bash", "-c", "cd; "+command)
	cmd.Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LANG=C.UTF-8", "HOME=" + home, "USER=maker"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// interrupted runs a command until it has printed what stands before ^C.
func (u *user) interrupted(command string, before *regexp.Regexp) string {
	u.g.t.Helper()
	ctx, cancel := context.WithTimeout(u.g.t.Context(), patience)
	defer cancel()
	var out printed
	cmd := u.shell(ctx, command)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		u.g.t.Fatal(err)
	}
	for !before.MatchString(out.String()) && ctx.Err() == nil {
		time.Sleep(20 * time.Millisecond)
	}
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGINT)
	_ = cmd.Wait() // how it ended it has printed
	return out.String()
}

// printed is a buffer for two goroutines.
type printed struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (p *printed) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.b.Write(b)
}

func (p *printed) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.b.String()
}

// pattern is what a command prints, as a regular expression.
func pattern(lines []string, whole bool) *regexp.Regexp {
	b := strings.Builder{}
	b.WriteString(`^`)
	for _, line := range lines {
		if line == "…" {
			b.WriteString(`(?:.*\n)*?`)
			continue
		}
		b.WriteString(strings.ReplaceAll(regexp.QuoteMeta(line), "…", ".*") + ` *\n`)
	}
	if whole {
		b.WriteString(`$`)
	}
	return regexp.MustCompile(b.String())
}

func begins(command string, list []string) bool {
	for _, b := range list {
		if command == strings.TrimSpace(b) || strings.HasPrefix(command, strings.TrimSpace(b)+" ") {
			return true
		}
	}
	return false
}

// follow does a step, and says what is not as it stands there.
func (u *user) follow(s step) error {
	u.g.t.Helper()
	u.typed++
	command := s.command
	for _, x := range standIns {
		if strings.HasPrefix(command, x.command) {
			u.stood[x.command]++
			if command = x.do(u, s); command == "" {
				return nil
			}
			break
		}
	}
	var out string
	var status int
	want := pattern(s.prints, true)
	if at := index(s.prints, "^C"); at >= 0 {
		out = u.interrupted(command, pattern(s.prints[:at], false))
		want = pattern(append(append([]string(nil), s.prints[:at]...), s.prints[at+1:]...), true)
	} else {
		for begun := time.Now(); ; time.Sleep(500 * time.Millisecond) {
			out, status = u.try(command)
			if matches(want, out) || !begins(s.command, again) || time.Since(begun) > soon {
				break
			}
		}
	}
	switch {
	case status == 127 || status != 0 && !begins(s.command, mayFail):
		return fmt.Errorf("exit status %d:\n%s", status, out)
	case !matches(want, out):
		return fmt.Errorf("it prints:\n%s\nand is to print:\n%s", out, strings.Join(s.prints, "\n"))
	}
	return nil
}

func index(list []string, x string) int {
	for i, v := range list {
		if v == x {
			return i
		}
	}
	return -1
}

func matches(want *regexp.Regexp, out string) bool {
	out = strings.ReplaceAll(out, "\r", "\n") // a counter that is overwritten
	if out != "" && !strings.HasSuffix(out, "\n") {
		out += "\n"
	}
	return want.MatchString(out)
}

func TestDocs(t *testing.T) {
	for _, name := range docNames {
		t.Run(strings.TrimSuffix(name, ".md"), func(t *testing.T) {
			t.Parallel()
			u := newUser(t)
			parts := partsOf(t, name)
			for i, p := range parts {
				u.rest = parts[i+1:]
				switch p.kind {
				case "hand":
					do := hands[p.text]
					if do == nil {
						t.Fatalf("%s:%d: hands do not know how to %q", name, p.line, p.text)
					}
					do(u)
				case "console":
					for _, s := range stepsOf(t, name, p) {
						begun := time.Now()
						err := u.follow(s)
						if took := time.Since(begun); took > 5*time.Second {
							t.Logf("%s:%d: $ %s: %s", name, s.line, s.command, seconds(took))
						}
						if err != nil {
							t.Errorf("%s:%d: $ %s\n%v", name, s.line, s.command, err)
						}
					}
				}
			}
			var stood []string
			total := 0
			for _, x := range standIns {
				if n := u.stood[x.command]; n > 0 {
					total += n
					stood = append(stood, fmt.Sprintf("  %d × %s…: %s", n, x.command, x.why))
				}
			}
			u.g.figure("%d commands, %d of them with a stand-in:\n%s", u.typed, total, strings.Join(stood, "\n"))
			if u.typed == total {
				t.Error("no command was run as it stands")
			}
		})
	}
}
