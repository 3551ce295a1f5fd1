package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
)

// machineService is the gateway as a service of this machine; which there is,
// depends on the system.
type machineService interface {
	Install(context.Context) error
	Uninstall(context.Context) error
	Start(context.Context) error
	Stop(context.Context) error
	Restart(context.Context) error
}

// newServiceCommands are the commands that make the gateway a service and steer
// it.
func newServiceCommands() []*cobra.Command {
	of := func(use, short, long string, do func(machineService, context.Context) error) *cobra.Command {
		return &cobra.Command{
			Use: use, Short: short, Long: long, Example: "  sudo gateway " + use, Args: exactly(),
			RunE: func(cmd *cobra.Command, args []string) error {
				executable, err := os.Executable()
				if err == nil {
					executable, err = filepath.EvalSymlinks(executable)
				}
				if err != nil {
					return fmt.Errorf("%s: where is this program: %w", cmd.Name(), err)
				}
				s, err := newService(cmd.Context(), executable, args, cmd.OutOrStdout())
				if err != nil {
					return err
				}
				return do(s, cmd.Context())
			},
		}
	}
	install := of("install", "Make the gateway start with this machine", installLong, machineService.Install)
	install.Args = cobra.ArbitraryArgs
	install.Example = installExample
	return []*cobra.Command{
		install,
		of("uninstall", "Stop the service and remove it; keep configuration and readings",
			`Stops the service and removes what gateway install has made, but for the
configuration and the readings that wait for the broker: how to remove those, it
tells.`, machineService.Uninstall),
		of("start", "Start the service", "Starts the service and waits until it runs or has failed.", machineService.Start),
		of("stop", "Stop the service", "Stops the service. It starts again with the machine.", machineService.Stop),
		of("restart", "Stop the service and start it", "Stops the service, starts it and waits until it runs or has failed.", machineService.Restart),
	}
}

// undelivered tells of the readings that wait in the log while no daemon runs;
// "" where that is not known.
func undelivered(ctx context.Context, file string) string {
	dir := stateDir()
	if c, err := loadConfig(file); err == nil {
		dir = c.Log.Dir
	}
	state, err := statLog(ctx, dir)
	if err != nil {
		return ""
	}
	return plural(state.Waiting, "reading") + " not delivered yet"
}
