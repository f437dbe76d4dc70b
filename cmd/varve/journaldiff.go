package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"varve/internal/id"
	"varve/mds/event"
	"varve/mds/history"
	"varve/mds/state"

	"github.com/spf13/cobra"
)

func (a *app) journalDiffCommand() *cobra.Command {
	var f journalFlags
	cmd := &cobra.Command{
		Use: "diff A B [PATH]", Short: "Print what differs between two points (indexes or times) of the journal",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 || len(args) > 3 {
				return usagef("%s: want two points, A and B, and perhaps a PATH; see %s --help", cmd.CommandPath(), cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			return a.withHistory(ctx, f, func(src history.Source) error {
				var at [2]id.Index
				for i, arg := range args[:2] {
					var err error
					if at[i], err = indexOf(ctx, src, []string{"A", "B"}[i], arg); err != nil {
						return err
					}
				}
				if at[0] > at[1] {
					return usagef("A (index %d) is after B (index %d); exchange them", at[0], at[1])
				}
				path := "/"
				if len(args) == 3 {
					path = cleanPath(args[2])
				}
				old, err := a.stateAt(ctx, src, at[0])
				if err != nil {
					return err
				}
				// From a clone what is the same is shared; but a checkpoint may be much nearer.
				now := old.Clone()
				if near, err := src.Newest(ctx, at[1]); err != nil {
					return err
				} else if near > at[0] {
					now, err = a.stateAt(ctx, src, at[1])
					if err != nil {
						return err
					}
				} else if now, err = history.Advance(ctx, src, now, at[1], history.Hooks{}); err != nil {
					return err
				}
				return a.printDiff(old, now, path)
			})
		},
	}
	return f.add(cmd)
}

// agoArgs lets the points of diff be written as -10m, which otherwise would be a flag.
func agoArgs(args []string) []string {
	at := slices.Index(args, "diff")
	if at < 0 || !slices.Contains(args[:at], "journal") {
		return args
	}
	out := slices.Clone(args)
	for i := at + 1; i < len(out); i++ {
		ago, ok := strings.CutPrefix(out[i], "-")
		if d, err := parseSpan(ago); ok && err == nil && d > 0 {
			out[i] = ago + " ago"
		}
	}
	return out
}

func (a *app) printDiff(old, now *state.State, path string) error {
	w := bufio.NewWriterSize(a.out, 64<<10)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	mark := map[string]string{"added": "+", "removed": "-", "renamed": ">", "changed": "~"}
	sum, err := history.Diff(old, now, path, func(c history.Change) error {
		if a.json {
			return enc.Encode(c)
		}
		line := mark[c.Kind]
		if line == "" {
			line = "*"
		}
		if c.From != "" {
			line += " " + history.Quote(c.From) + " ->"
		}
		if c.Path != "" {
			line += " " + history.Quote(c.Path)
		}
		if c.Type == "directory" {
			line += "/"
		}
		if len(c.What) > 0 {
			line += "  " + strings.Join(c.What, ", ")
		}
		_, err := fmt.Fprintln(w, strings.Replace(line, "*  ", "* ", 1))
		return err
	})
	if err == nil {
		if a.json {
			err = enc.Encode(struct {
				From    uint64              `json:"from"`
				To      uint64              `json:"to"`
				Summary history.DiffSummary `json:"summary"`
			}{uint64(old.Index()), uint64(now.Index()), sum})
		} else {
			_, err = fmt.Fprintf(w, "index %d to %d: %d added, %d removed, %d renamed, %d changed, %d of the cluster\n", old.Index(), now.Index(),
				sum.Added, sum.Removed, sum.Renamed, sum.Changed, sum.Cluster)
		}
	}
	return errors.Join(err, w.Flush())
}

func (a *app) journalBlameCommand() *cobra.Command {
	var f journalFlags
	var at string
	cmd := &cobra.Command{
		Use: "blame PATH", Short: "Print every event that touched a file, under whatever names it had, and why", Args: exactArgs("PATH"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			return a.withHistory(ctx, f, func(src history.Source) error {
				to, err := indexOf(ctx, src, "--at", at)
				if err != nil {
					return err
				}
				ino, there, err := history.FindInode(ctx, src, cleanPath(args[0]), to)
				if err != nil {
					return err
				}
				p := a.newPrinter()
				if !a.json && !there {
					fmt.Fprintf(p.w, "# nothing is there at index %d; the last that had the name was inode %d\n", to, ino)
				}
				_, hi, err := src.Bounds(ctx)
				if err != nil {
					return err
				}
				return p.flush(history.Blame(ctx, src, ino, hi, func(s *state.State, ev *event.Event) error {
					defer p.text.Note(ev)
					return p.print(s, ev)
				}, p.missing))
			})
		},
	}
	cmd.Flags().StringVar(&at, "at", "", "index or time at which the file had that path (default: now, or else the last that had it)")
	return f.add(cmd)
}

func (a *app) journalStatsCommand() *cobra.Command {
	var f journalFlags
	var r rangeFlags
	var most int
	cmd := &cobra.Command{
		Use: "stats", Short: "Print what fills the journal: kinds of events, clients, directories, and when", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			return a.withHistory(ctx, f, func(src history.Source) error {
				from, to, err := r.bounds(ctx, src)
				if err != nil {
					return err
				}
				if from > to {
					return fmt.Errorf("there is no event from index %d to %d", from, to)
				}
				end, err := a.stateAt(ctx, src, to)
				if err != nil {
					return err
				}
				step, done := a.progress("counting", from, to)
				st, err := history.CollectStats(ctx, src, from, to, end, step)
				done()
				if err != nil {
					return err
				}
				if st.Replay, _, err = history.Earliest(ctx, src); err != nil {
					return err
				}
				if a.json {
					return a.printJSON(st)
				}
				return a.printStats(st, most)
			})
		},
	}
	cmd.Flags().StringVar(&r.from, "from", "", "first index, or a time (events after it)")
	cmd.Flags().StringVar(&r.to, "to", "", "last index, or a time")
	cmd.Flags().IntVarP(&most, "lines", "n", 10, "how many clients and directories to show")
	return f.add(cmd)
}
