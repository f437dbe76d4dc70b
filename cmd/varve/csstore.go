package main

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"varve/cs"
	"varve/cs/store"
	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
)

// csRefusal gives a directory that must not be used its exit code.
func csRefusal(err error) error {
	if errors.Is(err, store.ErrRetired) || errors.Is(err, store.ErrMoved) || errors.Is(err, fserr.WrongCluster) || errors.Is(err, fserr.Retired) {
		return &exitError{exitRefused, err}
	}
	return inUse(err)
}

// csDirCommand is a command that looks into the directory of a chunk server.
func csDirCommand(use, short, long string, args cobra.PositionalArgs, run func(cmd *cobra.Command, dir string, args []string) error) *cobra.Command {
	var dir string
	cmd := &cobra.Command{Use: use, Short: short, Long: long, Args: args, RunE: func(cmd *cobra.Command, args []string) error {
		if dir == "" {
			return usagef("%s needs -r DIR, the directory of a chunk server; see %s --help", cmd.CommandPath(), cmd.CommandPath())
		}
		return run(cmd, dir, args)
	}}
	cmd.Flags().StringVarP(&dir, "repo", "r", "", "directory of the server")
	return cmd
}

func (a *app) csCheckCommand() *cobra.Command {
	var jobs int
	cmd := csDirCommand("check -r DIR", "Check the chunks of a server that is stopped: headers, tables, the activity log, and every block",
		"Check the chunks of a server that is stopped: headers, tables of checksums, the activity log, the list of bad blocks, and every block\n"+
			"against its checksum. It changes nothing. Blocks of extents that were active when the server died are not checked, since the server makes their\n"+
			"checksums anew when it starts. Exit code 1: something is wrong.", noArgs,
		func(cmd *cobra.Command, dir string, _ []string) error {
			o, server, end, err := cs.StoreOptions(cs.Options{Dir: dir})
			if err != nil {
				return otherKind(dir, "cs.json", "mds", csRefusal(err))
			}
			defer end()
			step, done := a.checkProgress()
			r, err := store.Check(cmd.Context(), o, store.CheckOptions{Jobs: jobs, Progress: step})
			done()
			if err != nil {
				return csRefusal(err)
			}
			if a.json {
				err = a.printJSON(struct {
					Server string `json:"server"`
					Dir    string `json:"dir"`
					store.Report
				}{server.String(), dir, r})
			} else {
				a.printCheck(server, r)
			}
			if err == nil && r.Count > 0 {
				err = fmt.Errorf("%s: %s found; blocks that are bad are mended from other replicas when the server runs; if the disk is to blame, "+
					"make a new chunk server on another one and remove this one", dir, count(uint64(r.Count), "fault"))
			}
			return err
		})
	cmd.Flags().IntVarP(&jobs, "jobs", "j", 4, "chunks that are read at once")
	return cmd
}

// checkProgress shows how many chunks are done, on a terminal.
func (a *app) checkProgress() (step func(done, total int, bytes int64), end func()) {
	f, ok := a.err.(*os.File)
	if !ok || !isTerminal(f) {
		return nil, func() {}
	}
	var bar *progressbar.ProgressBar
	step = func(done, total int, bytes int64) {
		if bar == nil {
			bar = progressbar.NewOptions(total, progressbar.OptionSetWriter(f), progressbar.OptionSetDescription("checking"), progressbar.OptionShowCount(),
				progressbar.OptionThrottle(200*time.Millisecond), progressbar.OptionClearOnFinish(), progressbar.OptionSetPredictTime(true))
		}
		bar.Describe("checking, " + a.size(uint64(bytes)) + " read")
		_ = bar.Set(done) // it is only shown
	}
	return step, func() {
		if bar != nil {
			_ = bar.Clear()
		}
	}
}

func (a *app) printCheck(server id.ServerID, r store.Report) {
	for _, f := range r.Faults {
		fmt.Fprintln(a.out, f)
	}
	if n := r.Count - len(r.Faults); n > 0 {
		fmt.Fprintf(a.out, "and %s more\n", count(uint64(n), "fault"))
	}
	fmt.Fprintf(a.out, "%s: %s in %s, %s on the disk; ", server, count(uint64(r.Blocks), "block"), count(uint64(r.Chunks), "chunk"), a.size(uint64(r.Allocated)))
	if r.Count == 0 {
		fmt.Fprintln(a.out, "all are right")
	} else {
		fmt.Fprintf(a.out, "%s\n", count(uint64(r.Count), "fault"))
	}
	if r.Unclean > 0 {
		fmt.Fprintf(a.out, "the server was not stopped cleanly: %s of %s were being written to and were not checked\n",
			count(uint64(r.Skipped), "extent"), count(uint64(r.Unclean), "chunk"))
	}
	if r.Quarantine > 0 {
		fmt.Fprintf(a.out, "%s in quarantine, of which %d match their checksums now\n", count(uint64(r.Quarantine), "block"), r.Healthy)
	}
}

func (a *app) csDumpCommand() *cobra.Command {
	var table bool
	var data string
	cmd := csDirCommand("dump -r DIR CHUNK|FILE", "Show what the file of a chunk holds, or label, active.log, quarantine or journal",
		"Show what the file of a chunk holds: both slots of its header, its extents, what is in quarantine, and with --table which blocks are written, with\n"+
			"--data the bytes themselves. A chunk is given by its id in hexadecimal, as elsewhere. FILE is label, active.log, quarantine, or\n"+
			"journal for what is in the write journal.",
		exactArgs("CHUNK or FILE"),
		func(cmd *cobra.Command, dir string, args []string) error {
			if args[0] == "journal" { // which is not opened: it may be damaged
				if a.json || table || data != "" {
					return usagef("%s is shown as text only, without --table and --data", args[0])
				}
				return otherKind(dir, "cs.json", "mds", cs.DumpJournal(a.out, cs.Options{Dir: dir}))
			}
			o, _, end, err := cs.StoreOptions(cs.Options{Dir: dir})
			if err != nil {
				return otherKind(dir, "cs.json", "mds", csRefusal(err))
			}
			defer end()
			switch args[0] {
			case "label", "active.log", "quarantine":
				if a.json || table || data != "" {
					return usagef("%s is shown as text only, without --table and --data", args[0])
				}
				return store.Dump(a.out, filepath.Join(dir, args[0]))
			}
			n, err := strconv.ParseUint(strings.TrimPrefix(args[0], "0x"), 16, 64)
			if err != nil || n == 0 {
				return usagef("%q: want the id of a chunk in hexadecimal, or label, active.log, quarantine or journal", args[0])
			}
			do := store.DumpOptions{Table: table}
			if do.From, do.To, err = byteRange(data); err != nil {
				return err
			}
			if a.json {
				if data != "" {
					return usagef("--data is shown as text only")
				}
				d, err := store.DumpChunk(nil, o, id.ChunkID(n), do)
				if d == nil {
					return err
				}
				return errors.Join(a.printJSON(d), err)
			}
			_, err = store.DumpChunk(a.out, o, id.ChunkID(n), do)
			if errors.Is(err, fserr.NoChunk) {
				return fmt.Errorf("%w; `varve explain %s` says where the chunk is", err, args[0])
			}
			return err
		})
	cmd.Flags().BoolVar(&table, "table", false, "show which blocks are data and which are holes")
	cmd.Flags().StringVar(&data, "data", "", "show the bytes FROM:TO of the chunk in hexadecimal, such as 4096:8192 or 0:64K")
	return cmd
}

// byteRange parses FROM:TO; the empty text is no bytes.
func byteRange(text string) (from, to uint32, err error) {
	if text == "" {
		return 0, 0, nil
	}
	a, b, ok := strings.Cut(text, ":")
	var f, t sizeFlag
	if a == "0" {
		a = "0B"
	}
	if !ok || f.Set(a) != nil || t.Set(b) != nil || f >= t || t > chunk.Size || t > math.MaxUint32 {
		return 0, 0, usagef("--data %q: want FROM:TO with FROM < TO <= %d, such as 4096:8192 or 0:64K", text, chunk.Size)
	}
	return uint32(f), uint32(t), nil
}

func (a *app) csReadmitCommand() *cobra.Command {
	var force bool
	cmd := csDirCommand("readmit -r DIR [--force]", "Let a server start again whose disk was retired, or whose directory was moved",
		"Let a server start again whose disk was retired after a failure, or whose directory was moved to another place or filesystem. Without --force it\n"+
			"says what keeps the server out. A disk that has failed once to write or to sync may have lost what it said it holds: run cs check first, and\n"+
			"replace the disk if you can. A copy must not be readmitted while the original exists: two servers would answer as one.", noArgs,
		func(cmd *cobra.Command, dir string, _ []string) error {
			if !force {
				server, err := cs.MayStart(cs.Options{Dir: dir})
				if err == nil {
					_, err = fmt.Fprintf(a.out, "nothing keeps %s out of %s\n", server, dir)
					return err
				}
				if errors.Is(err, store.ErrRetired) || errors.Is(err, store.ErrMoved) || errors.Is(err, store.ErrCorrupt) {
					return refusedf("%w; with --force it may start all the same", err)
				}
				return otherKind(dir, "cs.json", "mds", csRefusal(err))
			}
			was, server, err := cs.Readmit(cs.Options{Dir: dir})
			if err != nil {
				return otherKind(dir, "cs.json", "mds", csRefusal(err))
			}
			if a.json {
				return a.printJSON(struct {
					Server string   `json:"server"`
					Dir    string   `json:"dir"`
					Was    []string `json:"was"`
				}{server.String(), dir, append([]string{}, was...)})
			}
			for _, w := range was {
				fmt.Fprintf(a.out, "%s: forgotten: %s\n", server, w)
			}
			_, err = fmt.Fprintf(a.out, "start it with: varve cs -r %s\n", shellQuote(dir))
			return err
		})
	cmd.Flags().BoolVar(&force, "force", false, "do it, though the data may be damaged")
	return cmd
}
