package perf

import (
	"cmp"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"time"

	"varve/internal/capture"
	"varve/perf/trace"

	"golang.org/x/sys/unix"
)

// plan is a trace as it is to be replayed. It is made once and not changed afterwards.
type plan struct {
	steps   []step // in the order in which they began
	files   []replayFile
	handles []handlePlan
	length  time.Duration // from when the first began to when the last one ended
	leftOut []LeftOut
}

// step is one operation of a replay.
type step struct {
	x      *capture.Record
	kind   opKind
	at     time.Duration // since the first began
	file   int
	handle int // -1: none
	// needs is how many operations of the handle, in the order in which they ended, had ended before this one began; rank is its own place
	// in that order.
	needs int
	rank  int
}

// handlePlan is one open of a file.
type handlePlan struct {
	file  int
	steps int
	write bool
	opens bool // its open is among the steps
	flags int  // of open(2)
}

// replayFile is a file that the replay needs.
type replayFile struct {
	name string   // below the target, clean and local
	size int64    // that it has to have at first
	end  int64    // of all that is read and written
	read []span64 // what is read of it and was not written by the replay before
}

type span64 struct{ from, to int64 }

// LeftOut is operations that a replay does not do, and why.
type LeftOut struct {
	Op    string `json:"op"`
	Count int    `json:"count"`
	Why   string `json:"why"`
}

// replayKinds are the kinds that are replayed.
var replayKinds = map[capture.Kind]opKind{
	capture.Read: opRead, capture.Write: opWrite, capture.Fsync: opSync, capture.Open: opOpen, capture.Create: opOpen, capture.Release: opClose,
	capture.Truncate: opTruncate, capture.Fallocate: opAllocate, capture.Trim: opAllocate,
}

// maxTransfer bounds the bytes of one read or write of a replay.
const maxTransfer = 64 << 20

// newPlan plans the replay of a trace. handles says whether the target has them: else opens, closes and changes of size are left out.
func newPlan(t *trace.Trace, handles bool, rename func(string) string) (*plan, error) {
	p := &plan{}
	left := map[LeftOut]int{}
	files, opens := map[uint64]int{}, map[uint64]int{}
	names := map[uint64]capture.File{}
	for _, f := range t.Files {
		names[f.Inode] = f
	}
	for i := range t.Ops {
		x := &t.Ops[i]
		kind, ok := replayKinds[x.Kind]
		why := ""
		switch {
		case !ok:
			why = "is not of a file's data"
		case x.Errno != 0:
			why = "failed when it was recorded"
		case kind > opSync && !handles:
			why = "means nothing to this target"
		case kind != opTruncate && x.Handle == 0:
			why = "has no handle"
		case (kind == opRead || kind == opWrite) && (x.Size == 0 || x.Size > maxTransfer):
			why = fmt.Sprintf("is of no byte, or of more than %d MiB", maxTransfer>>20)
		case !t.Timed && (kind == opOpen || kind == opClose):
			why = "of a trace that does not say when it had ended; files are open all the time"
		}
		if why != "" {
			left[LeftOut{Op: x.Kind.String(), Why: why}]++
			continue
		}
		f, ok := files[x.Inode]
		if !ok {
			f = len(p.files)
			files[x.Inode] = f
			entry := names[x.Inode]
			name := entry.Path
			if name == "" {
				name = fmt.Sprintf("inode-%d", x.Inode)
			}
			name = path.Clean(rename(path.Clean(name)))
			if !filepath.IsLocal(name) || name == "." {
				return nil, fmt.Errorf("file %q would not be below the target", name)
			}
			size := entry.Size
			if x.Kind == capture.Create || x.Kind == capture.Open && x.Arg&unix.O_TRUNC != 0 {
				size = 0
			}
			p.files = append(p.files, replayFile{name: name, size: size})
		}
		s := step{x: x, kind: kind, at: x.Begin, file: f, handle: -1}
		if x.Handle != 0 {
			h, ok := opens[x.Handle]
			if !ok || p.handles[h].file != f {
				h = len(p.handles)
				opens[x.Handle] = h
				p.handles = append(p.handles, handlePlan{file: f})
			}
			s.handle = h
			p.handles[h].note(&s)
		}
		p.steps = append(p.steps, s)
	}
	for l, n := range left {
		l.Count = n
		p.leftOut = append(p.leftOut, l)
	}
	slices.SortFunc(p.leftOut, func(a, b LeftOut) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Op, b.Op), cmp.Compare(a.Why, b.Why))
	})
	if len(p.steps) == 0 {
		return nil, fmt.Errorf("none of its %d operations can be replayed here", len(t.Ops))
	}
	if err := p.distinct(); err != nil {
		return nil, err
	}
	first := p.steps[0].at
	for i := range p.steps {
		s := &p.steps[i]
		s.at -= first
		p.length = max(p.length, s.at+s.x.Took)
	}
	p.order(t.Timed)
	p.contents()
	return p, nil
}

// note takes what a step says of its handle.
func (h *handlePlan) note(s *step) {
	switch s.kind {
	case opOpen:
		h.opens = h.opens || h.steps == 0
		h.flags = int(s.x.Arg) & (unix.O_ACCMODE | unix.O_TRUNC | unix.O_SYNC | unix.O_DSYNC)
		h.write = h.write || h.flags&unix.O_ACCMODE != unix.O_RDONLY
	case opWrite, opTruncate, opAllocate:
		h.write = true
	}
	h.steps++
}

// distinct refuses two files of one name: a file and another that took its place are one, since neither is removed.
func (p *plan) distinct() error {
	seen := map[string]bool{}
	for i := range p.files {
		f := &p.files[i]
		for n := 2; seen[f.name]; n++ {
			if name := fmt.Sprintf("%s.%d", f.name, n); !seen[name] {
				f.name = name
			}
		}
		seen[f.name] = true
	}
	for _, f := range p.files {
		for dir := path.Dir(f.name); dir != "."; dir = path.Dir(dir) {
			if seen[dir] {
				return fmt.Errorf("%q is a file and the directory of %q: give one another name with --map", dir, f.name)
			}
		}
	}
	return nil
}

// order finds out which operation had ended before which began. Of a trace that does not say when operations ended, only a flush waits for
// what began before it.
func (p *plan) order(timed bool) {
	of := make([][]int, len(p.handles))
	for i, s := range p.steps {
		if s.handle >= 0 {
			of[s.handle] = append(of[s.handle], i)
		}
	}
	for _, steps := range of {
		if !timed {
			for n, i := range steps {
				if p.steps[i].rank = n; p.steps[i].kind == opSync {
					p.steps[i].needs = n
				} else if n > 0 {
					p.steps[i].needs = p.steps[steps[n-1]].needs
				}
				if n > 0 && p.steps[steps[n-1]].kind == opSync {
					p.steps[i].needs = n
				}
			}
			continue
		}
		// Where one ends when the other begins, the order in which they began decides: so none waits for itself or for one after it.
		ends := slices.Clone(steps)
		until := make(map[int]time.Duration, len(steps))
		for n, i := range steps {
			s := &p.steps[i]
			until[i] = s.at + s.x.Took
			// What comes next on a handle knows it from its open, or has the number that a close has given back: they had ended by then, though
			// it may be recorded a little later that they had.
			if (s.kind == opOpen || s.kind == opClose) && n+1 < len(steps) {
				until[i] = min(until[i], p.steps[steps[n+1]].at)
			}
		}
		end := func(i int) time.Duration { return until[i] }
		slices.SortFunc(ends, func(a, b int) int { return cmp.Or(cmp.Compare(end(a), end(b)), cmp.Compare(a, b)) })
		for n, i := range ends {
			p.steps[i].rank = n
		}
		for _, i := range steps {
			at := p.steps[i].at
			p.steps[i].needs = sort.Search(len(ends), func(n int) bool {
				j := ends[n]
				return end(j) > at || end(j) == at && j >= i
			})
		}
	}
}

// fillUnit is in what pieces files are filled.
const fillUnit = 1 << 20

// contents finds out how large files must be, and what of them must have contents for reads to be reads.
func (p *plan) contents() {
	written := make([]map[int64]bool, len(p.files)) // units
	wanted := make([]map[int64]bool, len(p.files))
	for i := range p.steps {
		s := &p.steps[i]
		if s.kind != opRead && s.kind != opWrite {
			continue
		}
		f := &p.files[s.file]
		if written[s.file] == nil {
			written[s.file], wanted[s.file] = map[int64]bool{}, map[int64]bool{}
		}
		got := s.x.Offset + int64(s.x.Done)
		f.end = max(f.end, f.size, s.x.Offset+s.x.Size)
		for u := s.x.Offset / fillUnit; u*fillUnit < got; u++ {
			switch {
			case s.kind == opWrite && (u*fillUnit < s.x.Offset || (u+1)*fillUnit > got):
				// a part of it: what else is read of it must be there
			case s.kind == opWrite:
				written[s.file][u] = true
			case !written[s.file][u]:
				wanted[s.file][u] = true
			}
		}
		if s.kind == opRead && f.size < got && len(written[s.file]) == 0 {
			f.size = got // it was not known, or it has shrunk since
		}
	}
	for i := range p.files {
		f := &p.files[i]
		for u := range wanted[i] {
			if from := u * fillUnit; from < f.size {
				f.read = append(f.read, span64{from, min(from+fillUnit, f.size)})
			}
		}
		slices.SortFunc(f.read, func(a, b span64) int { return cmp.Compare(a.from, b.from) })
	}
}

// renamer returns what a list of OLD=NEW does to paths: OLD is a path of the trace or a directory of it.
func renamer(pairs []string) (func(string) string, error) {
	type pair struct{ old, new string }
	var list []pair
	for _, p := range pairs {
		from, to, ok := strings.Cut(p, "=")
		if !ok || from == "" || to == "" {
			return nil, fmt.Errorf("%q: want OLD=NEW, the path of a captured file or directory and the one to use instead, below the target", p)
		}
		list = append(list, pair{strings.TrimPrefix(path.Clean(from), "/"), strings.TrimPrefix(path.Clean(to), "/")})
	}
	return func(name string) string {
		for _, p := range list {
			if name == p.old {
				return p.new
			}
			if rest, ok := strings.CutPrefix(name, p.old+"/"); ok {
				return path.Join(p.new, rest)
			}
		}
		return path.Join(replayDir, name)
	}, nil
}

// replayDir is the directory below the target in which files are that have no other place by --map.
const replayDir = "varve-replay"
