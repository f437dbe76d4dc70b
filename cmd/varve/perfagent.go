package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"varve/perf"
	"varve/perf/agent"

	"github.com/spf13/cobra"
)

// hostFlags say on which hosts a load runs.
type hostFlags struct {
	hosts      []string
	command    string
	secretFile string
	secretFD   int
}

func (f *hostFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringSliceVar(&f.hosts, "host", nil, "run the jobs on each of these hosts and put together what they measure: ssh:[USER@]HOST, tcp:HOST:PORT (a listening\n"+
		"varve perf agent) or local, separated by commas or each with its own --host; --rate is that of all together")
	fl.StringVar(&f.command, "agent-command", "", "with --host: what starts varve there, instead of ssh; {host} stands for the name, and \"perf agent --stdio\" is added")
	f.addSecret(cmd, "agent-secret", "with --host tcp: ")
}

func (f *hostFlags) addSecret(cmd *cobra.Command, name, when string) {
	cmd.Flags().StringVar(&f.secretFile, name+"-file", "", when+"a file that only its owner may read, with the secret that agent and asking host share")
	cmd.Flags().IntVar(&f.secretFD, name+"-fd", -1, when+"a file descriptor from which the secret is read")
}

const maxSecret = 4096

// secret reads the secret, nil if none is named.
func (f *hostFlags) secret() ([]byte, error) {
	var in *os.File
	switch {
	case f.secretFile != "" && f.secretFD >= 0:
		return nil, usagef("the secret is in a file or comes from a descriptor, not both")
	case f.secretFile != "":
		var err error
		if in, err = os.Open(f.secretFile); err != nil {
			return nil, err
		}
		st, err := in.Stat()
		if err == nil && st.Mode().IsRegular() && st.Mode().Perm()&0o077 != 0 {
			err = refusedf("others may read the secret in %s: chmod 600 it, and better make a new one", f.secretFile)
		}
		if err != nil {
			in.Close()
			return nil, err
		}
	case f.secretFD >= 0:
		in = os.NewFile(uintptr(f.secretFD), "secret")
	default:
		return nil, nil
	}
	defer in.Close()
	return io.ReadAll(io.LimitReader(in, maxSecret))
}

// perfHosts runs a load on several hosts.
func (a *app) perfHosts(cmd *cobra.Command, o perf.Options, f *hostFlags, progress func(perf.Progress)) (*perf.Result, error) {
	own, err := os.Executable()
	if err != nil {
		return nil, err
	}
	hosts, err := agent.ParseHosts(strings.Join(f.hosts, ","), f.command, own)
	if err != nil {
		return nil, usagef("--host: %w", err)
	}
	secret, err := f.secret()
	if err != nil {
		return nil, err
	}
	return agent.Run(cmd.Context(), agent.RunOptions{Load: o, Hosts: hosts, Version: agentVersion(), Secret: secret, Progress: progress})
}

// agentVersion is what both sides must have in common.
func agentVersion() string {
	v := buildVersion()
	if v.Revision == "" {
		return v.Version
	}
	return v.Version + " (" + v.Revision + ")"
}

func (a *app) perfAgentCommand() *cobra.Command {
	f := &hostFlags{}
	var stdio, files bool
	var listen string
	cmd := &cobra.Command{
		Use: "agent", Short: "Run loads for perf run --host on another host", Args: noArgs,
		Long: "Run loads for perf run --host on another host. With --stdio, which is how perf run starts it over ssh, the other host is on\n" +
			"standard input and output. With --listen it waits for those who have the same secret, over TLS; there, loads on files and devices by\n" +
			"name (file:PATH) and on nbd: are refused unless --files is given. A load ends when the connection does.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			o := agent.ServeOptions{Version: agentVersion()}
			if stdio == (listen != "") {
				return usagef("give either --stdio or --listen IP:PORT; see %s --help", cmd.CommandPath())
			}
			if stdio {
				in, err := pollable(a.in)
				if err != nil {
					return err
				}
				return agent.Serve(cmd.Context(), agent.Stdio(in, a.out), o)
			}
			secret, err := f.secret()
			if err != nil {
				return err
			}
			if len(secret) == 0 {
				return refusedf("an agent that listens does what it is told, so it wants a secret: give --secret-file or --secret-fd")
			}
			if !files {
				o.Allow = func(o perf.Options) error {
					if kind, _, _ := strings.Cut(o.Target, ":"); kind == "file" || kind == "nbd" {
						return fmt.Errorf("target %s: this agent does not touch files and devices by name; see its option --files", o.Target)
					}
					return nil
				}
			}
			return agent.Listen(cmd.Context(), listen, secret, o,
				func(addr net.Addr) { fmt.Fprintf(a.out, "listening on %v\n", addr) },
				func(err error) {
					fmt.Fprintf(a.err, "varve: %s %s\n", time.Now().Format(time.TimeOnly), oneLine(err))
				})
		},
	}
	fl := cmd.Flags()
	fl.BoolVar(&stdio, "stdio", false, "the asking host is on standard input and output")
	fl.StringVar(&listen, "listen", "", "IP:PORT to listen on for hosts that have the secret")
	fl.BoolVar(&files, "files", false, "with --listen: also allow file:PATH and nbd:, which may destroy what is there")
	f.addSecret(cmd, "secret", "with --listen: ")
	return cmd
}

// pollable returns standard input as a file whose reads end when it is closed.
func pollable(in io.Reader) (io.ReadCloser, error) {
	f, ok := in.(*os.File)
	if !ok {
		return nil, errors.New("standard input is no file")
	}
	fd, err := syscall.Dup(int(f.Fd()))
	if err != nil {
		return nil, err
	}
	if err := syscall.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(err, syscall.Close(fd))
	}
	return os.NewFile(uintptr(fd), "standard input"), nil
}
