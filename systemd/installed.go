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

// Reason says why a service has ended with a status of its own, and which command
// mends or shows it: the daemon's 78, and those of systemd.exec(5), with which it did
// not even begin. Empty: the status says no more than that it ended.
func Reason(exitStatus string) (why, mend string) {
	r := reasons[exitStatus]
	return r[0], r[1]
}

var reasons = map[string][2]string{
	"78":  {"its configuration is refused, and no earlier one worked", "sudo gateway check /etc/gateway/gateway.yaml"},
	"203": {"its program is not there or cannot be run", "systemctl cat gateway.service | grep ^ExecStart="},
	"216": {"one of its groups is missing (i2c, gpio, spi)", "for g in i2c gpio spi; do sudo groupadd --system --force $g; done"},
	"217": {"its user is missing", "sudo useradd --system --home-dir /var/lib/gateway --shell /usr/sbin/nologin gateway"},
	"243": {"the folder of its secrets is missing", "sudo install -d -m 0700 /etc/gateway/secrets"},
}
