package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"varve/internal/pki"

	"github.com/mattn/go-isatty"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// passwordFlags say where a password comes from. It is never on a command line.
type passwordFlags struct {
	ask bool
	fd  int
}

func (p *passwordFlags) flags(cmd *cobra.Command, what string) {
	cmd.Flags().BoolVarP(&p.ask, "password", "p", false, "ask for "+what+" on the terminal (which is the default where there is one)")
	cmd.Flags().IntVar(&p.fd, "password-fd", -1, "read "+what+" from this file descriptor instead, up to the end of its first line")
}

// errNoTerminal says that there is nobody to ask.
var errNoTerminal = errors.New("there is no terminal to ask for the password; give it by --password-fd N, such as: varve ... --password-fd 3 3<FILE")

// read returns the password. A new one is asked for twice.
func (p *passwordFlags) read(a *app, prompt string, fresh bool) ([]byte, error) {
	if p.fd >= 0 {
		return p.readFD(a)
	}
	if f, ok := a.in.(*os.File); !p.ask && (!ok || !isatty.IsTerminal(f.Fd())) {
		return nil, &exitError{exitUsage, errNoTerminal}
	}
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil, &exitError{exitUsage, errNoTerminal}
	}
	defer tty.Close()
	ask := func(prompt string) ([]byte, error) {
		fmt.Fprint(tty, prompt+": ")
		b, err := term.ReadPassword(int(tty.Fd()))
		fmt.Fprintln(tty)
		return b, err
	}
	one, err := ask(prompt)
	if err != nil || !fresh {
		return one, err
	}
	if err := pki.CheckPassword(one); err != nil {
		return nil, &exitError{exitUsage, err}
	}
	two, err := ask(prompt + " again")
	if err == nil && !bytes.Equal(one, two) {
		err = usagef("the two passwords differ; nothing was done")
	}
	return one, err
}

// readFD reads the first line of a descriptor.
func (p *passwordFlags) readFD(a *app) ([]byte, error) {
	in := a.in
	if p.fd != 0 {
		f := os.NewFile(uintptr(p.fd), "password")
		if f == nil {
			return nil, usagef("--password-fd %d: there is no such descriptor", p.fd)
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, pki.MaxPassword+2))
	if err != nil {
		return nil, usagef("--password-fd %d: %w", p.fd, err)
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	if len(line) == 0 {
		return nil, usagef("--password-fd %d: its first line is empty", p.fd)
	}
	return line, nil
}
