package systemd

import (
	_ "embed"
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// What the service needs, as the package installs it, byte for byte.
var (
	//go:embed gateway.service
	unit string
	//go:embed sysusers.conf
	sysusers string
	//go:embed modules-load.conf
	modules string
	//go:embed 60-gateway.rules
	rules string
)

// packaged is the program that the unit file runs.
const packaged = "/usr/bin/gateway"

const execStart = "ExecStart="

// Unit is the unit file for a program that lies elsewhere than the package's:
// the same but for the program in ExecStart=.
func Unit(executable string) (string, error) {
	word, err := execWord(executable)
	if err != nil {
		return "", err
	}
	return strings.Replace(unit, execStart+packaged+" ", execStart+word+" ", 1), nil
}

// execWord writes a program's path as the first word of ExecStart=
// (systemd.service(5), "Command lines"). What has a meaning there that quoting
// does not take away, or differs between versions, is refused.
func execWord(executable string) (string, error) {
	if !path.IsAbs(executable) || path.Clean(executable) != executable {
		return "", fmt.Errorf("%q: want the whole path of the program", executable)
	}
	for _, r := range executable {
		if r == utf8.RuneError || !unicode.IsPrint(r) || strings.ContainsRune(`"'\${}`, r) {
			return "", fmt.Errorf("%q: a unit file cannot well name a program with %q in its path: put it elsewhere, such as /usr/local/bin/gateway", executable, r)
		}
	}
	word := strings.ReplaceAll(executable, "%", "%%")
	if strings.ContainsAny(word, " ;") {
		word = `"` + word + `"`
	}
	return word, nil
}

// program is the path in a unit file's ExecStart=, or "". It reads what execWord
// writes.
func program(unit string) string {
	for line := range strings.Lines(unit) {
		rest, ok := strings.CutPrefix(line, execStart)
		if !ok {
			continue
		}
		word, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
		if quoted, ok := strings.CutPrefix(rest, `"`); ok {
			word, _, _ = strings.Cut(quoted, `"`)
		}
		return strings.ReplaceAll(word, "%%", "%")
	}
	return ""
}

// ours tells whether a unit file is one of ours, of whatever version: they all
// begin with the same line.
func ours(text string) bool {
	first, _, _ := strings.Cut(unit, "\n")
	return strings.HasPrefix(text, first+"\n")
}

// hides tells whether the unit keeps the service from seeing a file (ProtectHome=,
// PrivateTmp=, InaccessiblePaths=): a program there cannot be its.
func hides(file string) bool {
	return slices.ContainsFunc([]string{"/home", "/root", "/run/user", "/tmp", "/var/tmp", "/boot/firmware", "/var/log", "/var/lib/dpkg"},
		func(dir string) bool { return strings.HasPrefix(file, dir+"/") })
}
