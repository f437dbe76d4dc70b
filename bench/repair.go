package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

const (
	repairServers = 5
	repairFile    = 32 << 20 // of what lies there and is rebuilt
	guestSize     = "256m"
	// guestRate is what the guest asks for, in reads and in writes a second: a part of what the cluster does, so that something remains for repair.
	guestRate = "400,400"
)

// repairStatus is what is read of varve stat --json about repair.
type repairStatus struct {
	Degraded uint64 `json:"degraded"`
	Joining  uint64 `json:"joining"`
	Repair   struct {
		Rate    uint64 `json:"rate_bytes_per_s"`
		Copying uint64 `json:"copying_bytes_per_s"`
		Held    string `json:"held"`
		Work    []struct {
			Bytes uint64 `json:"bytes"`
			ETAMS int64  `json:"eta_ms"`
		} `json:"work"`
	} `json:"repair"`
	CS []struct {
		ID    int    `json:"id"`
		State string `json:"state"`
		Slow  string `json:"slow"`
	} `json:"cs"`
}

func (r *repairStatus) left() (n uint64) {
	for _, w := range r.Repair.Work {
		n += w.Bytes
	}
	return n
}

func (c *cluster) repairStatus(ctx context.Context) (*repairStatus, error) {
	out, err := exec.CommandContext(ctx, c.varve, "-c", filepath.Join(c.data, "cluster"), "stat", "--json").Output()
	if err != nil {
		return nil, fmt.Errorf("varve stat: %w", err)
	}
	s := new(repairStatus)
	return s, json.Unmarshal(out, s)
}

// phase is a row of the table: what a guest met for a while.
type phase struct {
	name              string
	iops              float64
	readP99, writeP99 time.Duration
	rebuilt           uint64 // bytes
	took              time.Duration
}

// runRepair measures what a guest meets while a lost chunk server is rebuilt, beside before; then the same with a second server that is slow.
func runRepair(ctx context.Context, o options) (err error) {
	if _, err := exec.LookPath("fio"); err != nil {
		return fmt.Errorf("needs fio (apt-get install fio): %w", err)
	}
	o.cs = max(o.cs, repairServers)
	total, err := parseSize(o.size)
	if err != nil {
		return err
	}
	c, err := startCluster(ctx, o, 1)
	if err != nil {
		return err
	}
	var stopped []int
	defer func() {
		for _, pid := range stopped {
			_ = syscall.Kill(pid, syscall.SIGCONT)
		}
		err = c.stop(err)
	}()
	guest := o
	guest.size = guestSize
	tg := target{name: "varve", dir: c.mounts[0]}
	if _, err := fio(ctx, guest, tg, "--rw=write", "--bs=1m", "--iodepth=8", "--end_fsync=1"); err != nil {
		return err
	}
	if err := fillCold(c.mounts[0], total); err != nil {
		return err
	}
	if err := command(ctx, c.varve, "-c", filepath.Join(c.data, "cluster"), "set-config", "repair.grace=1s", "repair.grace.last=1s"); err != nil {
		return err
	}
	pid := func(n int) (int, error) { return readPID(filepath.Join(c.run(), fmt.Sprintf("cs%d.pid", n))) }
	lost, err1 := pid(1)
	slow, err2 := pid(2)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	var rows []*phase
	run := func(name string) error {
		p, err := c.guestPhase(ctx, guest, tg, name)
		if err == nil {
			rows = append(rows, p)
			fmt.Printf("%-44s %7.0f IOPS, p99 %v read, %v write; rebuilt %d MiB in %v\n", name, p.iops, p.readP99, p.writeP99, p.rebuilt>>20, p.took.Round(time.Millisecond))
		}
		return err
	}
	if err := run("before"); err != nil {
		return err
	}
	if err := syscall.Kill(lost, syscall.SIGSTOP); err != nil {
		return err
	}
	stopped = append(stopped, lost)
	err = waitFor(ctx, time.Minute, func() bool {
		s, err := c.repairStatus(ctx)
		return err == nil && s.left() > 0
	})
	if err != nil {
		return fmt.Errorf("the lost server was not given up: %w", err)
	}
	if err := run("a lost server is rebuilt"); err != nil {
		return err
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { stutter(slow, stop) })
	err = run("and a second one is slow")
	close(stop)
	wg.Wait()
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := waitFor(ctx, 10*time.Minute, func() bool {
		s, err := c.repairStatus(ctx)
		return err == nil && s.Degraded == 0 && s.Joining == 0
	}); err != nil {
		return fmt.Errorf("the repair does not come to its end: %w", err)
	}
	fmt.Printf("the rest was rebuilt in %v without guests\n", time.Since(begin).Round(100*time.Millisecond))
	if err := run("after"); err != nil {
		return err
	}
	printPhases(os.Stdout, rows)
	return c.printLost(ctx)
}

// fillCold writes files that nobody works on.
func fillCold(dir string, total int64) error {
	data := make([]byte, repairFile)
	src := rand.NewChaCha8([32]byte{7})
	for i := int64(0); i*repairFile < total; i++ {
		_, _ = src.Read(data) // never fails
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint("cold", i)), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// stutter has a process stand still for most of the time, though never for long.
func stutter(pid int, stop <-chan struct{}) {
	defer syscall.Kill(pid, syscall.SIGCONT)
	for {
		_ = syscall.Kill(pid, syscall.SIGSTOP)
		select {
		case <-stop:
			return
		case <-time.After(200 * time.Millisecond):
		}
		_ = syscall.Kill(pid, syscall.SIGCONT)
		time.Sleep(3 * time.Millisecond)
	}
}

// guestPhase has a guest work for a while and says what it met, and what repair did meanwhile.
func (c *cluster) guestPhase(ctx context.Context, o options, tg target, name string) (*phase, error) {
	p := &phase{name: name}
	var before, after uint64
	if s, err := c.repairStatus(ctx); err == nil {
		before = s.left()
	}
	begin := time.Now()
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(500 * time.Millisecond):
			}
			s, err := c.repairStatus(ctx)
			if err != nil {
				continue
			}
			if s.left() > 0 {
				p.took = time.Since(begin)
			}
		}
	})
	r, err := fio(ctx, o, tg, "--rw=randrw", "--bs=4k", "--iodepth=4", "--rate_iops="+guestRate, "--time_based", "--runtime="+fmt.Sprint(o.duration.Seconds()))
	close(done)
	wg.Wait()
	if err != nil {
		return nil, err
	}
	if s, err := c.repairStatus(ctx); err == nil {
		after = s.left()
	}
	p.rebuilt = before - min(after, before)
	j := r.Jobs[0]
	p.iops = j.Read.IOPS + j.Write.IOPS
	p.readP99, p.writeP99 = time.Duration(j.Read.Latency.Percentile["99.000000"]), time.Duration(j.Write.Latency.Percentile["99.000000"])
	return p, nil
}

func printPhases(w io.Writer, rows []*phase) {
	fmt.Fprintf(w, "\n| a guest, 4k at depth 4, %s reads and writes a second | IOPS | p99 read | p99 write | of before | rebuilt | MiB/s |\n| --- | --: | --: | --: | --: | --: | --: |\n", guestRate)
	for _, p := range rows {
		rate := "-"
		if p.took > 0 && p.rebuilt > 0 {
			rate = fmt.Sprintf("%.1f", float64(p.rebuilt)/(1<<20)/p.took.Seconds())
		}
		fmt.Fprintf(w, "| %s | %.0f | %v | %v | %.2f, %.2f | %d MiB | %s |\n", p.name, p.iops, p.readP99, p.writeP99,
			float64(p.readP99)/float64(max(rows[0].readP99, 1)), float64(p.writeP99)/float64(max(rows[0].writeP99, 1)), p.rebuilt>>20, rate)
	}
}

// printLost says which servers were given up, by the journal.
func (c *cluster) printLost(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, c.varve, "-c", filepath.Join(c.data, "cluster"), "journal", "cat", "--type", "server-lost").Output()
	if err != nil {
		return err
	}
	fmt.Printf("\ngiven up, by the journal:\n%s", out)
	return nil
}
