package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// runFailover kills the leader again and again while 8 threads make files, and measures for how long none of them was answered.
func runFailover(ctx context.Context, o options) (err error) {
	if o.mds < 3 {
		return errors.New("failover needs --mds 3 or more")
	}
	c, err := startCluster(ctx, o, 2)
	if err != nil {
		return err
	}
	defer func() { err = c.stop(err) }()
	load := &createLoad{dir: filepath.Join(c.mounts[0], "failover")}
	if err := load.start(); err != nil {
		return err
	}
	var gaps []time.Duration
	for i := range o.kills {
		time.Sleep(time.Second)
		var pid int
		var lerr error
		if err := waitFor(ctx, time.Minute, func() bool { // a busy machine may elect another one at any time
			pid, lerr = c.leader(ctx)
			return lerr == nil
		}); err != nil {
			return errors.Join(err, lerr, load.end())
		}
		killed := time.Now()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			return errors.Join(fmt.Errorf("kill the leader, pid %d: %w", pid, err), load.end())
		}
		// Answers that were under way still come; then there are none until somebody serves.
		gap, err := load.silence(ctx, killed)
		if err != nil {
			return errors.Join(fmt.Errorf("after kill %d: %w", i+1, err), load.end())
		}
		gaps = append(gaps, gap)
		fmt.Printf("kill %d of pid %d: no answer for %v\n", i+1, pid, gap.Round(time.Millisecond))
		if err := waitFor(ctx, 2*time.Minute, func() bool { return c.answering(ctx, o.mds) }); err != nil {
			return errors.Join(fmt.Errorf("after kill %d: not all metadata servers are back: %w", i+1, err), load.end())
		}
	}
	if err := load.end(); err != nil {
		return err
	}
	if err := load.check(filepath.Join(c.mounts[1], "failover")); err != nil {
		return err
	}
	slices.Sort(gaps)
	fmt.Printf("\n%d kills of the leader under load of %d threads; %d files acknowledged, all there, none made twice\n",
		len(gaps), metaThreads, load.acked.Load())
	fmt.Printf("time without service: p50 %v, p99 %v, max %v\n", gaps[len(gaps)/2].Round(time.Millisecond),
		gaps[len(gaps)*99/100].Round(time.Millisecond), gaps[len(gaps)-1].Round(time.Millisecond))
	return nil
}

// answering reports whether all metadata servers follow the leader again.
func (c *cluster) answering(ctx context.Context, n int) bool {
	st, err := c.status(ctx)
	if err != nil {
		return false
	}
	for _, m := range st.MDS {
		if m.State != "leader" && m.State != "follower" {
			n++
		}
	}
	return len(st.MDS) >= n
}

func waitFor(ctx context.Context, limit time.Duration, fn func() bool) error {
	for deadline := time.Now().Add(limit); !fn(); time.Sleep(100 * time.Millisecond) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("waited %v in vain", limit)
		}
	}
	return nil
}

// createLoad makes files until it is ended. Each name is used once.
type createLoad struct {
	dir   string
	stop  atomic.Bool
	wg    sync.WaitGroup
	acked atomic.Int64

	mu    sync.Mutex
	times []time.Time // of answers since the last look
	count []int       // files of each thread
	err   error
}

func (l *createLoad) name(thread, i int) string { return fmt.Sprintf("%d-%07d", thread, i) }

func (l *createLoad) start() error {
	if err := os.Mkdir(l.dir, 0o755); err != nil {
		return err
	}
	l.count = make([]int, metaThreads)
	for n := range metaThreads {
		l.wg.Go(func() {
			for i := 0; !l.stop.Load(); i++ {
				// If it was done, and then done again because the answer was lost, it says EEXIST.
				err := createFile(filepath.Join(l.dir, l.name(n, i)))
				l.mu.Lock()
				if err != nil {
					l.err = errors.Join(l.err, fmt.Errorf("file %d of thread %d: %w", i, n, err))
					l.mu.Unlock()
					return
				}
				l.times = append(l.times, time.Now())
				l.count[n] = i + 1
				l.mu.Unlock()
				l.acked.Add(1)
			}
		})
	}
	return nil
}

func (l *createLoad) end() error {
	l.stop.Store(true)
	l.wg.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// silence returns the longest time without an answer between the kill and the moment when answers have come again for a second.
func (l *createLoad) silence(ctx context.Context, killed time.Time) (time.Duration, error) {
	var longest time.Duration
	last, again := killed, time.Time{}
	for time.Since(killed) < time.Minute {
		time.Sleep(10 * time.Millisecond)
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		l.mu.Lock()
		times, err := l.times, l.err
		l.times = nil
		l.mu.Unlock()
		if err != nil {
			return 0, err
		}
		for _, t := range times {
			if t.Before(last) {
				continue
			}
			if gap := t.Sub(last); gap > longest {
				longest, again = gap, t
			}
			last = t
		}
		if !again.IsZero() && longest > 100*time.Millisecond && time.Since(again) > time.Second {
			return longest, nil
		}
	}
	return 0, fmt.Errorf("no answer %v after the leader was killed; the last gap was %v", time.Since(last).Round(time.Second), longest)
}

// check compares the directory, as another mount sees it, with what was acknowledged.
func (l *createLoad) check(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	there := make(map[string]bool, len(names))
	for _, n := range names {
		if there[n] {
			return fmt.Errorf("%s is listed twice", n)
		}
		there[n] = true
	}
	for n, count := range l.count {
		for i := range count {
			if name := l.name(n, i); !there[name] {
				return fmt.Errorf("%s was acknowledged and is not there", name)
			}
			delete(there, l.name(n, i))
		}
	}
	for n := range there {
		return fmt.Errorf("%s is there and was never acknowledged", n)
	}
	return nil
}
