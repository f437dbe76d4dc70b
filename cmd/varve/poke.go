package main

import (
	"bufio"
	"fmt"
	"io"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

const (
	maxPokes    = 4096 // on one processor: as many entries may a queue of FUSE over io_uring have
	maxPokeLine = 1 << 20
)

// pokeCommand is the helper process of a mount that pauses (package fuse, handover.go). It reads a line of CPU:CALLS and makes so many calls of statfs(2) at once on each of these processors, which are answered
// when the mount goes on. It is a process of its own since a program that is replaced waits for all its threads.
func (a *app) pokeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "poke DIR", Hidden: true, Args: exactArgs("DIR"),
		RunE: func(_ *cobra.Command, args []string) error {
			line, err := bufio.NewReader(io.LimitReader(a.in, maxPokeLine)).ReadString('\n')
			if err == io.EOF && line == "" {
				return nil // nothing is asked for
			}
			var all sync.WaitGroup
			errs := make(chan error, 1)
			for _, word := range strings.Fields(line) {
				first, second, _ := strings.Cut(word, ":")
				cpu, err := strconv.Atoi(first)
				n, err2 := strconv.Atoi(second)
				if err != nil || err2 != nil || cpu < 0 || n < 1 || n > maxPokes {
					return usagef("%q: want CPU:CALLS, 1 to %d", word, maxPokes)
				}
				for range n {
					all.Go(func() {
						if err := pokeFrom(args[0], cpu); err != nil {
							select {
							case errs <- err:
							default:
							}
						}
					})
				}
			}
			all.Wait()
			select {
			case err := <-errs:
				return err
			default:
				return nil
			}
		},
	}
}

func pokeFrom(dir string, cpu int) error {
	runtime.LockOSThread() // and never unlocked: the thread ends with its goroutine
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("run on processor %d: %w", cpu, err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("statfs %s: %w", dir, err)
	}
	return nil
}
