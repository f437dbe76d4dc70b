package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"varve/internal/id"
	"varve/mds/event"
	"varve/mds/history"
	"varve/mds/state"

	"github.com/spf13/cobra"
)

const bisectHelp = `Find the first event after which a command fails.

CMD is run by sh for one point of the journal after the other. It exits with 0 where all is well, with 125 where it cannot
tell, and with anything else where it is not. It gets, in its environment:

  VARVE_INDEX       the index
  VARVE_TIME        the time of that event, as RFC 3339, if the journal has it
  VARVE_TREE        a file with the tree, as journal replay prints it
  VARVE_STATE_JSON  the same as journal replay --json prints it

For example, when did the image lose its last replica on cs2, or the directory its files:

  varve journal bisect -c NAME --good 1 --bad now --run 'grep -q /images/golden.img $VARVE_TREE'`

func (a *app) journalBisectCommand() *cobra.Command {
	var f journalFlags
	var good, bad, run string
	cmd := &cobra.Command{
		Use: "bisect --good A --bad B --run CMD", Short: "Find the first event after which a command fails", Long: bisectHelp, Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if good == "" || run == "" {
				return usagef("bisect: give --good A, --run CMD and perhaps --bad B; see %s --help", cmd.CommandPath())
			}
			ctx := cmd.Context()
			return a.withHistory(ctx, f, func(src history.Source) error {
				lo, err := indexOf(ctx, src, "--good", good)
				if err != nil {
					return err
				}
				hi, err := indexOf(ctx, src, "--bad", bad)
				if err != nil {
					return err
				}
				if lo >= hi {
					return usagef("--good (index %d) must be before --bad (index %d)", lo, hi)
				}
				return a.bisect(ctx, src, lo, hi, run)
			})
		},
	}
	cmd.Flags().StringVar(&good, "good", "", "index or time at which the command succeeds")
	cmd.Flags().StringVar(&bad, "bad", "", "index or time at which it fails (default: the end)")
	cmd.Flags().StringVar(&run, "run", "", "the command")
	return f.add(cmd)
}

func (a *app) bisect(ctx context.Context, src history.Source, good, bad id.Index, run string) error {
	dir, err := os.MkdirTemp("", "varve-bisect")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	test := func(s *state.State) (history.Verdict, error) { return a.bisectTest(ctx, src, s, dir, run) }
	step := func(at id.Index, left uint64) {
		if !a.json {
			fmt.Fprintf(a.err, "index %d, %s left\n", at, count(left, "event"))
		}
	}
	found, err := history.Bisect(ctx, src, good, bad, test, step)
	var skipped *history.SkippedError
	if err != nil && !errors.As(err, &skipped) {
		return err
	}
	p := a.newPrinter()
	if skipped != nil {
		fmt.Fprintf(p.w, "# %s\n", skipped)
	}
	return p.flush(history.Watch(ctx, src, history.Range{From: found, To: found}, func(s *state.State, ev *event.Event) error { return p.print(s, ev) }, nil))
}

// bisectTest runs the command for one state.
func (a *app) bisectTest(ctx context.Context, src history.Source, s *state.State, dir, run string) (history.Verdict, error) {
	at, err := history.TimeOf(ctx, src, s.Index())
	if err != nil {
		return history.Skip, err
	}
	env := append(os.Environ(), "VARVE_INDEX="+s.Index().String())
	if at != 0 {
		env = append(env, "VARVE_TIME="+time.Unix(0, at).UTC().Format(time.RFC3339Nano))
	}
	for _, x := range []struct {
		env, name string
		json      bool
	}{{"VARVE_TREE", "tree.txt", false}, {"VARVE_STATE_JSON", "state.json", true}} {
		name := filepath.Join(dir, x.name)
		f, err := os.Create(name)
		if err != nil {
			return history.Skip, err
		}
		w := bufio.NewWriter(f)
		err = (&app{out: w, err: a.err, json: x.json, bytes: a.bytes}).printState(s, at, "/", false)
		if err = errors.Join(err, w.Flush(), f.Close()); err != nil {
			return history.Skip, err
		}
		env = append(env, x.env+"="+name)
	}
	cmd := exec.CommandContext(ctx, "sh", "-c", run)
	cmd.Env, cmd.Stdout, cmd.Stderr = env, a.err, a.err
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return history.Good, nil
	case !errors.As(err, &exit) || exit.ExitCode() < 0:
		return history.Skip, fmt.Errorf("--run %s: %w", run, err)
	case exit.ExitCode() == 126 || exit.ExitCode() == 127:
		return history.Skip, fmt.Errorf("--run %s cannot be run: sh says %d; see what it printed above", run, exit.ExitCode())
	case exit.ExitCode() == 125:
		return history.Skip, nil
	}
	return history.Bad, nil
}
