package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"varve/perf/trace"

	"github.com/spf13/cobra"
)

func (a *app) perfTraceCommand() *cobra.Command {
	return groupCommand("trace", "Look into captures and traces of other programs, and convert them", a.traceShowCommand(), a.traceConvertCommand())
}

const traceFormats = "FILE is a capture of perf capture, an iolog of fio (version 2 or 3), one of the files that blktrace makes, or the text of\n" +
	"blkparse; which one, is seen from its contents."

func (a *app) traceShowCommand() *cobra.Command {
	var ops bool
	cmd := &cobra.Command{
		Use: "show FILE", Short: "Check a capture and print what is in it", Args: exactArgs("FILE"),
		Long: "Check a capture and print what is in it.\n\n" + traceFormats,
		RunE: func(_ *cobra.Command, args []string) (err error) {
			t, err := trace.Load(args[0])
			if err != nil {
				return err
			}
			s := t.Summary()
			switch {
			case a.json && ops:
				return usagef("--ops prints lines, not JSON; perf trace convert makes other formats")
			case a.json:
				err = a.printJSON(s)
			case ops:
				w := bufio.NewWriter(a.out)
				err = errors.Join(t.Dump(w), w.Flush())
			default:
				err = s.WriteText(a.out)
			}
			if err == nil && s.Damaged > 0 {
				err = fmt.Errorf("%s is damaged: %d blocks do not hold what was written", args[0], s.Damaged)
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&ops, "ops", false, "print a line for each operation: seconds at which it began, seconds that it took, process, handle, what, offset, bytes asked for and done")
	return cmd
}

func (a *app) traceConvertCommand() *cobra.Command {
	var to, dir string
	cmd := &cobra.Command{
		Use: "convert FILE OUT", Short: "Write a capture or a trace in another format", Args: exactArgs("FILE", "OUT"),
		Long: "Write a capture or a trace in another format: fio3 and fio2 are what fio --read_iolog reads, where only reads, writes and\n" +
			"flushes have a place; varve is what perf capture writes.\n\n" + traceFormats,
		RunE: func(_ *cobra.Command, args []string) (err error) {
			version := map[string]int{"fio2": 2, "fio3": 3, "varve": 0}
			v, ok := version[to]
			if !ok {
				return usagef("--to %q: want fio3, fio2 or varve", to)
			}
			t, err := trace.Load(args[0])
			if err != nil {
				return err
			}
			if dir != "" {
				if dir, err = filepath.Abs(dir); err != nil {
					return err
				}
			}
			f, err := os.Create(args[1])
			if err != nil {
				return err
			}
			left := 0
			w := bufio.NewWriter(f)
			if v == 0 {
				err = t.Write(w)
			} else {
				left, err = t.WriteFio(w, v, dir)
			}
			if err = errors.Join(err, w.Flush(), f.Close()); err != nil {
				return fmt.Errorf("write %s: %w", args[1], err)
			}
			if left > 0 && !a.json {
				_, err = fmt.Fprintf(a.out, "%d operations have no place in this format and were left out\n", left)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&to, "to", "fio3", "the format: fio3, fio2 or varve")
	cmd.Flags().StringVar(&dir, "dir", "", "with fio3 and fio2: the directory in which the files are to be, before their paths")
	return cmd
}
