package main

import (
	"context"
	"fmt"
	"math"
	"regexp"
	"time"

	"varve/internal/id"
	"varve/mds/event"
	"varve/mds/history"
	"varve/mds/state"

	"github.com/spf13/cobra"
)

func (a *app) journalCommand() *cobra.Command {
	return groupCommand("journal", "Read the history of the metadata",
		a.journalCatCommand(), a.journalTailCommand(), a.journalGrepCommand(), a.journalReplayCommand(), a.journalDiffCommand(), a.journalBlameCommand(),
		a.journalBisectCommand(), a.journalVerifyCommand(), a.journalStatsCommand())
}

func (a *app) journalCatCommand() *cobra.Command {
	var f journalFlags
	var r rangeFlags
	cmd := &cobra.Command{
		Use: "cat", Short: "Print the events, one a line: index, time, kind, what, [who and why]", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.walk(cmd.Context(), f, &r, nil) },
	}
	return r.add(f.add(cmd))
}

func (a *app) journalGrepCommand() *cobra.Command {
	var f journalFlags
	var r rangeFlags
	var fold bool
	cmd := &cobra.Command{
		Use: "grep PATTERN", Short: "Print the events whose line, as cat prints it, matches a regular expression", Args: exactArgs("PATTERN"),
		RunE: func(cmd *cobra.Command, args []string) error {
			expr := args[0]
			if fold {
				expr = "(?i)" + expr
			}
			re, err := regexp.Compile(expr)
			if err != nil {
				return usagef("%q is no regular expression: %v", args[0], err)
			}
			return a.walk(cmd.Context(), f, &r, re)
		},
	}
	cmd.Flags().BoolVarP(&fold, "ignore-case", "i", false, "upper and lower case match each other")
	return r.add(f.add(cmd))
}

// walk prints the events that the flags and the pattern, if there is one, let pass.
func (a *app) walk(ctx context.Context, f journalFlags, r *rangeFlags, re *regexp.Regexp) error {
	if err := r.done(); err != nil {
		return err
	}
	if _, _, err := parseRange(r.from, r.to, time.Now()); err != nil {
		return err
	}
	return a.withHistory(ctx, f, func(src history.Source) error {
		from, to, err := r.bounds(ctx, src)
		if err != nil || from > to {
			return err
		}
		p := a.newPrinter()
		return p.flush(history.Watch(ctx, src, history.Range{From: from, To: to}, p.chosen(&r.filter, re), p.missing))
	})
}

// chosen prints the events that pass.
func (p *printer) chosen(filter *history.Filter, re *regexp.Regexp) func(*state.State, *event.Event) error {
	return func(s *state.State, ev *event.Event) error {
		defer p.text.Note(ev)
		if !filter.Match(&p.text, s, ev) || re != nil && !re.MatchString(p.line(s, ev)) {
			return nil
		}
		return p.print(s, ev)
	}
}

func (a *app) journalTailCommand() *cobra.Command {
	var f journalFlags
	var r rangeFlags
	var lines uint64
	var follow bool
	cmd := &cobra.Command{
		Use: "tail", Short: "Print the last events, and with -f those to come", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := r.done(); err != nil {
				return err
			}
			return a.tail(cmd.Context(), f, &r, lines, follow)
		},
	}
	cmd.Flags().Uint64VarP(&lines, "lines", "n", 10, "how many of the last events to look at")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what is appended, also by the next leader, until interrupted")
	r.add(f.add(cmd))
	_ = cmd.Flags().MarkHidden("from") // they mean nothing here
	_ = cmd.Flags().MarkHidden("to")
	return cmd
}

// tailPoll is how often a journal is asked for more.
const tailPoll = 200 * time.Millisecond

// tail follows the journal. When the server that is asked goes away, another one is; each event has one index, so none is lost or printed
// twice.
func (a *app) tail(ctx context.Context, f journalFlags, r *rangeFlags, lines uint64, follow bool) error {
	p := a.newPrinter()
	next := id.Index(0)
	var warned bool
	round := func(src history.Source) error {
		lo, hi, err := src.Bounds(ctx)
		if err != nil {
			return err
		}
		if next == 0 {
			next = max(lo, hi+1-min(hi+1, id.Index(min(lines, math.MaxInt64))))
		}
		if next > hi {
			return nil
		}
		print := p.chosen(&r.filter, nil)
		err = history.Watch(ctx, src, history.Range{From: next, To: hi}, func(s *state.State, ev *event.Event) error {
			next = id.Index(ev.Index) + 1
			return print(s, ev)
		}, p.missing)
		return p.flush(err)
	}
	for {
		err := a.withHistory(ctx, f, func(src history.Source) error {
			for {
				if err := round(src); err != nil || !follow || f.dir != "" {
					return err
				}
				warned = false
				if !pause(ctx, tailPoll) {
					return nil
				}
			}
		})
		switch {
		case ctx.Err() != nil:
			return nil
		case !follow:
			return err
		case err != nil && (next == 0 || exitCode(err) == exitUsage):
			return err
		case err != nil && !warned:
			warned = true
			fmt.Fprintf(a.err, "varve: %s; asking again\n", oneLine(err))
		}
		if !pause(ctx, tailPoll) {
			return nil
		}
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

func (a *app) journalReplayCommand() *cobra.Command {
	var f journalFlags
	var to string
	var counts bool
	cmd := &cobra.Command{
		Use: "replay [--to INDEX|TIME] [PATH]", Short: "Print the tree as it was at a point of the journal, with counts and digest",
		Args: atMost("PATH"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, _, err := parseRange("", to, time.Now()); err != nil {
				return err
			}
			path := "/"
			if len(args) == 1 {
				path = args[0]
			}
			ctx := cmd.Context()
			return a.withHistory(ctx, f, func(src history.Source) error {
				at, err := indexOf(ctx, src, "--to", to)
				if err != nil {
					return err
				}
				s, err := a.stateAt(ctx, src, at)
				if err != nil {
					return err
				}
				when, err := history.TimeOf(ctx, src, at)
				if err != nil {
					return err
				}
				return a.printState(s, when, path, counts)
			})
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "index or time of the point (default: the end)")
	cmd.Flags().BoolVar(&counts, "counts", false, "counts and digest only, no tree")
	return f.add(cmd)
}

// atMost wants no more than the one argument.
func atMost(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > 1 {
			return usagef("%s: one %s at most; see %s --help", cmd.CommandPath(), name, cmd.CommandPath())
		}
		return nil
	}
}

// stateAt replays to the index, with a bar if it is far.
func (a *app) stateAt(ctx context.Context, src history.Source, at id.Index) (*state.State, error) {
	near, err := src.Newest(ctx, at)
	if err != nil {
		return nil, err
	}
	step, done := a.progress("replaying", near, at)
	defer done()
	s, err := history.At(ctx, src, at, history.Hooks{Progress: step})
	if err == nil && s.Index() != at {
		err = fmt.Errorf("the journal ended at index %d, before %d", s.Index(), at)
	}
	return s, err
}
