package systemd

import (
	"os"
	"path/filepath"
)

// By is who has put a unit file there.
type By string

const (
	Nobody  By = "" // there is none
	Hand    By = "gateway install"
	Package By = "the package"
	Other   By = "somebody else" // it is not ours
)

// Installation is the unit file that systemd uses.
type Installation struct {
	By      By
	Unit    string // its path
	Program string // that it runs
}

const (
	handUnit    = "/etc/systemd/system/gateway.service"
	packageUnit = "/usr/lib/systemd/system/gateway.service"
)

// Installed says which unit file is used here.
func Installed() Installation { return installed("/") }

// installed looks below a root folder. A unit in /etc hides the package's.
func installed(root string) Installation {
	if i, err := os.Lstat(filepath.Join(root, handUnit)); err == nil {
		b, _ := os.ReadFile(filepath.Join(root, handUnit))
		by := Other
		if text := string(b); i.Mode().IsRegular() && (text == "" || ours(text)) { // empty: a power cut while it was written
			by = Hand
		}
		return Installation{by, handUnit, program(string(b))}
	}
	for _, p := range []string{packageUnit, "/lib/systemd/system/gateway.service"} {
		if b, err := os.ReadFile(filepath.Join(root, p)); err == nil {
			return Installation{Package, p, program(string(b))}
		}
	}
	return Installation{}
}
