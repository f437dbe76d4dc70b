package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"

	"github.com/spf13/cobra"
)

// unitDir is where an administrator's units are.
const unitDir = "/etc/systemd/system"

// unit is what a unit of systemd is made of.
type unit struct {
	Name    string // of the file
	Kind    string // mds, cs or mount
	Varve   string // the program
	Dir     string // of the server, or the mount point
	Source  string // of a mount
	Options string
}

var unitTexts = template.Must(template.New("").Funcs(template.FuncMap{"arg": unitArg, "line": unitLine}).Parse(`
{{- define "server"}}[Unit]
Description=varve {{if eq .Kind "mds"}}metadata{{else}}chunk{{end}} server, {{line .Dir}}
Wants=network-online.target remote-fs-pre.target
After=network-online.target time-sync.target
RequiresMountsFor={{arg .Dir}}
# Mounts of network filesystems, and the guests on them, begin after it and are stopped before it.
Before=remote-fs-pre.target

[Service]
Type=exec
ExecStart={{arg .Varve}} {{.Kind}} -r {{arg .Dir}}
Restart=always
RestartSec=1
# 4: it refuses to start, since data would be at risk; 2: usage.
RestartPreventExitStatus=2 4
TimeoutStopSec=60
LimitNOFILE=65536
LimitMEMLOCK=infinity
# Guests that use up the memory must not take the storage with them.
OOMScoreAdjust=-900

[Install]
WantedBy=multi-user.target
{{end}}
{{- define "mount"}}[Unit]
Description=varve, {{line .Source}}
Wants=network-online.target
After=network-online.target
# Servers on this host begin before it and are stopped after it.
After=remote-fs-pre.target
# Guests start when it is there, and are stopped before it goes.
Before=remote-fs.target libvirtd.service libvirt-guests.service

[Mount]
What={{line .Source}}
Where={{line .Dir}}
Type=fuse.varve
Options={{line .Options}}
# An unmount that hangs must not keep the host from going down.
TimeoutSec=90

[Install]
WantedBy=remote-fs.target
{{end}}`))

// unitArg writes a value so that systemd takes it for one word: its % and $ are doubled, the rest is quoted as in C.
func unitArg(s string) string {
	s = strings.NewReplacer("%", "%%", "$", "$$").Replace(s)
	if !strings.ContainsAny(s, " \t\"'\\;") {
		return s
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// unitLine writes a value that is all of a line.
func unitLine(s string) string { return strings.ReplaceAll(s, "%", "%%") }

// unitPath is a path as a part of a unit's name, as systemd-escape --path writes it.
func unitPath(path string) string {
	path = strings.Trim(filepath.Clean(path), "/")
	if path == "" {
		return "-"
	}
	var b strings.Builder
	for i := range len(path) {
		switch c := path[i]; {
		case c == '/':
			b.WriteByte('-')
		case c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == ':' || c == '_' || c == '.' && i > 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, `\x%02x`, c)
		}
	}
	return b.String()
}

func (u *unit) text() (string, error) {
	name := "server"
	if u.Kind == "mount" {
		name = "mount"
	}
	var b bytes.Buffer
	err := unitTexts.ExecuteTemplate(&b, name, u)
	return b.String(), err
}

func (a *app) systemdCommand() *cobra.Command {
	var options []string
	var program, to string
	unitOf := func(args []string) (*unit, error) {
		u := &unit{Kind: args[0], Varve: program}
		if !slices.Contains([]string{"mds", "cs", "mount"}, u.Kind) {
			return nil, usagef("unit of %q: want mds, cs or mount, and a directory", u.Kind)
		}
		var err error
		if u.Dir, err = filepath.Abs(args[1]); err != nil {
			return nil, err
		}
		if strings.ContainsAny(u.Dir, "\n\r") {
			return nil, usagef("a unit cannot have a directory with a line break in its name: %q", u.Dir)
		}
		if u.Varve == "" {
			if u.Varve, err = os.Executable(); err != nil {
				return nil, err
			}
		}
		if u.Kind != "mount" {
			u.Name = "varve-" + u.Kind + "-" + unitPath(u.Dir) + ".service"
			return u, nil
		}
		if _, err := parseMountOptions(options); err != nil {
			return nil, err
		}
		d, err := a.readCluster()
		if err != nil {
			return nil, err
		}
		u.Name, u.Source = unitPath(u.Dir)+".mount", mountSource(d.path)
		u.Options = strings.Join(append([]string{"_netdev"}, options...), ",")
		return u, nil
	}
	cmd := &cobra.Command{
		Use: "systemd", Short: "Units of systemd for servers and mounts, in the right order at start and shutdown",
		Long: `Makes units of systemd. Servers are started again when they end, but not when they refuse to start; mounts come after the network, guests of libvirt
after the mounts, and a shutdown goes the other way. A mount's unit needs varve as /sbin/mount.fuse.varve (ln -s). With -o bg a host starts
also when the cluster is not there; with -o guard nothing can be written under the mount point meanwhile. systemctl reload of a mount's unit has it go on in the
program as it now is, without unmounting (varve restart); systemctl restart unmounts.`,
		Args: noArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	verb := func(use, short string, run func(u *unit, text string) error) *cobra.Command {
		c := &cobra.Command{
			Use: use + " mds|cs|mount DIR", Short: short, Args: exactArgs("mds|cs|mount", "DIR"),
			RunE: func(_ *cobra.Command, args []string) error {
				u, err := unitOf(args)
				if err != nil {
					return err
				}
				text, err := u.text()
				if err != nil {
					return err
				}
				return run(u, text)
			},
		}
		c.Flags().StringArrayVarP(&options, "options", "o", nil, "of a mount, as varve mount takes them")
		c.Flags().StringVar(&program, "program", "", "the program that the unit starts (default: this one)")
		return c
	}
	install := verb("install", "Write a unit, which systemctl can then enable", func(u *unit, text string) error {
		path := filepath.Join(to, u.Name)
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if errors.Is(err, os.ErrExist) {
			have, rerr := os.ReadFile(path)
			if rerr == nil && string(have) == text {
				fmt.Fprintf(a.out, "%s is as it should be\n", path)
				return nil
			}
			return fmt.Errorf("%s is there already, and is another: compare it with what systemd print writes, and remove it first", path)
		}
		if err != nil {
			return fmt.Errorf("write the unit: %w", err)
		}
		_, err = f.WriteString(text)
		if err = errors.Join(err, f.Close()); err != nil {
			return errors.Join(fmt.Errorf("write the unit: %w", err), os.Remove(path))
		}
		fmt.Fprintf(a.out, "wrote %s; start it, now and at each boot, with:\n  systemctl daemon-reload && systemctl enable --now %s\n", path, shellQuote(u.Name))
		return nil
	})
	install.Flags().StringVar(&to, "to", unitDir, "directory of the unit")
	cmd.AddCommand(verb("print", "Print a unit", func(u *unit, text string) error {
		_, err := fmt.Fprintf(a.out, "# %s\n%s", u.Name, text)
		return err
	}), install)
	return cmd
}
