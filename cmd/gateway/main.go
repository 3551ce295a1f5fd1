// Command gateway reads sensors, keeps what they say while the network is away,
// and forwards it to a FIWARE context broker.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	_ "campus-gateway/cmd/gateway/quiet"

	"github.com/spf13/cobra"
)

// Exit statuses. 78 is sysexits.h's EX_CONFIG: the unit file tells systemd that
// a restart cannot help.
const (
	exitFailure = 1
	exitUsage   = 2
	exitConfig  = 78
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal kills
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(48 << 20) // a Pi has processor time to spare rather than memory, from here on
	}
	os.Exit(managed(ctx, func(ctx context.Context, stderr io.Writer) int { return execute(ctx, os.Args[1:], os.Stdout, stderr) }))
}

// statusError is an error with an exit status of its own.
type statusError struct {
	error
	status int
}

func (e statusError) Unwrap() error { return e.error }

// execute runs a command line and returns the exit status.
func execute(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintln(stderr, message(err))
	if s, ok := errors.AsType[statusError](err); ok {
		return s.status
	}
	return exitFailure
}

// message is an error as it is shown: faults of a file begin with the file's
// own name, everything else with ours.
func message(err error) string {
	if f, ok := errors.AsType[*faults](err); ok {
		return f.Error()
	}
	return "gateway: " + err.Error()
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "gateway",
		Short: "The campus gateway: from sensors on a Raspberry Pi to a FIWARE broker",
		Long: `The campus gateway reads sensors on I2C and GPIO, keeps their readings while
the network is away, and forwards them in NGSI batches to a FIWARE broker.`,
		Example: `  gateway demo                              see it work: no hardware, no broker needed
  gateway read bme280 --bus i2c-1           ask a new chip for its first values
  gateway init > gateway.yaml               a configuration to start from
  gateway check gateway.yaml                what is wrong with it
  gateway run --config gateway.yaml         the real thing`,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			return cmd.Help()
		},
		Args: cobra.ArbitraryArgs,
	}
	root.AddCommand(
		newRun(), newStatus(), newDoctor(), newBundle(), newDemo(), newRead(), newInit(), newCheck(), newDrivers(),
		newBuffer(), newBench(), newContexts(), newProvision(), newInspect(), newVersion(),
	)
	root.AddCommand(newServiceCommands()...)
	root.SetHelpCommand(&cobra.Command{Use: "help", Hidden: true, RunE: func(cmd *cobra.Command, args []string) error {
		c, rest, err := root.Find(args)
		if err != nil || len(rest) > 0 {
			return unknownCommand(root, args[0])
		}
		return c.Help()
	}})
	for _, c := range append(root.Commands(), root) {
		c.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
			return usage(fmt.Errorf("%w (`%s --help` shows the flags)", err, cmd.CommandPath()))
		})
		if args := c.Args; args != nil {
			c.Args = func(cmd *cobra.Command, a []string) error {
				if err := args(cmd, a); err != nil {
					return usage(fmt.Errorf("%w (`%s --help` shows how)", err, cmd.CommandPath()))
				}
				return nil
			}
		}
	}
	return root
}

// usage marks a mistake on the command line: one line, exit status 2.
func usage(err error) error {
	return statusError{errors.New(strings.ReplaceAll(err.Error(), "\n", " ")), exitUsage}
}

func unknownCommand(root *cobra.Command, name string) error {
	return usage(fmt.Errorf("unknown command %q%s (`gateway --help` lists them)", name, suggest(name, commandNames(root))))
}

func commandNames(root *cobra.Command) []string {
	var names []string
	for _, c := range root.Commands() {
		names = append(names, c.Name())
	}
	return names
}

// exactly wants named arguments, and says which.
func exactly(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) < len(names) {
			return fmt.Errorf("%s is missing", names[len(args)])
		}
		if len(args) > len(names) {
			return fmt.Errorf("%q is one argument too many", args[len(names)])
		}
		return nil
	}
}
