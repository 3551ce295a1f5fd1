//go:build !linux

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/kardianos/service"
)

const (
	installLong = `Makes this program a service that starts with the machine: of launchd on macOS,
of the service manager on Windows. It runs the command after --, or gateway run
with a first configuration.`
	installExample = `  sudo gateway install             gateway run (on Windows without sudo: as administrator)
  sudo gateway install -- demo     the demo`
	serviceName = "gateway"
)

// homeDir is where the daemon keeps what is its own, and its configuration.
func homeDir() string {
	if runtime.GOOS == "windows" {
		return filepath.Join(cmp.Or(os.Getenv("ProgramData"), `C:\ProgramData`), "gateway")
	}
	return "/usr/local/var/gateway"
}

// laptopService is a service as kardianos/service makes them.
type laptopService struct {
	service.Service
	config string // file; "": the service needs none
	out    io.Writer
}

func newService(_ context.Context, executable string, args []string, out io.Writer) (machineService, error) {
	s := &laptopService{out: out}
	if len(args) == 0 {
		s.config = filepath.Join(homeDir(), "gateway.yaml")
		args = []string{"run", "--config", s.config}
	}
	var err error
	s.Service, err = service.New(nil, &service.Config{
		Name: serviceName, DisplayName: "Campus gateway", Description: "Campus gateway: sensors to FIWARE",
		Executable: executable, Arguments: args,
		Option: service.KeyValue{"RunAtLoad": true, "OnFailure": "restart", "OnFailureDelayDuration": "2s"},
	})
	return s, err
}

func (s *laptopService) Install(context.Context) error {
	switch _, err := s.Status(); {
	case err == nil:
		fmt.Fprintln(s.out, "already installed")
		return nil
	case !errors.Is(err, service.ErrNotInstalled):
		return explain("install", err)
	}
	if err := os.MkdirAll(homeDir(), 0o755); err != nil {
		return explain("install", err)
	}
	if s.config != "" {
		f, err := os.OpenFile(s.config, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err == nil {
			_, err = f.WriteString(starter)
			err = errors.Join(err, f.Close())
			fmt.Fprintf(s.out, "wrote a first %s: edit it, the service reads it again by itself\n", s.config)
		}
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return explain("install", err)
		}
	}
	if err := s.Service.Install(); err != nil {
		return explain("install", err)
	}
	fmt.Fprintln(s.out, "installed it: it starts with the machine")
	if err := s.Service.Start(); err != nil {
		return explain("install: start", err)
	}
	fmt.Fprintln(s.out, "started it")
	return nil
}

func (s *laptopService) Uninstall(ctx context.Context) error {
	status, err := s.Status()
	if errors.Is(err, service.ErrNotInstalled) {
		fmt.Fprintln(s.out, "not installed: there was nothing to do")
		return nil
	}
	if err == nil && status == service.StatusRunning && runtime.GOOS == "windows" { // on macOS it is part of what follows
		if err := s.Service.Stop(); err != nil {
			return explain("uninstall: stop", err)
		}
		fmt.Fprintln(s.out, "stopped it")
	}
	if err := s.Service.Uninstall(); err != nil {
		return explain("uninstall", err)
	}
	fmt.Fprintln(s.out, "removed it")
	waiting := undelivered(ctx, filepath.Join(homeDir(), "gateway.yaml"))
	if waiting != "" {
		waiting = ": " + waiting
	}
	fmt.Fprintf(s.out, "kept: %s (configuration and log%s)\n", homeDir(), waiting)
	return nil
}

func (s *laptopService) Start(context.Context) error {
	return s.told("start", "started it", s.Service.Start)
}

func (s *laptopService) Stop(context.Context) error {
	return s.told("stop", "stopped it", s.Service.Stop)
}

func (s *laptopService) Restart(context.Context) error {
	return s.told("restart", "restarted it", s.Service.Restart)
}

func (s *laptopService) told(verb, done string, do func() error) error {
	if _, err := s.Status(); errors.Is(err, service.ErrNotInstalled) {
		return fmt.Errorf("%s: the service is not installed: gateway install", verb)
	}
	if err := do(); err != nil {
		return explain(verb, err)
	}
	fmt.Fprintln(s.out, done)
	return nil
}

// explain says who may.
func explain(what string, err error) error {
	if errors.Is(err, fs.ErrPermission) || runtime.GOOS != "windows" && os.Geteuid() != 0 {
		who := "with sudo"
		if runtime.GOOS == "windows" {
			who = "in a terminal that is run as administrator"
		}
		return fmt.Errorf("%s: %w: do it %s", what, err, who)
	}
	return fmt.Errorf("%s: %w", what, err)
}
