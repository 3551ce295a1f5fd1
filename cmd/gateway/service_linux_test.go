package main

import (
	"os"
	"strings"
	"testing"
)

// What the service's commands say where they cannot do anything: a test must not
// install one.
func TestServiceCommandsRefuse(t *testing.T) {
	status, _, stderr := command(t, "install", "--", "demo")
	if status != exitUsage || !strings.Contains(stderr, "for the demo: gateway demo") {
		t.Errorf("status %d: %s", status, stderr)
	}
	if _, err := os.Stat("/run/systemd/system"); err == nil && os.Geteuid() == 0 {
		t.Skip("SKIPPED: root, and a machine that is run by systemd: it would be installed in earnest")
	}
	for _, verb := range []string{"install", "uninstall", "start", "stop", "restart"} {
		status, stdout, stderr := command(t, verb)
		if status != exitFailure || stdout != "" || !strings.Contains(stderr, "only root may: sudo ") && !strings.Contains(stderr, "this machine is not run by systemd") {
			t.Errorf("%s: status %d: %s%s", verb, status, stdout, stderr)
		}
	}
}
