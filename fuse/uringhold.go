package fuse

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/fserr"
)

const onlineCPUs = "/sys/devices/system/cpu/online"

// fill returns when no entry of a queue waits for a request: each has one, of poke's if of nobody else. See handover.go. Queues of processors that are offline are left out: nobody
// runs there.
func (u *uring) fill(ctx context.Context, dir string, poke Poke) error {
	online, err := os.ReadFile(onlineCPUs)
	if err != nil {
		return err
	}
	list, err := cpuList(string(online))
	if err != nil {
		return err
	}
	for poked := false; ; poked = true {
		waiting, left := u.waiting(), 0
		for number := range waiting {
			if !list[number] {
				delete(waiting, number)
				continue
			}
			left += waiting[number]
		}
		if left == 0 {
			return nil
		}
		if !poked {
			if err := poke(dir, waiting); err != nil {
				return fmt.Errorf("FUSE over io_uring: %w", err)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("FUSE over io_uring: %d entries still wait for requests, so that one could be lost (may this process not run on all processors?): %w", left, fserr.Timeout)
		case <-u.t.s.ended:
			return fmt.Errorf("the mount has ended: %w", fserr.Unavailable)
		case <-time.After(pausing):
		}
	}
}

// waiting returns how many entries of each queue wait for a request.
func (u *uring) waiting() map[int]int {
	all := make(map[int]int)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, d := range u.t.all {
		wg.Add(1)
		if !d.l.Do(func() {
			defer wg.Done()
			for _, q := range d.queues {
				if n := q.entries - q.refused - q.busy; n > 0 {
					mu.Lock()
					all[q.number] = n
					mu.Unlock()
				}
			}
		}) {
			wg.Done()
		}
	}
	wg.Wait()
	return all
}

// cpuList reads a list of processors such as 0-3,8.
func cpuList(s string) (map[int]bool, error) {
	all := make(map[int]bool)
	for _, part := range strings.Split(strings.TrimSpace(s), ",") {
		first, last, ok := strings.Cut(part, "-")
		if !ok {
			last = first
		}
		from, err := strconv.Atoi(first)
		to, err2 := strconv.Atoi(last)
		if err != nil || err2 != nil || from < 0 || to < from || to >= 1<<15 {
			return nil, fmt.Errorf("processors %q: want such as 0-3,8: %w", s, fserr.Invalid)
		}
		for n := from; n <= to; n++ {
			all[n] = true
		}
	}
	return all, nil
}

// save returns the memory of all entries.
func (u *uring) save() (all []ringSave) {
	for _, q := range u.queues {
		for _, r := range q.memory {
			all = append(all, ringSave{Queue: q.number, Entries: r.entries, Payload: u.size, Addr: r.addr(), FD: r.fd})
		}
	}
	return all
}

// take maps the memory that another program has saved. The loops begin with it when they start.
func (u *uring) take(all []ringSave) error {
	u.size = all[0].Payload
	for _, v := range all {
		if v.Queue >= len(u.queues) || v.Payload != u.size {
			return fmt.Errorf("entries of queue %d with payloads of %d bytes, want one of %d queues and %d: %w", v.Queue, v.Payload, len(u.queues), u.size, fserr.Invalid)
		}
		var st unix.Stat_t
		n := v.Entries * (u.size + ringHeaderStride)
		if err := unix.Fstat(v.FD, &st); err != nil || st.Size < int64(n) {
			return fmt.Errorf("memory of queue %d: %d bytes (%v), want %d: %w", v.Queue, st.Size, err, n, fserr.Invalid)
		}
		r, err := mapRegion(v.FD, n, v.Addr)
		if err != nil {
			return fmt.Errorf("memory of queue %d: %w", v.Queue, err)
		}
		r.entries = v.Entries
		u.kept = append(u.kept, keptRegion{u.queues[v.Queue], r})
	}
	return nil
}

// keptRegion is memory that another program has saved, and the queue that it belongs to.
type keptRegion struct {
	q *ringQueue
	r ringRegion
}

// adopt takes the entries that are this loop's: requests that they hold are served, and the others are given to the kernel anew. It runs on the loop's thread.
func (d *devLoop) adopt() {
	for _, k := range d.t.ring.kept {
		if k.q.d != d {
			continue
		}
		for _, e := range k.q.add(k.r) {
			if le.Uint64(e.head[ringCommitID:]) == 0 {
				e.submit()
				continue
			}
			e.known = true
			k.q.busy++
			d.arrived(e)
		}
	}
}
