package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

const (
	metaThreads = 8
	metaFiles   = 1000 // of each thread
)

// step is one metadata operation, done once for every file.
type step struct {
	name string
	do   func(path string) error
	cold bool // through caches that know nothing
	sync bool // of the local directory also with a sync after it, as varve's is durable
}

var steps = []step{
	{name: "create", do: createFile, sync: true},
	{name: "stat, just made", do: lstat},
	{name: "stat, again", do: lstat},
	{name: "stat, uncached", do: lstat, cold: true},
	{name: "rename", do: func(p string) error { return os.Rename(p, p+".new") }, sync: true},
	{name: "unlink", do: func(p string) error { return os.Remove(p + ".new") }, sync: true},
	{name: "mkdir", do: func(p string) error { return os.Mkdir(p, 0o755) }, sync: true},
	{name: "rmdir", do: os.Remove, sync: true},
}

func lstat(p string) error { _, err := os.Lstat(p); return err }

func createFile(p string) error {
	f, err := os.OpenFile(p, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

// synced is do with a sync of the directory, which makes it durable as varve's answer is.
func synced(do func(string) error) func(string) error {
	return func(p string) error {
		if err := do(p); err != nil {
			return err
		}
		d, err := os.Open(filepath.Dir(p))
		if err != nil {
			return err
		}
		defer d.Close()
		return d.Sync()
	}
}

// benchMetadata does each step with 1 and with 8 threads, each thread in a directory of its own, then lists a large directory.
func benchMetadata(ctx context.Context, o options, targets []target, t *table) error {
	for round := range o.rounds {
		for _, threads := range []int{1, metaThreads} {
			for i := range targets {
				if err := metaRound(ctx, o, targets[(i+round)%len(targets)], t, round, threads, false); err != nil {
					return err
				}
			}
			durable := targets[0]
			durable.name = "local, synced"
			if err := metaRound(ctx, o, durable, t, round, threads, true); err != nil {
				return err
			}
		}
	}
	if o.entries == 0 {
		return nil
	}
	for _, tg := range targets {
		if err := benchListing(ctx, o, tg, t); err != nil {
			return err
		}
	}
	return nil
}

func metaRound(ctx context.Context, o options, tg target, t *table, round, threads int, durable bool) error {
	below := fmt.Sprintf("meta-%d-%d", round, threads)
	base := filepath.Join(tg.dir, below)
	for n := range threads {
		if err := os.MkdirAll(filepath.Join(base, fmt.Sprint(n)), 0o755); err != nil {
			return err
		}
	}
	for _, s := range steps {
		name := fmt.Sprintf("%s, %d threads", s.name, threads)
		if threads == 1 {
			name = s.name + ", 1 thread"
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		do, dir := s.do, base
		switch {
		case durable && !s.sync:
			continue
		case durable:
			do = synced(do)
		case s.cold:
			dropCaches()
			dir = filepath.Join(tg.cold, below)
		}
		cpu, begin := tg.cpu(), time.Now()
		if err := each(dir, threads, do); err != nil {
			return fmt.Errorf("%s on %s: %w", name, tg.name, err)
		}
		took, ops := time.Since(begin), float64(threads*metaFiles)
		if !strings.Contains(name, o.only) {
			continue
		}
		t.add(name, "ops/s", tg.name, sample{Value: ops / took.Seconds(), CPU: time.Duration(float64(tg.cpu()-cpu) / ops)})
		fmt.Printf("round %d  %-34s %-13s %10.0f ops/s\n", round+1, name, tg.name, ops/took.Seconds())
	}
	return os.RemoveAll(base)
}

// each runs do for every file of every thread and returns the first error of any.
func each(base string, threads int, do func(string) error) error {
	errs := make([]error, threads)
	var wg sync.WaitGroup
	for n := range threads {
		wg.Go(func() {
			for i := range metaFiles {
				if errs[n] = do(filepath.Join(base, fmt.Sprint(n), fmt.Sprintf("file%05d", i))); errs[n] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// benchListing lists a large directory, names alone and as ls -l does, first through caches that know nothing of it.
func benchListing(ctx context.Context, o options, tg target, t *table) error {
	dir := filepath.Join(tg.dir, "large")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	errs := make([]error, metaThreads)
	var wg sync.WaitGroup
	for n := range metaThreads {
		wg.Go(func() {
			for i := n; i < o.entries && errs[n] == nil && ctx.Err() == nil; i += metaThreads {
				errs[n] = createFile(filepath.Join(dir, fmt.Sprintf("file%07d", i)))
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	defer os.RemoveAll(dir)
	for _, l := range []struct {
		name string
		do   func(dir string) (int, error)
	}{{"readdir", listNames}, {"ls -l", listAll}} {
		for _, state := range []string{"uncached", "again"} {
			if err := ctx.Err(); err != nil {
				return err
			}
			if state == "uncached" {
				dropCaches()
			}
			cpu, begin := tg.cpu(), time.Now()
			n, err := l.do(filepath.Join(tg.cold, "large"))
			if err != nil {
				return err
			}
			if n != o.entries {
				return fmt.Errorf("%s has %d entries, want %d", dir, n, o.entries)
			}
			took := time.Since(begin)
			name := fmt.Sprintf("%s of %d entries, %s", l.name, o.entries, state)
			t.add(name, "entries/s", tg.name, sample{Value: float64(n) / took.Seconds(), CPU: (tg.cpu() - cpu) / time.Duration(n)})
			fmt.Printf("%-42s %-13s %10.0f entries/s\n", name, tg.name, float64(n)/took.Seconds())
		}
	}
	return nil
}

func listNames(dir string) (int, error) {
	d, err := os.Open(dir)
	if err != nil {
		return 0, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	return len(names), err
}

func listAll(dir string) (int, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		if _, err := e.Info(); err != nil {
			return 0, err
		}
	}
	return len(entries), nil
}
