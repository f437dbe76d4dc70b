package readcache

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/dustin/go-humanize"

	"varve/internal/chunk"
)

// counts are what happened since the cache was opened.
type counts struct {
	hits, misses         atomic.Uint64 // reads
	hitBytes, missBytes  atomic.Uint64
	filled, evicted      atomic.Uint64 // blocks, slots
	invalidated          atomic.Uint64 // blocks
	skipped, overtaken   atomic.Uint64 // fills that found no room in the queue; that were invalidated, or whose memory was changed, before they were written
	damaged, readErrors  atomic.Uint64
	streamed, streamByte atomic.Uint64 // reads that were part of a sequential stream and not admitted
}

// Streamed counts a read that the caller does not put into the cache because it is part of a sequential stream.
func (f *File) Streamed(n int) {
	if f != nil {
		f.c.streamed.Add(1)
		f.c.streamByte.Add(uint64(n))
	}
}

// Stats are what is in the cache and what happened since it was opened. Blocks are of 4 KiB.
type Stats struct {
	Dir         string      `json:"dir"`
	State       string      `json:"state"` // on, or off and why
	LimitBytes  int64       `json:"limit_bytes"`
	Slots       int         `json:"slots"`
	UsedSlots   int         `json:"used_slots"`
	CachedBytes int64       `json:"cached_bytes"` // that count
	SmallSlots  int         `json:"small_slots"`
	MainSlots   int         `json:"main_slots"`
	Hits        uint64      `json:"hits"`
	Misses      uint64      `json:"misses"`
	HitBytes    uint64      `json:"hit_bytes"`
	MissBytes   uint64      `json:"miss_bytes"`
	Streamed    uint64      `json:"streamed_reads"`
	StreamBytes uint64      `json:"streamed_bytes"`
	Filled      uint64      `json:"filled_blocks"`
	Evicted     uint64      `json:"evicted_slots"`
	Invalidated uint64      `json:"invalidated_blocks"`
	Skipped     uint64      `json:"skipped_fills"`
	Overtaken   uint64      `json:"overtaken_fills"`
	Damaged     uint64      `json:"checksum_errors"`
	ReadErrors  uint64      `json:"read_errors"`
	Witness     bool        `json:"survives_crash"` // what is open for writing outlives a crash of the process
	Files       int         `json:"files"`
	Top         []FileStats `json:"top_files"` // with the most reads
}

// FileStats are the reads of one file.
type FileStats struct {
	Inode  uint64 `json:"inode"`
	Hits   uint64 `json:"hits"`
	Misses uint64 `json:"misses"`
}

const topFiles = 20

// Stats returns what there is to say.
func (c *Cache) Stats() Stats {
	v := Stats{
		Dir: c.store.Load().dir, State: "on", Hits: c.hits.Load(), Misses: c.misses.Load(), HitBytes: c.hitBytes.Load(), MissBytes: c.missBytes.Load(),
		Streamed: c.streamed.Load(), StreamBytes: c.streamByte.Load(), Filled: c.filled.Load(), Evicted: c.evicted.Load(), Invalidated: c.invalidated.Load(),
		Skipped: c.skipped.Load(), Overtaken: c.overtaken.Load(), Damaged: c.damaged.Load(), ReadErrors: c.readErrors.Load(),
	}
	if err := c.Cause(); err != nil {
		v.State = "off: " + err.Error()
	}
	for k := range c.shards {
		s := &c.shards[k]
		s.mu.Lock()
		v.Slots += len(s.slots)
		v.SmallSlots += s.small.n
		v.MainSlots += s.main.n
		for i := range s.slots {
			v.CachedBytes += int64(bits8(s.slots[i].valid)) * chunk.BlockSize
		}
		s.mu.Unlock()
	}
	v.UsedSlots = v.SmallSlots + v.MainSlots
	v.LimitBytes = int64(v.Slots)*(slotBytes+recordBytes) + recordsStart
	c.table.Lock()
	v.Witness = c.words.kept && c.words.all[5].Load() == witnessKept
	v.Files = len(c.files.byIno)
	for _, f := range c.files.byIno {
		if h, m := f.hits.Load(), f.misses.Load(); h+m > 0 {
			v.Top = append(v.Top, FileStats{f.rec.ino, h, m})
		}
	}
	c.table.Unlock()
	slices.SortFunc(v.Top, func(a, b FileStats) int {
		return cmp.Or(cmp.Compare(b.Hits+b.Misses, a.Hits+a.Misses), cmp.Compare(a.Inode, b.Inode))
	})
	v.Top = v.Top[:min(len(v.Top), topFiles)]
	return v
}

// Ratio is the share of hits in percent.
func Ratio(hits, misses uint64) float64 {
	if hits+misses == 0 {
		return 0
	}
	return 100 * float64(hits) / float64(hits+misses)
}

// Text is for people.
func (v *Stats) Text() string {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-22s %s\n", name, fmt.Sprintf(format, args...))
	}
	size := func(n int64) string { return humanize.IBytes(uint64(n)) }
	line("directory", "%s", v.Dir)
	line("state", "%s", v.State)
	line("size", "%s of at most %s, in %d of %d slots (%d new, %d proven)", size(v.CachedBytes), size(v.LimitBytes), v.UsedSlots, v.Slots, v.SmallSlots, v.MainSlots)
	line("hits", "%d reads, %s (%.1f %% of reads)", v.Hits, size(int64(v.HitBytes)), Ratio(v.Hits, v.Misses))
	line("misses", "%d reads, %s", v.Misses, size(int64(v.MissBytes)))
	line("not admitted", "%d reads of sequential streams, %s", v.Streamed, size(int64(v.StreamBytes)))
	line("put in", "%s; %d fills skipped, %d overtaken by writes", size(int64(v.Filled)*chunk.BlockSize), v.Skipped, v.Overtaken)
	line("taken out", "%d slots evicted, %s overwritten", v.Evicted, size(int64(v.Invalidated)*chunk.BlockSize))
	line("checksum errors", "%d", v.Damaged)
	line("read errors", "%d", v.ReadErrors)
	line("files known", "%d", v.Files)
	if !v.Witness {
		line("after a crash", "files that are open for writing are read anew")
	}
	if len(v.Top) > 0 {
		b.WriteString("\ninode                  hits       misses     hit %\n")
		for _, f := range v.Top {
			fmt.Fprintf(&b, "%-22d %-10d %-10d %.1f\n", f.Inode, f.Hits, f.Misses, Ratio(f.Hits, f.Misses))
		}
	}
	return b.String()
}
