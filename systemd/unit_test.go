package systemd

import (
	"encoding/json"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

func TestUnitIsThePackages(t *testing.T) {
	file, err := os.ReadFile("gateway.service")
	if err != nil {
		t.Fatal(err)
	}
	got, err := Unit("/usr/bin/gateway")
	if err != nil || got != string(file) {
		t.Errorf("not the file byte for byte: %v\n%s", err, got)
	}
	if strings.Contains(got, "{{") {
		t.Error("kardianos/service would take {{ for an action of its templates")
	}
	if !ours(got) || program(got) != "/usr/bin/gateway" {
		t.Errorf("not known as ours, or another program: %q", program(got))
	}
	there, err := Unit("/opt/gw/gateway")
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.Replace(got, "ExecStart=/usr/bin/gateway run", "ExecStart=/opt/gw/gateway run", 1); there != want || there == got {
		t.Errorf("more than the program changed:\n%s", there)
	}
}

var words = []struct{ executable, word string }{ // word "": refused
	{"/usr/local/bin/gateway", "/usr/local/bin/gateway"},
	{"/opt/my gateway/gateway", `"/opt/my gateway/gateway"`},
	{"/opt/a;b", `"/opt/a;b"`},
	{"/opt/ends with ", `"/opt/ends with "`},
	{"/opt/100%/%n", "/opt/100%%/%%n"},
	{"/opt/50 %/gateway", `"/opt/50 %%/gateway"`},
	{"/opt/é/gateway", "/opt/é/gateway"},
	{"/opt/#1/@x/-y/!z:+/gateway", "/opt/#1/@x/-y/!z:+/gateway"},
	{"", ""}, {"gateway", ""}, {"./gateway", ""}, {"/opt/../gateway", ""}, {"/opt//gateway", ""}, {"/opt/gateway/", ""},
	{`/opt/"q"/gateway`, ""}, {"/opt/it's/gateway", ""}, {`/opt/back\slash`, ""}, {"/opt/$HOME/gateway", ""}, {"/opt/${x}", ""},
	{"/opt/{{Path}}/gateway", ""}, {"/opt/a\nExecStartPre=/bin/x", ""}, {"/opt/tab\t", ""}, {"/opt/nul\x00", ""}, {"/opt/\xff/gateway", ""}, {"/opt/nbsp\u00a0x", ""},
}

func TestExecWord(t *testing.T) {
	for _, c := range words {
		got, err := execWord(c.executable)
		if got != c.word || (err == nil) != (c.word != "") {
			t.Errorf("%q: %q, %v, want %q", c.executable, got, err, c.word)
		}
	}
}

func FuzzUnit(f *testing.F) {
	for _, c := range words {
		f.Add(c.executable)
	}
	execLine := regexp.MustCompile(`(?m)^ExecStart=.*\n`)
	f.Fuzz(func(t *testing.T, executable string) {
		text, err := Unit(executable)
		if err != nil {
			return
		}
		if got := program(text); got != executable {
			t.Errorf("%q is read back as %q", executable, got)
		}
		if !ours(text) || strings.Contains(text, "{{") || execLine.ReplaceAllString(text, "") != execLine.ReplaceAllString(unit, "") {
			t.Errorf("%q changes more than the program:\n%s", executable, text)
		}
		line := execLine.FindString(text)
		if i := strings.IndexFunc(line, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) || strings.ContainsRune(`\'$`, r) }); i >= 0 {
			t.Errorf("%q: systemd would read something into %q", executable, line)
		}
	})
}

// analyze runs systemd-analyze over a unit in a root folder of its own.
func analyze(t *testing.T, text string, args ...string) (string, error) {
	t.Helper()
	tool, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("SKIPPED: systemd-analyze is not installed")
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "gateway.service")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(tool, append(args, file)...)
	cmd.Env = append(os.Environ(), "SYSTEMD_COLORS=0", "SYSTEMD_PAGER=")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestUnitVerifies(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	self, err = filepath.EvalSymlinks(self)
	if err != nil {
		t.Fatal(err)
	}
	text, err := Unit(self) // one that is there: verify asks for that
	if err != nil {
		t.Fatal(err)
	}
	if out, err := analyze(t, text, "verify", "--man=no"); err != nil || strings.Contains(out, "gateway.service:") {
		t.Errorf("%v: %s", err, out)
	}
	if out, _ := analyze(t, strings.Replace(text, "WatchdogSec=", "WatchDogSec=", 1), "verify", "--man=no"); !strings.Contains(out, "gateway.service:") {
		t.Errorf("a mistyped key is not seen: %s", out)
	}
}

// systemd itself reads the words as we mean them.
func TestUnitVerifiesElsewhere(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "50 % of #1; é")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "gateway")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	text, err := Unit(program)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := analyze(t, text, "verify", "--man=no"); err != nil || out != "" {
		t.Errorf("%v: %s", err, out)
	}
	if err := os.Remove(program); err != nil {
		t.Fatal(err)
	}
	if out, err := analyze(t, text, "verify", "--man=no"); err == nil || !strings.Contains(out, "50 % of #1; é/gateway") {
		t.Errorf("a program that is not there: %v: %s", err, out)
	}
}

// exposed are the rows of `systemd-analyze security` in which the unit scores: what
// it cannot do without.
var exposed = []string{
	"PrivateNetwork=", "RestrictAddressFamilies=~AF_(INET|INET6)", "RestrictAddressFamilies=~AF_UNIX", "IPAddressDeny=", // the broker; a site's drop-in may deny the rest
	"PrivateDevices=", "DeviceAllow=", "SupplementaryGroups=", // buses and lines
	"ProcSubset=",               // which board it is
	"RootDirectory=/RootImage=", // no image
}

// rows are the names of those rows that score.
func rows(t *testing.T, text string) (names []string) {
	t.Helper()
	out, err := analyze(t, text, "security", "--offline=yes", "--no-pager", "--json=short")
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var all []struct{ Name, Exposure string }
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, r := range all {
		if r.Exposure != "" {
			names = append(names, r.Name)
		}
	}
	return names
}

// How exposed the host is to a daemon that was taken over: at most 1.5 on
// systemd's scale to 10, and in no row but those above.
func TestUnitExposure(t *testing.T) {
	passes := func(text string) (string, bool) {
		out, err := analyze(t, text, "security", "--offline=yes", "--no-pager", "--threshold=15")
		return out, err == nil
	}
	out, ok := passes(unit)
	level := regexp.MustCompile(`Overall exposure level for gateway.service: ([0-9.]+)`).FindString(out)
	if !ok || level == "" {
		t.Errorf("more than 1.5: %s", out)
	}
	t.Log(level)
	for _, name := range rows(t, unit) {
		if !slices.Contains(exposed, name) {
			t.Errorf("the unit is exposed in %s, too", name)
		}
	}
	without := func(line string) string {
		text := strings.Replace(unit, "\n"+line+"\n", "\n", 1)
		if text == unit {
			t.Fatalf("the unit has no line %s", line)
		}
		return text
	}
	// The threshold sees a large hole, the rows every one.
	for _, line := range []string{"SystemCallFilter=@system-service", "CapabilityBoundingSet=", "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX", "RestrictNamespaces=yes"} {
		if _, ok := passes(without(line)); ok {
			t.Errorf("without %s it is within 1.5, too: the threshold sees nothing", line)
		}
	}
	for _, line := range []string{
		"User=gateway", "ProtectSystem=strict", "ProtectHome=yes", "PrivateTmp=yes", "ProtectProc=invisible",
		"ProtectKernelTunables=yes", "ProtectKernelModules=yes", "ProtectKernelLogs=yes", "ProtectControlGroups=yes", "ProtectClock=yes",
		"ProtectHostname=yes", "NoNewPrivileges=yes", "PrivateUsers=yes", "RemoveIPC=yes", "LockPersonality=yes",
		"MemoryDenyWriteExecute=yes", "RestrictRealtime=yes", "RestrictSUIDSGID=yes", "RestrictNamespaces=yes",
		"SystemCallArchitectures=native", "SystemCallFilter=~@privileged @resources @obsolete", "UMask=0077",
	} {
		if !slices.ContainsFunc(rows(t, without(line)), func(name string) bool { return !slices.Contains(exposed, name) }) {
			t.Errorf("without %s it is exposed in no further row", line)
		}
	}
}

// The folders that `gateway install` refuses are those that the unit hides.
func TestHidden(t *testing.T) {
	for _, line := range []string{"ProtectHome=yes", "PrivateTmp=yes"} {
		if !strings.Contains(unit, "\n"+line+"\n") {
			t.Errorf("the unit has no %s", line)
		}
	}
	_, rest, _ := strings.Cut(unit, "\nInaccessiblePaths=")
	line, _, _ := strings.Cut(rest, "\n")
	for _, p := range strings.Fields(line) {
		if p = strings.TrimPrefix(p, "-"); !hides(path.Join(p, "gateway")) {
			t.Errorf("%s is hidden, and not known to be", p)
		}
	}
}
