package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"varve/fuse"
	"varve/internal/capture"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func (a *app) perfCaptureCommand() *cobra.Command {
	var length time.Duration
	var out, glob string
	cmd := &cobra.Command{
		Use: "capture MOUNT", Short: "Record what is done on a running mount, to do it again with perf replay", Args: exactArgs("MOUNT"),
		Long: "Record what is done on a running mount, to do it again with perf replay: which operation on which file, where, how much, when, for\n" +
			"how long, by which process, and what came of it, but no data. The mount does not wait for the recording: what cannot be taken in time is\n" +
			"dropped, and the count is printed. Ctrl-C ends it. It is for the user whose process serves the mount, on its host.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if length < 0 {
				return usagef("--for %v: want 0 or more", length)
			}
			if out == "" {
				out = "varve-" + time.Now().Format("20060102-150405") + ".capture"
			}
			return a.perfCapture(cmd.Context(), args[0], out, length, capture.Wanted{Glob: glob})
		},
	}
	f := cmd.Flags()
	f.DurationVar(&length, "for", 0, "how long; 0: until Ctrl-C, or until the mount goes away")
	f.StringVar(&out, "out", "", "the file to write (default varve-TIME.capture)")
	f.StringVar(&glob, "path", "", "only operations on open files of this pattern, as *.img or vm/*.img; default: all operations")
	return cmd
}

// captureJSON is what `perf capture --json` prints.
type captureJSON struct {
	File  string `json:"file"`
	Bytes int64  `json:"bytes"`
	capture.Stats
}

func (a *app) perfCapture(ctx context.Context, dir, out string, length time.Duration, want capture.Wanted) (err error) {
	if err := want.Check(); err != nil {
		return usagef("--path: %w", err)
	}
	m, err := mountOf(dir)
	if err != nil {
		return err
	}
	names, err := capture.NewNames(m.Dir)
	if err != nil {
		return err
	}
	s, err := capture.Dial(m.Minor)
	if err != nil {
		return fmt.Errorf("%s: %w", m.Dir, err)
	}
	defer s.Close()
	f, err := os.OpenFile(out, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600) // it has names of files
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w, err := capture.NewWriter(f, capture.Header{Started: s.Started})
	if err != nil {
		return fmt.Errorf("write %s: %w", out, err)
	}
	if length > 0 {
		timed, cancel := context.WithTimeout(ctx, length)
		defer cancel()
		ctx = timed
	}
	defer context.AfterFunc(ctx, func() { _ = s.Stop() })() // if it fails, the mount is gone and Copy has ended
	if e, ok := a.err.(*os.File); ok && isTerminal(e) {
		fmt.Fprintf(e, "recording %s; Ctrl-C ends it\n", m.Dir)
	}
	st, err := capture.Copy(w, s, names, want)
	if err != nil {
		return fmt.Errorf("capture to %s has %d operations, then: %w", out, st.Records, err)
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(captureJSON{out, info.Size(), st})
	}
	fmt.Fprintf(a.out, "%s: %s operations in %v, %s", out, humanize.Comma(int64(st.Records)), st.Length.Round(time.Millisecond), humanize.IBytes(uint64(info.Size())))
	if st.LeftOut > 0 {
		fmt.Fprintf(a.out, "; %s of other files left out", humanize.Comma(int64(st.LeftOut)))
	}
	if st.Dropped > 0 {
		fmt.Fprintf(a.out, "; %s dropped, which came faster than they could be taken", humanize.Comma(int64(st.Dropped)))
	}
	_, err = fmt.Fprintln(a.out)
	return err
}

// mountOf returns the varve mount that a path is on.
func mountOf(path string) (fuse.MountInfo, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return fuse.MountInfo{}, err
	}
	var st unix.Stat_t
	if err := unix.Stat(abs, &st); err != nil {
		return fuse.MountInfo{}, fmt.Errorf("%w; varve mounts are listed by: findmnt -t fuse.varve", &os.PathError{Op: "stat", Path: path, Err: err})
	}
	mounts, err := fuse.Mounts()
	if err != nil {
		return fuse.MountInfo{}, err
	}
	for _, m := range mounts {
		if m.Major == unix.Major(st.Dev) && m.Minor == unix.Minor(st.Dev) {
			return m, nil
		}
	}
	return fuse.MountInfo{}, usagef("%s is not on a varve mount; varve mounts are listed by: findmnt -t fuse.varve", path)
}
