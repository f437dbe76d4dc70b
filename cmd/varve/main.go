// Command varve is the one binary of the filesystem: it parses flags, builds Options, wires the packages together
// and waits. What it decides itself is how a command line becomes an exit code, where a cluster is found (cluster.go)
// and how a cluster on one machine is run (dev*.go).
//
// Exit codes: 0 done, 1 failed, 2 usage, 3 cluster unreachable, 4 refused for safety. An error is one line on standard
// error that says what to do next.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"varve/internal/fserr"

	"github.com/spf13/cobra"
)

// Exit codes, part of what other people's scripts rely on.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitUnreachable = 3
	exitRefused     = 4
)

// exitError is an error with its exit code.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}

func unreachablef(format string, args ...any) error {
	return &exitError{exitUnreachable, fmt.Errorf(format, args...)}
}

func refusedf(format string, args ...any) error {
	return &exitError{exitRefused, fmt.Errorf(format, args...)}
}

// exitCode returns the exit code for the outcome of a command.
func exitCode(err error) int {
	var e *exitError
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &e):
		return e.code
	case errors.Is(err, fserr.Unavailable), errors.Is(err, fserr.Timeout):
		return exitUnreachable
	}
	return exitFailed
}

// app is what all commands share: the streams and the global flags.
type app struct {
	in       io.Reader
	out, err io.Writer
	args     []string // the command line, to start it again

	cluster string // -c
	json    bool
	bytes   bool
}

func main() {
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)))
	a := &app{in: os.Stdin, out: os.Stdout, err: os.Stderr}
	args := os.Args[1:]
	if isHelper(os.Args[0]) {
		var fake bool
		var err error
		if args, fake, err = helperArgs(args); err != nil || fake {
			if err != nil {
				fmt.Fprintf(a.err, "%s: %s\n", filepath.Base(os.Args[0]), oneLine(err))
			}
			os.Exit(exitCode(err))
		}
	}
	os.Exit(a.run(context.Background(), args))
}

// run runs one command line and returns its exit code.
func (a *app) run(ctx context.Context, args []string) int {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	a.args = args
	root := a.root()
	root.SetArgs(agoArgs(args))
	err := root.ExecuteContext(ctx)
	if err != nil {
		signalFailed(err)
		fmt.Fprintf(a.err, "varve: %s\n", oneLine(err))
	}
	return exitCode(err)
}

// oneLine returns err as one line.
func oneLine(err error) string {
	return strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "varve",
		Short:         "A clustered filesystem for virtual machine images that remembers its history",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetIn(a.in)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%w; see %s --help", err, cmd.CommandPath())
	})
	f := root.PersistentFlags()
	f.StringVarP(&a.cluster, "cluster", "c", os.Getenv("VARVE_CLUSTER"), "name of the cluster, or its directory (default $VARVE_CLUSTER)")
	f.BoolVar(&a.json, "json", false, "print JSON")
	f.BoolVar(&a.bytes, "bytes", false, "print sizes in bytes and ages in milliseconds")
	root.AddCommand(
		a.devCommand(),
		a.makeMDSCommand(), a.rmMDSCommand(), a.makeCSCommand(), a.rmCSCommand(), a.mdsCommand(), a.csCommand(),
		a.mountCommand(), a.umountCommand(), a.cacheCommand(), a.nbdCommand(), a.vhostCommand(), a.systemdCommand(),
		a.statCommand(), a.netCommand(), a.checkNetCommand(), a.listServicesCommand(), a.discoverCommand(),
		a.getConfigCommand(), a.setConfigCommand(), a.getAttrCommand(), a.setAttrCommand(),
		a.leaseCommand(), a.fenceCommand(), a.whatIfCommand(),
		a.authNodeCommand(), a.listNodesCommand(), a.revokeCommand(), a.clusterCommand(),
		a.journalCommand(), a.explainCommand(), a.perfCommand(), a.versionCommand(),
	)
	root.AddCommand(a.restartCommand(), a.pokeCommand())
	root.AddCommand(a.modeCommands()...)
	return root
}

// noArgs and exactArgs are cobra's validators with the exit code for usage.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("%s does not know %q; see %s --help", cmd.CommandPath(), args[0], cmd.CommandPath())
	}
	return nil
}

func exactArgs(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return usagef("%s: %s is missing; see %s --help", cmd.CommandPath(), names[len(args)], cmd.CommandPath())
		case len(args) > len(names):
			return usagef("%s: one argument too many: %q; see %s --help", cmd.CommandPath(), args[len(names)], cmd.CommandPath())
		}
		return nil
	}
}

// groupCommand is a command that only has others below it.
func groupCommand(use, short string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: noArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		_ = cmd.Help()
		return usagef("%s: say what to do with it: one of the commands above", cmd.CommandPath())
	}}
	c.AddCommand(subs...)
	return c
}
