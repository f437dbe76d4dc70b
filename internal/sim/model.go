package sim

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"time"
)

const (
	// cellSize is the unit in which contents are compared: what a disk writes in one piece.
	cellSize = 512
	cells    = 8 // of a block
)

// value names what one write put into its cells; 0 is what no write has touched, zeros.
type value uint64

// torn is no value: a cell that holds parts of two.
const torn = value(math.MaxUint64)

// forever is the end of an operation whose outcome nobody knows.
const forever = time.Duration(math.MaxInt64)

// fill puts v into cells from first on.
func fill(p []byte, v value, first int) {
	for at := 0; at < len(p); at += cellSize {
		h := mix(uint64(v), uint64(first+at/cellSize))
		le := binary.LittleEndian
		le.PutUint64(p[at:], uint64(v))
		for i := at + 8; i < at+cellSize; i += 8 {
			h = h*0x9e3779b97f4a7c15 + 1
			le.PutUint64(p[i:], h)
		}
	}
}

// valueOf returns what a cell holds.
func valueOf(p []byte, cell int) value {
	v := value(binary.LittleEndian.Uint64(p))
	if v == 0 {
		for _, b := range p[:cellSize] {
			if b != 0 {
				return torn
			}
		}
		return 0
	}
	var want [cellSize]byte
	fill(want[:], v, cell)
	if string(want[:]) != string(p[:cellSize]) {
		return torn
	}
	return v
}

// write is one write, as its application saw it. Times are since the run began. One that puts zeros (a punch, a truncate) has a value of its own,
// by which nobody can read it.
type write struct {
	v          value
	zero       bool
	file       int
	first, n   int // cells
	start, end time.Duration
	acked      bool
	flushed    bool // on stable media before power was lost
	who        string
	session    uint64
}

func (w *write) String() string {
	end := "never answered"
	switch {
	case w.acked:
		end = fmt.Sprintf("answered at %v", w.end)
	case w.end != forever:
		end = fmt.Sprintf("not answered, over by %v", w.end)
	}
	if w.flushed {
		end += ", flushed"
	}
	kind := "write"
	if w.zero {
		kind = "zeros"
	}
	return fmt.Sprintf("%s %d by %s at %v, %s", kind, w.v, w.who, w.start, end)
}

// read is what one read found in one cell.
type read struct {
	v          value
	start, end time.Duration
	who        string
}

// model is what was done to each cell, and decides whether one register for each explains it (linearizability: Gibbons and Korach, Testing
// Shared Memories, 1997; values are unique).
type model struct {
	writes map[value]*write
	byCell map[cellKey][]*write
	reads  map[cellKey][]read
	faults []string
	// blackout is when all lost power, 0 if nobody did.
	blackout time.Duration
}

type cellKey struct{ file, cell int }

func newModel() *model {
	return &model{writes: make(map[value]*write), byCell: make(map[cellKey][]*write), reads: make(map[cellKey][]read)}
}

// begin notes a write before it is sent.
func (m *model) begin(w *write) {
	w.end = forever
	m.writes[w.v] = w
	for c := w.first; c < w.first+w.n; c++ {
		k := cellKey{w.file, c}
		m.byCell[k] = append(m.byCell[k], w)
	}
}

// saw notes what a read of cells from first on has found.
func (m *model) saw(who string, file, first int, p []byte, start, end time.Duration) {
	for i := 0; i < len(p)/cellSize; i++ {
		v := valueOf(p[i*cellSize:], first+i)
		k := cellKey{file, first + i}
		m.reads[k] = append(m.reads[k], read{v: v, start: start, end: end, who: who})
	}
}

// at names a cell.
func (k cellKey) String() string {
	return fmt.Sprintf("file %d block %d sector %d", k.file, k.cell/cells, k.cell%cells)
}

// idle reports whether w, begun after its session was over, may have been answered without anybody being asked: zeros that were put into a hole.
func (w *write) idle(over time.Duration) bool { return w.zero && w.start > over }

// fence ends what earlier sessions left unanswered, and finds what they were granted later than the next session.
func (m *model) fence(grants []grant) {
	for _, w := range m.writes {
		for _, g := range grants {
			if g.file != w.file || g.session <= w.session || g.at >= w.end {
				continue
			}
			if w.idle(g.at) {
				w.acked = false
			}
			if w.acked && w.start > g.at {
				m.faults = append(m.faults, fmt.Sprintf("%v, of session %d, though session %d had the file for writing since %v", w, w.session, g.session, g.at))
			}
			w.end = max(g.at, w.start)
		}
	}
}

// end ends what sessions left unanswered that were fenced by hand, and finds what they were granted after that was answered: then nobody takes
// anything from them any more.
func (m *model) end(fenced map[uint64]time.Duration) {
	for _, w := range m.writes {
		at, ok := fenced[w.session]
		if !ok || at >= w.end {
			continue
		}
		if w.idle(at) {
			w.acked = false
		}
		if w.acked && w.start > at {
			m.faults = append(m.faults, fmt.Sprintf("%v, of session %d, though it was answered at %v that the session is fenced", w, w.session, at))
		}
		w.end = max(at, w.start)
	}
}

// check returns what no order of the operations explains, at most a few findings.
func (m *model) check() []string {
	keys := make([]cellKey, 0, len(m.reads))
	for k := range m.reads {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b cellKey) int { return cmp.Or(cmp.Compare(a.file, b.file), cmp.Compare(a.cell, b.cell)) })
	out := slices.Clone(m.faults)
	for _, k := range keys {
		if len(out) >= 5 {
			break
		}
		if s := m.checkCell(k); s != "" {
			out = append(out, k.String()+": "+s)
		}
	}
	return out
}

// zone is a value with the first end and the last start of what was done with it.
type zone struct {
	v              value
	end, start     time.Duration // first end, last start
	ender, starter string
}

func (m *model) checkCell(k cellKey) string {
	reads := m.reads[k]
	for i := range reads {
		r := &reads[i]
		if r.v == torn {
			return fmt.Sprintf("%s read parts of several writes at %v", r.who, r.start)
		}
		w := m.writes[r.v]
		if r.v != 0 && (w == nil || w.file != k.file || k.cell < w.first || k.cell >= w.first+w.n) {
			return fmt.Sprintf("%s read %d at %v, which was never written there", r.who, r.v, r.start)
		}
		if w != nil && r.end < w.start {
			return fmt.Sprintf("%s read %d at %v, before the %v", r.who, r.v, r.start, w)
		}
	}
	if m.blackout == 0 {
		return m.order(0, m.byCell[k], reads, -1)
	}
	return m.checkBlackout(k)
}

// checkBlackout judges what was before the loss of power and what was after it apart: the value in between may be any that was not overwritten
// by a flushed one, but only one.
func (m *model) checkBlackout(k cellKey) string {
	var before, after []*write
	var early, late []read
	for _, w := range m.byCell[k] {
		if w.start <= m.blackout {
			before = append(before, w)
		} else {
			after = append(after, w)
		}
	}
	for _, r := range m.reads[k] {
		if r.end <= m.blackout {
			early = append(early, r)
		} else {
			late = append(late, r)
		}
	}
	if s := m.order(0, before, early, -1); s != "" {
		return s
	}
	first, found := value(0), false
	for _, r := range late {
		w := m.writes[r.v]
		if w != nil && w.start > m.blackout || r.v == 0 && slices.ContainsFunc(after, func(z *write) bool { return z.zero && z.start <= r.end }) {
			continue
		}
		if found && r.v != first {
			return fmt.Sprintf("after the loss of power at %v both %s and %s were read, by %s at %v", m.blackout, m.name(first), m.name(r.v), r.who, r.start)
		}
		first, found = r.v, true
		for _, f := range before {
			if f.flushed && f.v != r.v && (w == nil || w.end < f.start) && !(r.v == 0 && zeroAfter(before, f)) {
				return fmt.Sprintf("after the loss of power at %v %s read %s at %v, though the flushed %v came later", m.blackout, r.who, m.name(r.v), r.start, f)
			}
		}
	}
	return m.order(first, after, late, m.blackout)
}

// zeroAfter reports whether zeros may have come after f, or are f.
func zeroAfter(writes []*write, f *write) bool {
	return slices.ContainsFunc(writes, func(z *write) bool { return z.zero && z.end >= f.start })
}

// whence says which value a read of zeros found: first, or that of a write of zeros. Several: ok is false without a finding, since then the read says
// little.
func (m *model) whence(first value, begin time.Duration, writes []*write, r *read) (v value, ok bool, finding string) {
	// lasts reports whether what was there by end may still be there when r begins.
	lasts := func(v value, end time.Duration) bool {
		return !slices.ContainsFunc(writes, func(w *write) bool { return w.v != v && w.acked && end < w.start && w.end < r.start })
	}
	n := 0
	if first == 0 && lasts(0, begin) {
		n++
	}
	for _, z := range writes {
		if !z.zero || z.start > r.end {
			continue
		}
		if lasts(z.v, z.end) {
			n, v = n+1, z.v
		}
	}
	if n == 0 {
		return 0, false, fmt.Sprintf("%s read zeros from %v to %v, though none were put there that were not overwritten before", r.who, r.start, r.end)
	}
	return v, n == 1, ""
}

func (m *model) name(v value) string {
	if w := m.writes[v]; w != nil {
		return w.String()
	}
	return "what was there at first"
}

// order looks for two values that each must come before the other. first was there from begin on.
func (m *model) order(first value, writes []*write, reads []read, begin time.Duration) string {
	zones := map[value]*zone{first: {v: first, end: begin, start: begin, ender: "the start", starter: "the start"}}
	for _, w := range writes {
		if w.v == first {
			continue
		}
		zones[w.v] = &zone{v: w.v, end: w.end, start: w.start, ender: w.String(), starter: w.String()}
	}
	seen := map[value]bool{first: true}
	zeros := slices.ContainsFunc(writes, func(w *write) bool { return w.zero })
	for i := range reads {
		r := reads[i]
		if r.v == 0 && zeros {
			var ok bool
			var finding string
			if r.v, ok, finding = m.whence(first, begin, writes, &r); finding != "" {
				return finding
			} else if !ok {
				continue
			}
		}
		z := zones[r.v]
		seen[r.v] = true
		if r.end < z.end {
			z.end, z.ender = r.end, fmt.Sprintf("read by %s from %v to %v", r.who, r.start, r.end)
		}
		if r.start > z.start {
			z.start, z.starter = r.start, fmt.Sprintf("read by %s from %v to %v", r.who, r.start, r.end)
		}
	}
	// A value that was never read and never acknowledged may have had no effect.
	var all []*zone
	for v, z := range zones {
		if seen[v] || z.end != forever && m.writes[v] != nil && m.writes[v].acked {
			all = append(all, z)
		}
	}
	slices.SortFunc(all, func(a, b *zone) int {
		return cmp.Or(cmp.Compare(min(a.end, a.start), min(b.end, b.start)), cmp.Compare(a.v, b.v))
	})
	// A forward zone (end < start) is a time in which the register must hold its value. Two of them must not meet, and no backward zone may lie in one.
	var last *zone
	for _, z := range all {
		if last == nil {
			if z.end < z.start {
				last = z
			}
			continue
		}
		forward := z.end < z.start
		switch {
		case forward && z.end < last.start, !forward && z.end < last.start && z.start > last.end:
			return fmt.Sprintf("%s (%s; %s) and %s (%s; %s) each come before the other", m.name(last.v), last.ender, last.starter, m.name(z.v), z.ender, z.starter)
		}
		if forward && z.start > last.start {
			last = z
		}
	}
	return ""
}
