package main

import (
	"errors"
	"math"
	"runtime"
	"runtime/debug"
	"strings"

	"varve/cs"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
)

// Slack is memory that is never touched, so that it takes up no room. The garbage collector counts it: it runs when the heap has grown by as
// much as it holds, and a small heap would have it run many times a second. With it the garbage may grow by so much more than it may without.
const (
	heapSlack   = 64 << 20  // of what runs for long
	replaySlack = 256 << 20 // of what replays a journal, and makes half a gigabyte of garbage a second
)

var slack []byte

func slackenGC(bytes int) {
	slack = make([]byte, bytes)
	runtime.KeepAlive(slack)
}

// heapGrowth is how much garbage there may be, in percent of what is in use, in a process whose memory is limited. What a chunk
// server's heap holds is small and lives long.
const heapGrowth = 400

// limitHeap keeps the Go runtime within limit bytes, or what GOMEMLIMIT says if that is less.
func limitHeap(limit int64) {
	debug.SetGCPercent(heapGrowth)
	debug.SetMemoryLimit(min(limit, debug.SetMemoryLimit(-1)))
}

// sizeFlag is a number of bytes that a person gives: 512M, 2GiB.
type sizeFlag uint64

// Set implements pflag.Value.
func (s *sizeFlag) Set(text string) error {
	// M is 2^20 here, as everywhere in this program.
	if n := len(text); n > 0 && strings.ContainsRune("kKmMgGtT", rune(text[n-1])) {
		text += "iB"
	}
	n, err := humanize.ParseBytes(text)
	if err != nil || n > math.MaxInt64 {
		return errors.New("want a size such as 512M or 2G")
	}
	*s = sizeFlag(n)
	return nil
}

func (s *sizeFlag) String() string {
	if *s == 0 {
		return ""
	}
	return humanize.IBytes(uint64(*s))
}

// Type implements pflag.Value.
func (*sizeFlag) Type() string { return "SIZE" }

// flag defines --memory.
func (s *sizeFlag) flag(cmd *cobra.Command) {
	cmd.Flags().Var(s, "memory", "what the server may take up in memory, at least "+humanize.IBytes(cs.MinMemory)+
		"; half of it holds data on its way (default: as before, at first "+humanize.IBytes(cs.DefaultMemory)+")")
}
