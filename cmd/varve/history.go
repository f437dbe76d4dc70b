package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"varve/internal/id"
	"varve/journal"
	"varve/mds/event"
	"varve/mds/history"
	"varve/mds/state"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
)

// journalFlags say which journal is meant.
type journalFlags struct{ dir string }

func (f *journalFlags) add(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVarP(&f.dir, "repo", "r", "", "directory of a stopped metadata server, or a copy of its journal; without it the cluster of -c is asked")
	return cmd
}

// openHistory opens the journal of -r, or else that of the cluster of -c.
func (a *app) openHistory(ctx context.Context, f journalFlags) (history.Source, error) {
	if f.dir != "" {
		d, err := history.OpenDir(f.dir)
		if err != nil {
			return nil, err
		}
		return d, nil
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

// withHistory opens the journal for run. A reader of the output that has gone away ends it quietly.
func (a *app) withHistory(ctx context.Context, f journalFlags, run func(history.Source) error) error {
	src, err := a.openHistory(ctx, f)
	if err != nil {
		return err
	}
	defer src.Close()
	slackenGC(replaySlack)
	if err = run(src); errors.Is(err, syscall.EPIPE) {
		return nil
	}
	return err
}

// rangeFlags say which events are meant.
type rangeFlags struct {
	from, to string
	filter   history.Filter
	uid      int64
	chunk    string
	session  uint64
	inode    uint64
	server   uint32
}

func (f *rangeFlags) add(cmd *cobra.Command) *cobra.Command {
	fl := cmd.Flags()
	fl.StringVar(&f.from, "from", "", "first index, or a time (events after it)")
	fl.StringVar(&f.to, "to", "", "last index, or a time")
	fl.StringVar(&f.filter.Path, "path", "", "only events about this path or something below it")
	fl.StringSliceVar(&f.filter.Kinds, "type", nil, "only events of these kinds, such as create,rename")
	fl.Uint64Var(&f.session, "session", 0, "only events of or about this session")
	fl.Uint64Var(&f.inode, "inode", 0, "only events about this inode")
	fl.StringVar(&f.chunk, "chunk", "", "only events about this chunk (16 hexadecimal digits)")
	fl.Uint32Var(&f.server, "server", 0, "only events about this chunk server (its number)")
	fl.Int64Var(&f.uid, "uid", -1, "only what this user did")
	return cmd
}

// done finishes the filter.
func (f *rangeFlags) done() error {
	f.filter.Session, f.filter.Inode, f.filter.Server, f.filter.UID = id.SessionID(f.session), id.Ino(f.inode), id.ServerID(f.server), f.uid+1
	if f.chunk != "" {
		c, ok := parseChunk(f.chunk)
		if !ok {
			return usagef("--chunk %s: want the 16 hexadecimal digits of a chunk's id", f.chunk)
		}
		f.filter.Chunk = c
	}
	if f.filter.Path != "" {
		f.filter.Path = cleanPath(f.filter.Path)
	}
	known := event.Kinds()
	for _, k := range f.filter.Kinds {
		if !contains(known, k) {
			return usagef("--type %s: no such kind of event; there are %s", k, joinWords(known))
		}
	}
	return nil
}

// bounds returns the indexes that the flags name, within those that the journal has.
func (f *rangeFlags) bounds(ctx context.Context, src history.Source) (from, to id.Index, err error) {
	first, last, err := parseRange(f.from, f.to, time.Now())
	if err != nil {
		return 0, 0, err
	}
	lo, hi, err := src.Bounds(ctx)
	if err != nil {
		return 0, 0, err
	}
	from, to = lo, hi
	if first != nil {
		if from, err = first.in(ctx, src); err != nil {
			return 0, 0, err
		}
		if !first.time.IsZero() {
			from++ // what came after that time
		}
		if from < lo {
			return 0, 0, fmt.Errorf("the journal begins at index %d; older events are only in checkpoints", lo)
		}
	}
	if last != nil {
		if to, err = last.in(ctx, src); err != nil {
			return 0, 0, err
		}
	}
	return from, min(to, hi), nil
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

// indexOf returns the index that s names, which must be in the journal; empty: the last.
func indexOf(ctx context.Context, src history.Source, flag, s string) (id.Index, error) {
	_, hi, err := src.Bounds(ctx)
	if err != nil || s == "" {
		return hi, err
	}
	m, err := parseMoment(s, time.Now())
	if err != nil {
		return 0, err
	}
	at, err := m.in(ctx, src)
	if err == nil && (at > hi || at == 0) {
		return 0, usagef("%s %d is not in the journal: want 1 to %d", flag, at, hi)
	}
	return at, err
}

// printer writes events.
type printer struct {
	a    *app
	w    *bufio.Writer
	text history.Texter
	enc  *json.Encoder
}

func (a *app) newPrinter() *printer {
	p := &printer{a: a, w: bufio.NewWriterSize(a.out, 64<<10)}
	p.text.Size = a.size
	p.enc = json.NewEncoder(p.w)
	p.enc.SetEscapeHTML(false)
	return p
}

// line is one event for people.
func (p *printer) line(s *state.State, ev *event.Event) string {
	return fmt.Sprintf("%8d  %s  %-15s %s  [%s]", ev.Index, stamp(ev.Time), event.Kind(ev), p.text.Text(s, ev), p.text.Who(s, ev))
}

func (p *printer) print(s *state.State, ev *event.Event) error {
	if p.a.json {
		return p.enc.Encode(newEventJSON(ev, p.text.Text(s, ev), p.text.Paths(s, ev)))
	}
	_, err := fmt.Fprintln(p.w, p.line(s, ev))
	return err
}

// missing says that events are not there.
func (p *printer) missing(gap journal.GapError) {
	if !p.a.json {
		fmt.Fprintf(p.w, "# %d to %d are not in this journal: a checkpoint of another server was installed\n", gap.Last+1, gap.Next-1)
	}
}

// progress shows how far long work is, if standard error is a terminal. Call done when it is over.
func (a *app) progress(what string, from, to id.Index) (at func(id.Index), done func()) {
	f, ok := a.err.(*os.File)
	if !ok || !isTerminal(f) || to <= from {
		return func(id.Index) {}, func() {}
	}
	bar := progressbar.NewOptions64(int64(to-from), progressbar.OptionSetWriter(f), progressbar.OptionSetDescription(what),
		progressbar.OptionThrottle(200*time.Millisecond), progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionSetItsString("events"),
		progressbar.OptionClearOnFinish(), progressbar.OptionSetPredictTime(true))
	return func(i id.Index) {
			if i > from {
				_ = bar.Set64(int64(min(i, to) - from)) // it is only shown
			}
		}, func() {
			_ = bar.Finish()
		}
}

// flush ends the output of p.
func (p *printer) flush(err error) error { return errors.Join(err, p.w.Flush()) }

// byteProgress is progress for work that is counted in bytes, whose total is known when it is under way.
func (a *app) byteProgress(what string) (at func(done, total int64), end func()) {
	f, ok := a.err.(*os.File)
	if !ok || !isTerminal(f) {
		return nil, func() {}
	}
	var bar *progressbar.ProgressBar
	at = func(done, total int64) {
		if bar == nil {
			bar = progressbar.NewOptions64(total, progressbar.OptionSetWriter(f), progressbar.OptionSetDescription(what),
				progressbar.OptionThrottle(200*time.Millisecond), progressbar.OptionShowBytes(true), progressbar.OptionClearOnFinish())
		}
		_ = bar.Set64(min(done, total)) // it is only shown
	}
	return at, func() {
		if bar != nil {
			_ = bar.Clear()
		}
	}
}
