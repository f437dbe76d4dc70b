package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"varve/internal/id"
	"varve/journal"

	"github.com/spf13/cobra"
)

// journalFlags say which journal is meant.
type journalFlags struct{ dir string }

func (f *journalFlags) add(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVarP(&f.dir, "repo", "r", "", "directory of a stopped metadata server, or a copy of its journal; without it the cluster of -c is asked")
	return cmd
}

// open opens the journal of -r, or else that of the cluster of -c.
func (a *app) openHistory(ctx context.Context, f journalFlags) (history, error) {
	if f.dir != "" {
		return openOffline(f.dir)
	}
	if a.cluster == "" {
		return nil, usagef("which journal? Give -r DIR (a stopped server's directory or a copy) or -c NAME (a running cluster)")
	}
	d, err := a.readCluster()
	if err != nil {
		return nil, err
	}
	return openOnline(ctx, d)
}

func (a *app) journalCommand() *cobra.Command {
	return groupCommand("journal", "Read the history of the metadata",
		a.journalCatCommand(), a.journalReplayCommand(), a.journalVerifyCommand())
}

func (a *app) journalCatCommand() *cobra.Command {
	var f journalFlags
	var from, to string
	cmd := &cobra.Command{
		Use: "cat", Short: "Print the events, one a line: index, time, kind, what, cause", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			first, last, err := parseRange(from, to, time.Now())
			if err != nil {
				return err
			}
			h, err := a.openHistory(cmd.Context(), f)
			if err != nil {
				return err
			}
			defer h.close()
			return a.journalCat(cmd.Context(), h, first, last)
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "first index, or a time (events after it)")
	cmd.Flags().StringVar(&to, "to", "", "last index, or a time")
	return f.add(cmd)
}

func parseRange(from, to string, now time.Time) (first, last *moment, err error) {
	for _, x := range []struct {
		s string
		m **moment
	}{{from, &first}, {to, &last}} {
		if x.s == "" {
			continue
		}
		m, err := parseMoment(x.s, now)
		if err != nil {
			return nil, nil, err
		}
		*x.m = &m
	}
	if first != nil && last != nil && first.time.IsZero() == last.time.IsZero() && (first.index > last.index || first.time.After(last.time)) {
		return nil, nil, usagef("--from %s is after --to %s; exchange them", from, to)
	}
	return first, last, nil
}

func (a *app) journalCat(ctx context.Context, h history, first, last *moment) error {
	lo, hi, err := h.bounds(ctx)
	if err != nil {
		return err
	}
	from, to := lo, hi
	if first != nil {
		if from, err = first.in(ctx, h); err != nil {
			return err
		}
		if !first.time.IsZero() {
			from++ // what came after that time
		}
		if from < lo {
			return fmt.Errorf("the journal begins at index %d; older events are only in checkpoints", lo)
		}
	}
	if last != nil {
		if to, err = last.in(ctx, h); err != nil {
			return err
		}
	}
	if to = min(to, hi); from > to {
		return nil
	}
	w := bufio.NewWriterSize(a.out, 64<<10)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	for from <= to {
		err = h.records(ctx, from, func(rec journal.Record) error {
			from = rec.Index + 1
			if rec.Index > to {
				return errStop
			}
			ev, err := decodeEvent(rec)
			if err != nil {
				return err
			}
			if a.json {
				return enc.Encode(newEventJSON(ev))
			}
			_, err = fmt.Fprintln(w, eventLine(ev))
			return err
		})
		var gap *journal.GapError
		if !errors.As(err, &gap) {
			break
		}
		if !a.json {
			fmt.Fprintf(w, "# %d to %d are not in this journal: a checkpoint of another server was installed\n", gap.Last+1, gap.Next-1)
		}
		from, err = gap.Next, nil
	}
	return errors.Join(err, w.Flush())
}

func (a *app) journalReplayCommand() *cobra.Command {
	var f journalFlags
	var to string
	var counts bool
	cmd := &cobra.Command{
		Use: "replay [--to INDEX|TIME] [PATH]", Short: "Print the tree as it was at a point of the journal, with counts and digest",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef("%s: one PATH at most; see %s --help", cmd.CommandPath(), cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			_, last, err := parseRange("", to, time.Now())
			if err != nil {
				return err
			}
			path := "/"
			if len(args) == 1 {
				path = args[0]
			}
			h, err := a.openHistory(cmd.Context(), f)
			if err != nil {
				return err
			}
			defer h.close()
			return a.journalReplay(cmd.Context(), h, last, path, counts)
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "index or time of the point (default: the end)")
	cmd.Flags().BoolVar(&counts, "counts", false, "counts and digest only, no tree")
	return f.add(cmd)
}

func (a *app) journalReplay(ctx context.Context, h history, last *moment, path string, countsOnly bool) error {
	_, hi, err := h.bounds(ctx)
	if err != nil {
		return err
	}
	to := hi
	if last != nil {
		if to, err = last.in(ctx, h); err != nil {
			return err
		}
		if to > hi || to == 0 {
			return usagef("--to %d is not in the journal: want 1 to %d", to, hi)
		}
	}
	var at int64
	s, err := replay(ctx, h, to, nil)
	if err != nil {
		return err
	}
	if s.Index() != to {
		return fmt.Errorf("the journal ended at index %d, before %d", s.Index(), to)
	}
	if at, err = timeOf(ctx, h, to); err != nil {
		return err
	}
	return a.printState(s, at, path, countsOnly)
}

// timeOf returns the time of the event at index, 0 if its record is gone.
func timeOf(ctx context.Context, h history, index id.Index) (at int64, err error) {
	first, last, err := h.bounds(ctx)
	if err != nil || index < first || index > last {
		return 0, err
	}
	err = h.records(ctx, index, func(rec journal.Record) error {
		if rec.Index == index {
			at = rec.Time
		}
		return errStop
	})
	var gap *journal.GapError
	if errors.As(err, &gap) {
		err = nil
	}
	return at, err
}
