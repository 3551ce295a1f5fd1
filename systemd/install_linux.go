package systemd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/kardianos/service"
)

const (
	name       = "gateway.service"
	account    = "gateway" // user and group
	configDir  = "/etc/gateway"
	secretsDir = configDir + "/secrets"
	configFile = configDir + "/gateway.yaml"
	stateDir   = "/var/lib/gateway"
	modulesTo  = "/etc/modules-load.d/gateway.conf"
	rulesTo    = "/etc/udev/rules.d/60-gateway.rules"
)

// Service is the gateway as a service of this machine.
type Service struct {
	Executable  string        // this program
	Starter     string        // the first gateway.yaml, where there is none
	Undelivered func() string // asked when the service has been stopped: "120 readings not delivered yet"; "": that is not known
	Out         io.Writer     // a line for each thing that is done

	root  string // "/"
	owner int    // whose the files are, and who must run this: 0
	run   func(ctx context.Context, stdin, command string, args ...string) (string, error)
	unit  func(text string) (actions, error)
	done  bool // something
}

// actions is what is used of kardianos/service.
type actions interface {
	Install() error // writes the unit, enables it
	Uninstall() error
	Start() error
	Stop() error
	Restart() error
}

// NewService is the service with this machine's own tools.
func NewService(s Service) *Service {
	s.root, s.run, s.unit = "/", run, func(text string) (actions, error) {
		return service.New(nil, &service.Config{
			Name: strings.TrimSuffix(name, ".service"), Executable: s.Executable,
			Option: service.KeyValue{"SystemdScript": text},
		})
	}
	return &s
}

// run runs a command to its end and returns what it printed. What it complained
// of is in the error.
func run(ctx context.Context, stdin, command string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, command, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		why := strings.Join(strings.Fields(complaint.String()), " ")
		if why == "" || errors.Is(err, exec.ErrNotFound) {
			why = err.Error()
		}
		return out.String(), fmt.Errorf("%s: %s", strings.Join(append([]string{command}, args...), " "), why)
	}
	return out.String(), nil
}

// say tells of one thing that was done.
func (s *Service) say(format string, args ...any) {
	s.done = true
	fmt.Fprintf(s.Out, format+"\n", args...)
}

func (s *Service) path(p string) string { return filepath.Join(s.root, p) }

// command is how this program is called.
func (s *Service) command() string {
	if slices.Contains([]string{"/usr/bin", "/usr/local/bin"}, filepath.Dir(s.Executable)) {
		return filepath.Base(s.Executable)
	}
	return quote(s.Executable)
}

// may refuses what cannot work: another init system, another user than root.
func (s *Service) may(verb string) error {
	if _, err := os.Stat(s.path("/run/systemd/system")); err != nil {
		return fmt.Errorf("%s: this machine is not run by systemd (there is no /run/systemd/system): have its own init system run `%s run --config %s`", verb, s.Executable, configFile)
	}
	if os.Geteuid() != s.owner {
		return fmt.Errorf("%s: only root may: sudo %s %s", verb, s.command(), verb)
	}
	return nil
}

// Install makes the service, enables and starts it. What is there already stays
// as it is; nothing that is edited by hand is touched. Where the package is
// installed, its unit and its program are used.
func (s *Service) Install(ctx context.Context) error {
	if err := s.may("install"); err != nil {
		return err
	}
	if to, err := os.Readlink(s.path(handUnit)); err == nil && to == os.DevNull {
		return fmt.Errorf("install: the service is masked: sudo systemctl unmask %s", name)
	}
	_, err := os.Stat(s.path(packageUnit))
	there := installed(s.root)
	switch {
	case there.By == Other:
		return fmt.Errorf("install: %s is not the gateway's: move it away (sudo mv %s %s.old) and try again", there.Unit, there.Unit, there.Unit)
	case there.By == Hand && err == nil:
		return fmt.Errorf("install: %s, of an earlier `gateway install`, hides the package's unit: sudo %s uninstall && sudo gateway install", there.Unit, s.command())
	}
	rewritten, program := false, s.Executable
	if there.By == Package {
		if program = there.Program; program != s.Executable {
			fmt.Fprintf(s.Out, "the gateway's package is installed: its program is run, %s, not %s\n", program, s.Executable)
		}
	} else if rewritten, err = s.installByHand(ctx, there); err != nil {
		return err
	}
	if err := s.enable(ctx); err != nil {
		return err
	}
	if err := s.startLatest(ctx, program, rewritten); err != nil {
		return err
	}
	if !s.done {
		fmt.Fprintln(s.Out, "already installed, and it runs")
	}
	return nil
}

// installByHand does what the package's scripts do, and writes the unit.
func (s *Service) installByHand(ctx context.Context, there Installation) (rewritten bool, err error) {
	if err := s.checkProgram(); err != nil {
		return false, err
	}
	text, err := Unit(s.Executable)
	if err != nil {
		return false, fmt.Errorf("install: %w", err)
	}
	if err := s.makeAccount(ctx); err != nil {
		return false, err
	}
	if err := s.makeFolders(); err != nil {
		return false, err
	}
	if err := s.makeDevices(ctx); err != nil {
		return false, err
	}
	if there.By == Nobody {
		u, err := s.unit(text)
		if err != nil {
			return false, fmt.Errorf("install: %w", err)
		}
		if err := u.Install(); err != nil {
			return false, fmt.Errorf("install %s: %w", handUnit, err)
		}
		s.say("wrote %s and enabled it: it starts with the machine", handUnit)
		return false, nil
	}
	if rewritten, err = s.write(handUnit, text, 0o644, -1); err != nil || !rewritten {
		return false, err
	}
	if _, err := s.run(ctx, "", "systemctl", "daemon-reload"); err != nil {
		return false, err
	}
	s.say("wrote %s anew", handUnit)
	return true, nil
}

// checkProgram refuses a program that the service could not run.
func (s *Service) checkProgram() error {
	mend := fmt.Sprintf("sudo install -m 0755 %s /usr/local/bin/gateway && sudo gateway install", quote(s.Executable))
	if hides(s.Executable) {
		return fmt.Errorf("install: the service sees nothing of the folder in which this program lies (%s): %s", filepath.Dir(s.Executable), mend)
	}
	for p := s.Executable; p != "/" && p != "."; p = filepath.Dir(p) {
		i, err := os.Stat(s.path(p))
		if err != nil {
			return fmt.Errorf("install: %w", err)
		}
		if i.Mode()&0o001 == 0 {
			return fmt.Errorf("install: the service's user may not run %s, as the mode of %s is %#o: %s", s.Executable, p, i.Mode().Perm(), mend)
		}
	}
	return nil
}

// quote writes a word for a shell, if it needs it.
func quote(word string) string {
	if strings.ContainsAny(word, " \t\n'\"\\$`!*?[](){}<>|&;#~%") {
		return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
	}
	return word
}

// makeAccount makes the user and the groups that sysusers.conf names.
func (s *Service) makeAccount(ctx context.Context) error {
	missing := s.missingAccounts()
	if len(missing) == 0 {
		return nil
	}
	if _, err := s.run(ctx, sysusers, "systemd-sysusers", "-"); err != nil {
		return fmt.Errorf("install: make the user and its groups: %w", err)
	}
	still := s.missingAccounts() // those that a directory service has
	missing = slices.DeleteFunc(missing, func(m string) bool { return slices.Contains(still, m) })
	if len(missing) > 0 {
		s.say("made the %s", strings.Join(missing, ", the "))
	}
	return nil
}

// missingAccounts lists what of sysusers.conf is not in the machine's own lists.
func (s *Service) missingAccounts() (missing []string) {
	for line := range strings.Lines(sysusers) {
		w := strings.Fields(line)
		if len(w) < 2 {
			continue
		}
		if w[0] == "u" && s.id("/etc/passwd", w[1]) < 0 {
			missing = append(missing, "user "+w[1])
		}
		if w[0] == "g" && s.id("/etc/group", w[1]) < 0 {
			missing = append(missing, "group "+w[1])
		}
	}
	return missing
}

// id is the number of a user in passwd or of a group in group; -1: none.
func (s *Service) id(file, name string) int {
	b, _ := os.ReadFile(s.path(file))
	for line := range strings.Lines(string(b)) {
		if w := strings.Split(line, ":"); len(w) > 2 && w[0] == name {
			if n, err := strconv.Atoi(w[2]); err == nil {
				return n
			}
		}
	}
	return -1
}

// makeFolders makes the configuration's folders and a first configuration.
func (s *Service) makeFolders() error {
	group := s.id("/etc/group", account)
	if group < 0 {
		return fmt.Errorf("install: there is no group %s in /etc/group: sudo groupadd --system %s", account, account)
	}
	for _, d := range []struct {
		path  string
		mode  fs.FileMode
		group int
		named string
	}{{configDir, 0o750, group, account}, {secretsDir, 0o700, s.groupOfOwner(), "root"}} {
		i, err := os.Stat(s.path(d.path))
		if errors.Is(err, fs.ErrNotExist) {
			err = os.Mkdir(s.path(d.path), 0o700)
		}
		if err != nil {
			return fmt.Errorf("install: %w", err)
		}
		if i != nil {
			owned, ok := i.Sys().(*syscall.Stat_t)
			if ok && i.Mode().Perm() == d.mode && int(owned.Uid) == s.owner && int(owned.Gid) == d.group {
				continue
			}
		}
		if err := s.own(d.path, d.mode, d.group); err != nil {
			return err
		}
		if i == nil {
			s.say("made %s (%#o root:%s)", d.path, d.mode, d.named)
		} else {
			s.say("set %s to %#o root:%s", d.path, d.mode, d.named)
		}
	}
	if _, err := os.Lstat(s.path(configFile)); !errors.Is(err, fs.ErrNotExist) {
		return nil // whatever it is: it is not ours
	}
	if _, err := s.write(configFile, s.Starter, 0o640, group); err != nil {
		return err
	}
	s.say("wrote a first %s: edit it, the service reads it again by itself", configFile)
	return nil
}

// groupOfOwner is root's group.
func (s *Service) groupOfOwner() int {
	if s.owner == 0 {
		return 0
	}
	return os.Getegid()
}

func (s *Service) own(p string, mode fs.FileMode, group int) error {
	if err := os.Chown(s.path(p), s.owner, group); err != nil {
		return fmt.Errorf("install: %w", err)
	}
	if err := os.Chmod(s.path(p), mode); err != nil {
		return fmt.Errorf("install: %w", err)
	}
	return nil
}

// write writes a whole file, durably, unless it says so already.
func (s *Service) write(p, text string, mode fs.FileMode, group int) (written bool, err error) {
	to := s.path(p)
	if b, err := os.ReadFile(to); err == nil && string(b) == text {
		return false, nil
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("install: write %s: %w", p, err)
		}
	}()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return false, err
	}
	f, err := os.CreateTemp(filepath.Dir(to), "."+filepath.Base(to)+".*")
	if err != nil {
		return false, err
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(text)
	err = errors.Join(err, f.Chown(s.owner, group), f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return false, err
	}
	return true, os.Rename(f.Name(), to)
}

// makeDevices sees to the buses and lines: now and at each start of the machine.
// That there are none is not this command's fault.
func (s *Service) makeDevices(ctx context.Context) error {
	try := func(command string, args ...string) {
		if _, err := s.run(ctx, "", command, args...); err != nil {
			fmt.Fprintf(s.Out, "(not done: %v)\n", err)
		}
	}
	if written, err := s.write(modulesTo, modules, 0o644, -1); err != nil {
		return err
	} else if written {
		s.say("wrote %s", modulesTo)
		try("modprobe", "i2c-dev")
	}
	if written, err := s.write(rulesTo, rules, 0o644, -1); err != nil {
		return err
	} else if written {
		s.say("wrote %s", rulesTo)
		try("udevadm", "control", "--reload")
		try("udevadm", "trigger", "--subsystem-match=i2c-dev", "--subsystem-match=gpio", "--subsystem-match=spidev")
	}
	return nil
}

// show asks systemd for what it knows of the service.
func (s *Service) show(ctx context.Context) (map[string]string, error) {
	out, err := s.run(ctx, "", "systemctl", "show", name, "--property=ActiveState,SubState,UnitFileState,MainPID,Result,ExecMainStatus,InvocationID,StatusText")
	if err != nil {
		return nil, err
	}
	facts := map[string]string{}
	for line := range strings.Lines(out) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		facts[key] = value
	}
	return facts, nil
}

func (s *Service) enable(ctx context.Context) error {
	facts, err := s.show(ctx)
	if err != nil || facts["UnitFileState"] == "enabled" {
		return err
	}
	if _, err := s.run(ctx, "", "systemctl", "--quiet", "enable", name); err != nil {
		return err
	}
	s.say("enabled it: it starts with the machine")
	return nil
}

// startLatest starts the service, or starts it anew if what runs is not what is
// installed now: another unit, or another file than the program.
func (s *Service) startLatest(ctx context.Context, program string, rewritten bool) error {
	facts, err := s.show(ctx)
	if err != nil {
		return err
	}
	u, err := s.unit("")
	if err != nil {
		return err
	}
	if facts["ActiveState"] != "active" {
		return s.report(ctx, "started it", u.Start())
	}
	runs, err := os.Stat(s.path("/proc/" + facts["MainPID"] + "/exe")) // the file itself, even if it has lost its name
	is, err2 := os.Stat(s.path(program))
	if err == nil && err2 == nil && os.SameFile(runs, is) && !rewritten {
		return nil
	}
	return s.report(ctx, "restarted it: what ran was started before this", u.Restart())
}

// report says how the service is after a start, which has waited until it was
// ready or had failed.
func (s *Service) report(ctx context.Context, what string, err error) error {
	facts, showErr := s.show(ctx)
	if err == nil {
		err = showErr
	}
	if err == nil && facts["ActiveState"] == "active" {
		if text := facts["StatusText"]; text != "" {
			what += " (" + text + ")"
		}
		s.say("%s", what)
		return nil
	}
	why, mend := Reason(facts["ExecMainStatus"])
	if mend != "" {
		why += ", see: " + mend
	} else {
		why = facts["Result"] + ", status " + facts["ExecMainStatus"]
	}
	if said := s.lastWords(ctx, facts["InvocationID"]); said != "" {
		why += ": " + said
	}
	if facts["SubState"] == "auto-restart" {
		why += "; it is tried again every 2 s"
	}
	if err == nil {
		err = fmt.Errorf("it is %s", facts["ActiveState"])
	}
	return fmt.Errorf("the service does not run: %s; more: sudo journalctl -u gateway -n 50 (systemctl: %w)", why, err)
}

// lastWords is the last line that the daemon itself has written in one run, but
// for those indented: they belong to the one before.
func (s *Service) lastWords(ctx context.Context, invocation string) (last string) {
	if invocation == "" {
		return ""
	}
	said, err := s.run(ctx, "", "journalctl", "--output=cat", "--no-pager", "--lines=20", "_SYSTEMD_INVOCATION_ID="+invocation, "_TRANSPORT=stdout")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(said) {
		if line = strings.TrimRight(line, " \n"); line != "" && line[0] != ' ' && line[0] != '\t' {
			last = line
		}
	}
	return last
}

// Uninstall stops the service and removes it. The configuration and what waits
// in the log stay.
func (s *Service) Uninstall(ctx context.Context) error {
	if err := s.may("uninstall"); err != nil {
		return err
	}
	there := installed(s.root)
	switch there.By {
	case Package:
		return errors.New("uninstall: the gateway was installed as a package: sudo apt remove gateway")
	case Other:
		return fmt.Errorf("uninstall: %s is not the gateway's: it is left alone", there.Unit)
	case Hand:
		u, err := s.unit("")
		if err != nil {
			return err
		}
		if err := u.Stop(); err != nil {
			return fmt.Errorf("uninstall: stop %s: %w (sudo systemctl stop gateway says why)", name, err)
		}
		s.say("stopped it")
		if err := u.Uninstall(); err != nil {
			return fmt.Errorf("uninstall: disable and remove %s: %w", handUnit, err)
		}
		s.say("disabled it and removed %s", handUnit)
		_, _ = s.run(ctx, "", "systemctl", "reset-failed", name) // nothing to reset is an error to it
	}
	for _, p := range []string{modulesTo, rulesTo} {
		err := os.Remove(s.path(p))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("uninstall: %w", err)
		}
		s.say("removed %s", p)
	}
	if !s.done {
		fmt.Fprintln(s.Out, "not installed: there was nothing to do")
		return nil
	}
	waiting := ""
	if s.Undelivered != nil {
		waiting = s.Undelivered()
	}
	if waiting != "" {
		waiting = ": " + waiting
	}
	fmt.Fprintf(s.Out, "kept: %s (configuration and secrets), %s (the log%s), the user gateway, this program (%s)\n", configDir, stateDir, waiting, s.Executable)
	if _, err := os.Stat(s.path(handUnit + ".d")); err == nil {
		fmt.Fprintf(s.Out, "kept, too: %s (settings of this site)\n", handUnit+".d")
	}
	fmt.Fprintf(s.Out, "to lose the configuration and the readings, too: sudo rm -r %s %s && sudo userdel gateway\n", configDir, stateDir)
	if installed(s.root).By == Package {
		fmt.Fprintln(s.Out, "the package's unit is there, too: sudo gateway install enables and starts it")
	}
	return nil
}

// Start starts the service and waits until it is ready or has failed.
func (s *Service) Start(ctx context.Context) error {
	return s.act(ctx, "start", func(u actions, facts map[string]string) error {
		if facts["ActiveState"] == "active" {
			fmt.Fprintln(s.Out, "it runs already")
			return nil
		}
		return s.report(ctx, "started it", u.Start())
	})
}

// Restart does so, whether it ran or not.
func (s *Service) Restart(ctx context.Context) error {
	return s.act(ctx, "restart", func(u actions, _ map[string]string) error { return s.report(ctx, "restarted it", u.Restart()) })
}

// Stop stops the service; it starts again with the machine.
func (s *Service) Stop(ctx context.Context) error {
	return s.act(ctx, "stop", func(u actions, facts map[string]string) error {
		if facts["ActiveState"] == "inactive" {
			fmt.Fprintln(s.Out, "it does not run")
			return nil
		}
		if err := u.Stop(); err != nil {
			return fmt.Errorf("stop: %w (sudo systemctl stop gateway says why)", err)
		}
		s.say("stopped it")
		return nil
	})
}

func (s *Service) act(ctx context.Context, verb string, do func(actions, map[string]string) error) error {
	if err := s.may(verb); err != nil {
		return err
	}
	if installed(s.root).By == Nobody {
		return fmt.Errorf("%s: the service is not installed: sudo %s install", verb, s.command())
	}
	facts, err := s.show(ctx)
	if err != nil {
		return err
	}
	u, err := s.unit("")
	if err != nil {
		return err
	}
	return do(u, facts)
}
