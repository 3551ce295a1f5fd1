//go:build lifecycle

// Package raspi_test installs the gateway's package on a Debian that boots, and
// does to it what happens to a gateway in a lab.
package raspi_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"campus-gateway/ngsi/sandbox"

	"golang.org/x/sys/unix"
)

// patience is for what should happen at once, on a busy machine.
const patience = 60 * time.Second

// guest is a machine with systemd: a container with processes, a network and
// files of its own. Its methods are for one goroutine.
type guest struct {
	t      *testing.T // of the step that is done
	whole  *testing.T // of the machine
	root   string     // its root file system, seen from here
	told   *net.UnixConn
	script *exec.Cmd // the boot script, while the guest is on
	output bytes.Buffer
	off    chan struct{} // closed when the script has ended
	exit   int           // its exit status, then
	pid    int           // of the guest's PID 1, here
	born   time.Time     // when that began
}

// makeRoot makes the root file system once. Where that cannot be had the test is
// skipped, or with LIFECYCLE_REQUIRED set, failed.
var makeRoot = sync.OnceValues(func() (skip string, err error) {
	out, err := exec.Command("./guest.sh", "root").CombinedOutput()
	if e, ok := errors.AsType[*exec.ExitError](err); ok && e.ExitCode() == 77 {
		return lastLine(string(out)), nil
	}
	if err != nil {
		return "", fmt.Errorf("guest.sh root: %w\n%s", err, out)
	}
	return "", nil
})

// lastLine is what guest.sh has said last.
func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return strings.TrimPrefix(text[strings.LastIndex(text, "\n")+1:], "guest: ")
}

// newGuest makes a machine that is off. Its clock counts as set by the network.
func newGuest(t *testing.T) *guest {
	t.Helper()
	able(t)
	work, err := filepath.Abs(filepath.Join("..", "..", "build", "lifecycle"))
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(work, "guest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	g := &guest{t: t, whole: t, root: filepath.Join(dir, "root")}
	if err := os.Mkdir(g.root, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("tar", "-xpf", filepath.Join(work, "root.tar"), "-C", g.root).CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	// A container cannot set the clock, so timesyncd does not run in it: this is what it leaves.
	g.write("/etc/tmpfiles.d/synchronized.conf", 0o644, "d /run/systemd/timesync 0755\nf /run/systemd/timesync/synchronized 0644\n")
	short, err := os.MkdirTemp("", "guest-") // a socket's path has 107 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(short) })
	if g.told, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(short, "notify"), Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.told.Close() })
	return g
}

// able skips a test that this machine cannot run.
func able(t *testing.T) {
	t.Helper()
	skip, err := makeRoot()
	if err != nil {
		t.Fatal(err)
	}
	if skip != "" {
		cannot(t, skip)
	}
}

func cannot(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("LIFECYCLE_REQUIRED") != "" {
		t.Fatal(why)
	}
	fmt.Printf("SKIPPED: lifecycle: %s\n", why)
	t.SkipNow()
}

// boot switches the machine on and returns when its systemd has started
// everything.
func (g *guest) boot() {
	g.t.Helper()
	g.output.Reset()
	_ = g.told.SetReadDeadline(time.Now().Add(patience))
	cmd := exec.Command("./guest.sh", "boot", g.root)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+g.told.LocalAddr().String())
	cmd.Stdout, cmd.Stderr = &g.output, &g.output
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM} // then it takes the guest along
	if err := cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	g.script, g.off = cmd, make(chan struct{})
	ended := g.off
	go func() {
		_ = cmd.Wait()                         // nspawn's status says how the guest ended, which whoever ends it knows
		_ = g.told.SetReadDeadline(time.Now()) // nobody is told any more
		close(ended)
	}()
	g.whole.Cleanup(func() {
		if !g.on() {
			if g.whole.Failed() {
				g.whole.Log("the guest is off; it said: ", g.output.String())
			}
		} else if g.whole.Failed() {
			log, _ := g.try("journalctl --no-pager -o short-monotonic -n 80 -u gateway; systemctl status --no-pager gateway")
			g.whole.Logf("the journal's end:\n%s", log)
		}
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-ended
	})
	g.started()
}

func (g *guest) on() bool {
	select {
	case <-g.off:
		return false
	default:
		return true
	}
}

// started waits for what the container's manager tells: the pid of the guest's
// PID 1, and that it is ready.
func (g *guest) started() {
	g.t.Helper()
	for b := make([]byte, 4096); ; {
		n, err := g.told.Read(b)
		if err != nil {
			if !g.on() && g.exit == 77 {
				cannot(g.t, lastLine(g.output.String()))
			}
			g.t.Fatalf("the guest did not boot: %v", err)
		}
		for line := range strings.Lines(string(b[:n])) {
			line = strings.TrimSpace(line)
			if _, err := fmt.Sscanf(line, "X_NSPAWN_LEADER_PID=%d", &g.pid); err == nil {
				g.born = time.Now()
			}
			if line == "READY=1" {
				return
			}
		}
	}
}

// reboot restarts the machine in order.
func (g *guest) reboot() {
	g.t.Helper()
	_ = g.told.SetReadDeadline(time.Now().Add(patience))
	g.try("systemctl reboot") // may end with the guest
	g.started()
}

// poweroff switches the machine off in order, and waits for it.
func (g *guest) poweroff() {
	g.t.Helper()
	g.try("systemctl poweroff")
	g.waitOff()
}

// cut kills every process of the machine at once. What they have written stays
// in the host's page cache, which a real power cut would take, too: that the log
// bears this is tested with it (buffer, TestPowerCuts).
func (g *guest) cut() {
	g.t.Helper()
	if err := syscall.Kill(g.pid, syscall.SIGKILL); err != nil {
		g.t.Fatal(err)
	}
	g.waitOff()
}

func (g *guest) waitOff() {
	g.t.Helper()
	select {
	case <-g.off:
	case <-time.After(patience):
		g.t.Fatalf("the guest is not off after %v", patience)
	}
}

// try runs a shell command as the guest's root: what it has said, with its
// complaints if it failed.
func (g *guest) try(command string) (output string, ok bool) {
	g.t.Helper()
	cmd := exec.Command("timeout", "120", "nsenter", "-t", fmt.Sprint(g.pid), "-a", "--", "sh", "-c", command)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "DEBIAN_FRONTEND=noninteractive", "HOME=/root"}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Sprintf("%s%s%v", out, stderr.String(), err), false
	}
	return strings.TrimSpace(string(out)), true
}

// run runs a shell command that must succeed.
func (g *guest) run(command string) string {
	g.t.Helper()
	out, ok := g.try(command)
	if !ok {
		g.t.Fatalf("%s: failed:\n%s", command, out)
	}
	return out
}

// path is a file of the guest, seen from here. Folders that the guest mounts
// (/run, /tmp, /dev) are under /proc/PID/root only.
func (g *guest) path(name string) string { return filepath.Join(g.root, name) }

func (g *guest) write(name string, mode os.FileMode, text string) {
	g.t.Helper()
	if err := os.MkdirAll(filepath.Dir(g.path(name)), 0o755); err != nil {
		g.t.Fatal(err)
	}
	if err := os.WriteFile(g.path(name), []byte(text), mode); err != nil {
		g.t.Fatal(err)
	}
}

// put copies a file of ours into the guest. A program that runs there is
// replaced, not overwritten.
func (g *guest) put(from, to string, mode os.FileMode) {
	g.t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		g.t.Fatal(err)
	}
	g.write(to+".new", mode, string(b))
	if err := os.Chmod(g.path(to+".new"), mode); err != nil { // whatever the umask
		g.t.Fatal(err)
	}
	if err := os.Rename(g.path(to+".new"), g.path(to)); err != nil {
		g.t.Fatal(err)
	}
}

func (g *guest) read(name string) string {
	g.t.Helper()
	b, err := os.ReadFile(g.path(name))
	if err != nil {
		g.t.Fatal(err)
	}
	return string(b)
}

// await looks until something holds, and returns how long that took.
func (g *guest) await(what string, holds func() bool) time.Duration {
	g.t.Helper()
	begun := time.Now()
	for !holds() {
		if time.Since(begun) > patience {
			g.t.Fatalf("waited %v in vain for %s", patience, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return time.Since(begun)
}

// step is a part of a test that leaves the machine to the next part. A part that
// fails ends the test: the next one would stand on it.
func (g *guest) step(name string, f func()) {
	defer func() { g.t = g.whole }()
	if !g.whole.Run(name, func(t *testing.T) {
		g.t = t
		f()
	}) {
		g.whole.FailNow()
	}
}

// inNetwork runs f on a thread that is in the guest's network: sockets that it
// makes stay there.
func (g *guest) inNetwork(f func() error) error {
	runtime.LockOSThread()
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer own.Close()
	theirs, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", g.pid))
	if err != nil {
		return err
	}
	defer theirs.Close()
	if err := unix.Setns(int(theirs.Fd()), unix.CLONE_NEWNET); err != nil {
		return err
	}
	err = f()
	if back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); back != nil {
		return back // the thread stays locked, and ends with its goroutine
	}
	runtime.UnlockOSThread()
	return err
}

// get asks a web server in the guest.
func (g *guest) get(url string) string {
	g.t.Helper()
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (c net.Conn, err error) {
			err = g.inNetwork(func() (err error) {
				c, err = (&net.Dialer{}).DialContext(ctx, network, address)
				return err
			})
			return c, err
		},
	}}
	r, err := client.Get(url)
	if err != nil {
		g.t.Fatal(err)
	}
	defer r.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(r.Body); err != nil {
		g.t.Fatal(err)
	}
	return b.String()
}

// brokerURL is where a guest's configuration looks for its broker: one that runs
// here, and listens in the guest's network.
const brokerURL = "http://127.0.0.1:1026"

// broker keeps what arrives, over boots of the guest.
type broker struct {
	*sandbox.Broker
	guest  *guest
	server *http.Server // while it is up

	mu       sync.Mutex
	silent   bool           // take requests and never answer
	refuse   string         // see admit; "" lets in everybody
	seen     map[string]int // requests by Authorization
	arrivals []arrival      // in their order
}

// arrival is a written entity with its measured attributes.
type arrival struct {
	entity, sensor string
	attrs          string // names
	at             time.Time
	came           time.Time
}

func newBroker(g *guest) *broker {
	b := &broker{guest: g, seen: map[string]int{}}
	b.Broker = sandbox.New(sandbox.Options{OnUpdate: b.put})
	return b
}

func (b *broker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	token := r.Header.Get("Authorization")
	b.mu.Lock()
	b.seen[token]++
	refused, silent := b.refuse != "" && token != b.refuse, b.silent
	b.mu.Unlock()
	if silent {
		<-r.Context().Done() // the client's patience
		return
	}
	if refused {
		http.Error(w, `{"error":"Unauthorized","description":"no valid token"}`, http.StatusUnauthorized)
		return
	}
	b.Broker.ServeHTTP(w, r)
}

// answer says whether it answers from now on.
func (b *broker) answer(yes bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.silent = !yes
}

// admit answers 401 to all but one Authorization from now on.
func (b *broker) admit(authorization string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refuse = authorization
}

// saw is how many requests came with an Authorization.
func (b *broker) saw(authorization string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.seen[authorization]
}

func (b *broker) put(u sandbox.Update) {
	part := strings.Split(u.ID, ":") // urn:ngsi-ld:Type:gateway:sensor[:quantity]
	if u.Type == "Device" || len(part) < 5 {
		return
	}
	a := arrival{entity: u.ID, sensor: part[4], came: time.Now()}
	for _, attr := range u.Attrs {
		if attr.Time == "" {
			continue // not measured
		}
		at, err := time.Parse(time.RFC3339, attr.Time)
		if err != nil {
			panic(err) // the sandbox refuses such times
		}
		a.at = at.UTC()
		a.attrs += " " + attr.Name
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.arrivals = append(b.arrivals, a)
}

func (b *broker) all() []arrival {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]arrival(nil), b.arrivals...)
}

func (b *broker) count() int { return len(b.all()) }

// up lets it listen in the guest's network.
func (b *broker) up() {
	b.guest.t.Helper()
	b.down()
	var ln net.Listener
	if err := b.guest.inNetwork(func() (err error) {
		ln, err = net.Listen("tcp", strings.TrimPrefix(brokerURL, "http://"))
		return err
	}); err != nil {
		b.guest.t.Fatal(err)
	}
	server := &http.Server{Handler: b}
	b.server = server
	b.guest.whole.Cleanup(func() { server.Close() })
	go func() { _ = server.Serve(ln) }() // until it is closed
}

// down closes its port and its connections.
func (b *broker) down() {
	if b.server != nil {
		b.server.Close()
		b.server = nil
	}
}

// next waits for something new to arrive that was measured after now.
func (b *broker) next() time.Duration {
	b.guest.t.Helper()
	now, before := time.Now(), b.count()
	return b.guest.await("the next reading at the broker", func() bool {
		for _, a := range b.all()[before:] {
			if a.at.After(now) {
				return true
			}
		}
		return false
	})
}
