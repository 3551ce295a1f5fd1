package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"campus-gateway"
	"campus-gateway/drivers"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
)

func newRead() *cobra.Command {
	at := sensorConfig{Name: "read"}
	var address string
	var settings []string
	var timeout time.Duration
	var simulate bool
	cmd := &cobra.Command{
		Use:   "read DRIVER",
		Short: "Ask one chip for its values, once",
		Long: `Opens one chip or line, measures once, prints the values with their units and
puts the chip back to sleep. It needs no configuration. Driver options are those
of the configuration file (see "gateway init"), given with --set.`,
		Example: `  gateway read bme280 --bus i2c-1 --address 0x76
  gateway read ads1115 --set channel=A0 --set range=4.096
  gateway read contact --pin GPIO17`,
		Args: exactly("the driver's name (see `gateway drivers`)"),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := oneSensor(cmd, args[0], settings)
			if err != nil {
				return err
			}
			host, closeHost := newHost(simulate, newLogger(cmd.ErrOrStderr()))
			defer closeHost()
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			return readOnce(ctx, host, s, cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.StringVar(&at.Bus, "bus", "", "the I2C bus: i2c-1")
	f.StringVar(&address, "address", "", "the chip's 7-bit address, such as 0x76 (default: the driver's)")
	f.StringVar(&at.Pin, "pin", "", "the GPIO line: GPIO17")
	f.Bool("shared", false, "talk to a chip that a kernel driver owns")
	f.StringArrayVar(&settings, "set", nil, "a driver option as `key=value`; may be repeated")
	f.DurationVar(&timeout, "timeout", 30*time.Second, "how long to wait for a value")
	f.BoolVar(&simulate, "simulate", false, "read a simulated chip, as `gateway run --simulate` does")
	return cmd
}

// oneSensor makes a sensor of the command line through the same checks as the
// configuration's.
func oneSensor(cmd *cobra.Command, driver string, settings []string) (*sensorConfig, error) {
	if _, ok := drivers.Lookup(driver); !ok {
		return nil, usage(fmt.Errorf("unknown driver %q%s", driver, suggest(driver, driverNames())))
	}
	n := &yaml.Node{Kind: yaml.MappingNode}
	set := func(k, v string) error {
		var value yaml.Node
		if err := yaml.Unmarshal([]byte(v), &value); err != nil || len(value.Content) != 1 {
			return usage(fmt.Errorf("%s: %q is not a value", k, v))
		}
		n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: k}, value.Content[0])
		return nil
	}
	pairs := append([]string{"name=read", "driver=" + driver}, settings...)
	for _, k := range []string{"bus", "address", "pin", "shared"} {
		if f := cmd.Flags().Lookup(k); f.Changed {
			pairs = append(pairs, k+"="+f.Value.String())
		}
	}
	for _, p := range pairs {
		k, v, ok := strings.Cut(p, "=")
		if !ok {
			return nil, usage(fmt.Errorf("--set %s: want key=value", p))
		}
		if err := set(k, v); err != nil {
			return nil, err
		}
	}
	d := &decoder{faults: &faults{file: "read"}, nodes: map[any]*yaml.Node{}}
	c := defaultConfig()
	s := d.sensor(n, "", &c)
	if len(d.list) > 0 {
		var all []string
		for _, x := range d.list {
			all = append(all, strings.TrimPrefix(strings.TrimPrefix(x.path, ".")+": "+x.text, ": "))
		}
		return nil, usage(errors.New(strings.Join(all, "; ")))
	}
	return s, nil
}

// readOnce opens, measures, prints and halts.
func readOnce(ctx context.Context, h drivers.Host, s *sensorConfig, out io.Writer) (err error) {
	r, err := (&drivers.Opener{Host: h}).Open(ctx, s.driver, s.place(), s.options)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Halt()) }()
	var values []gateway.Value
	switch r := r.(type) {
	case gateway.Sensor:
		values, err = r.Sense(ctx)
	case gateway.Watcher:
		var first context.CancelFunc
		ctx, first = context.WithCancel(ctx)
		err = r.Watch(ctx, func(vs []gateway.Value) { values = vs; first() })
		first()
	}
	if err != nil {
		return err
	}
	if len(values) == 0 {
		return fmt.Errorf("%s: no value came in time", r)
	}
	fmt.Fprintln(out, r)
	printValues(out, values)
	return nil
}

func printValues(out io.Writer, values []gateway.Value) {
	for _, v := range values {
		text := fmt.Sprint(v.V)
		if x, ok := v.V.(float64); ok {
			text = formatNumber(x)
		}
		fmt.Fprintln(out, strings.TrimRight(fmt.Sprintf("  %-18s %12s %s", v.Quantity, text, v.Quantity.Unit()), " "))
	}
}

// formatNumber is a measurement as people read it: no exponent, at most four decimals.
func formatNumber(x float64) string {
	s := fmt.Sprintf("%.4f", x)
	return strings.TrimRight(strings.TrimRight(s, "0"), ".")
}
