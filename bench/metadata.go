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
	metaFiles   = 250 // of each thread
)

// step is one metadata operation, done once for every file.
type step struct {
	name string
	do   func(path string) error
}

var steps = []step{
	{"create", func(p string) error {
		f, err := os.OpenFile(p, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		return f.Close()
	}},
	{"stat", func(p string) error { _, err := os.Lstat(p); return err }},
	{"rename", func(p string) error { return os.Rename(p, p+".new") }},
	{"unlink", func(p string) error { return os.Remove(p + ".new") }},
}

// benchMetadata does each step with 1 and with 8 threads, each thread in a directory of its own.
func benchMetadata(ctx context.Context, o options, targets []target, t *table) error {
	for round := range o.rounds {
		for _, threads := range []int{1, metaThreads} {
			for i := range targets {
				tg := targets[(i+round)%len(targets)]
				base := filepath.Join(tg.dir, fmt.Sprintf("meta-%d-%d", round, threads))
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
					cpu, begin := tg.cpu(), time.Now()
					if err := each(base, threads, s.do); err != nil {
						return fmt.Errorf("%s on %s: %w", name, tg.name, err)
					}
					took, ops := time.Since(begin), float64(threads*metaFiles)
					if !strings.Contains(name, o.only) {
						continue
					}
					t.add(name, "ops/s", tg.name, sample{Value: ops / took.Seconds(), CPU: time.Duration(float64(tg.cpu()-cpu) / ops)})
					fmt.Printf("round %d  %-34s %-6s %10.0f ops/s\n", round+1, name, tg.name, ops/took.Seconds())
				}
				if err := os.RemoveAll(base); err != nil {
					return err
				}
			}
		}
	}
	return nil
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
