package main

import (
	"context"
	"errors"
	"io"

	"campus-gateway/systemd"
)

const (
	installLong = `Makes this program a service of systemd that starts with the machine: the user
gateway and its groups, /etc/gateway with a first configuration, rules for buses
and lines, the unit. Says each thing it does; what is there already stays. Where
the Debian package is installed, it only enables and starts that.`
	installExample = "  sudo gateway install"
)

// homeDir is where the daemon keeps what is its own.
func homeDir() string { return "/var/lib/gateway" }

func newService(ctx context.Context, executable string, args []string, out io.Writer) (machineService, error) {
	if len(args) > 0 {
		return nil, usage(errors.New("install takes nothing: here the service runs `gateway run`; for the demo: gateway demo"))
	}
	return systemd.NewService(systemd.Service{
		Executable: executable, Starter: starter, Out: out,
		Undelivered: func() string { return undelivered(ctx, "/etc/gateway/gateway.yaml") },
	}), nil
}
