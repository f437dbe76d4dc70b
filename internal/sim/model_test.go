package sim

import (
	"strings"
	"testing"
	"time"
)

// history makes a model of one cell: w1:0-5 is write 1 from 0 to 5 s, w1:0- one that was never answered, w1:0~5 one that was not answered and is
// over at 5 s, f1:0-5 a flushed one, z1:0-5 and y1:0-5 such of zeros, r1:6-7 a read of it. b8: all lose power at 8 s.
func history(t *testing.T, s string) *model {
	t.Helper()
	m := newModel()
	number := func(s string) time.Duration {
		d, err := time.ParseDuration(s + "s")
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	for _, op := range strings.Fields(s) {
		kind, rest := op[0], op[1:]
		if kind == 'b' {
			m.blackout = number(rest)
			continue
		}
		v, span, _ := strings.Cut(rest, ":")
		from, to, acked := strings.Cut(span, "-")
		if !acked {
			from, to, _ = strings.Cut(span, "~")
		}
		val := value(number(v) / time.Second)
		switch kind {
		case 'w', 'f', 'z', 'y':
			w := &write{v: val, zero: kind == 'z' || kind == 'y', n: 1, start: number(from), who: "a"}
			m.begin(w)
			if to != "" {
				w.end = number(to)
			}
			w.acked, w.flushed = acked && to != "", kind == 'f' || kind == 'y'
		case 'r':
			m.reads[cellKey{}] = append(m.reads[cellKey{}], read{v: val, start: number(from), end: number(to), who: "a"})
		}
	}
	return m
}

func TestModel(t *testing.T) {
	for _, tt := range []struct {
		name, ops string
		bad       bool
	}{
		{"in order", "r0:0-1 w1:2-3 r1:4-5 w2:6-7 r2:8-9", false},
		{"lost write", "w1:2-3 r0:4-5", true},
		{"older value", "w1:0-1 w2:2-3 r1:4-5", true},
		{"read beside a write", "w1:0-1 w2:2-6 r2:3-4 r1:3-5", false},
		{"back again", "w1:0-1 w2:2-9 r2:3-4 r1:5-6", true},
		{"unanswered, seen late", "w1:0-1 w2:2- r1:3-4 r2:8-9", false},
		{"unanswered, never seen", "w1:0-1 w2:2- r1:3-4 r1:8-9", false},
		{"unanswered, seen and gone", "w1:0-1 w2:2- r2:3-4 r1:8-9", true},
		{"unanswered, after the fence", "w1:0-1 w2:2~5 r1:6-7 r2:8-9", true},
		{"unanswered, before the fence", "w1:0-1 w2:2~5 r2:6-7 r2:8-9", false},
		{"never written", "w1:0-1 r7:2-3", true},
		{"read before it was written", "r1:0-1 w1:2-3", true},
		{"concurrent writes, either order", "w1:0-5 w2:1-4 r1:6-7 r1:8-9", false},
		{"concurrent writes, both orders", "w1:0-5 w2:1-4 r1:6-7 r2:8-9", true},
		{"overwritten and back", "w1:0-1 w2:2-3 w3:4-5 r2:6-7", true},
		{"unflushed, lost with the power", "f1:0-1 w2:2-3 b4 r1:5-6 r1:7-8", false},
		{"unflushed, kept", "f1:0-1 w2:2-3 b4 r2:5-6 r2:7-8", false},
		{"two answers after a loss of power", "f1:0-1 w2:2-3 b4 r2:5-6 r1:7-8", true},
		{"flushed, lost with the power", "f1:0-1 f2:2-3 b4 r1:5-6", true},
		{"flushed over a write, lost to zeros", "f1:0-1 b4 r0:5-6", true},
		{"after the power came back", "f1:0-1 b4 r1:5-6 w2:7-8 r2:9-10", false},
		{"lost after the power came back", "f1:0-1 b4 w2:7-8 r1:9-10", true},
		{"zeros", "w1:0-1 z2:2-3 r0:4-5 w3:6-7 r3:8-9", false},
		{"zeros that had no effect", "w1:0-1 z2:2-3 r1:4-5", true},
		{"zeros that had no effect, unanswered", "w1:0-1 z2:2- r1:4-5", false},
		{"zeros that came and went", "w1:0-1 z2:2- r0:4-5 r1:6-7", true},
		{"zeros under a write", "w1:0-1 z2:2-6 w3:3-5 r0:7-8 r0:8-9", false},
		{"zeros before they were put", "w1:0-1 r0:2-3 z2:4-5", true},
		{"zeros after another write", "w1:0-1 z2:2-3 w3:4-5 r0:6-7", true},
		{"zeros twice", "w1:0-1 z2:2-3 w3:4-5 z4:6-7 r0:8-9 r0:9-10", false},
		{"unflushed zeros, lost with the power", "f1:0-1 z2:2-3 b4 r1:5-6 r1:7-8", false},
		{"unflushed zeros, kept", "f1:0-1 z2:2-3 b4 r0:5-6 r0:7-8", false},
		{"unflushed zeros, kept and lost", "f1:0-1 z2:2-3 b4 r0:5-6 r1:7-8", true},
		{"flushed zeros, lost with the power", "f1:0-1 y2:2-3 b4 r1:5-6", true},
		{"flushed over zeros, lost with the power", "y1:0-1 f2:2-3 b4 r0:5-6", true},
		{"flushed beside zeros", "f1:0-3 z2:2-4 b5 r0:6-7", false},
		{"zeros after the power came back", "f1:0-1 b4 z2:5-6 r0:7-8 w3:9-10 r3:11-12", false},
		{"zeros lost after the power came back", "f1:0-1 b4 r1:5-6 z2:7-8 r1:9-10", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := history(t, tt.ops).check()
			if tt.bad != (len(got) > 0) {
				t.Errorf("%s: found %q, want a finding: %v", tt.ops, got, tt.bad)
			}
		})
	}
}

func TestFill(t *testing.T) {
	b := make([]byte, 3*cellSize)
	fill(b, 7, 10)
	if v := valueOf(b[cellSize:], 11); v != 7 {
		t.Errorf("cell holds %d, want 7", v)
	}
	if v := valueOf(b[cellSize:], 12); v != torn {
		t.Errorf("a cell in another place passes for %d", v)
	}
	b[100] ^= 1
	if v := valueOf(b, 10); v != torn {
		t.Errorf("a damaged cell passes for %d", v)
	}
	clear(b)
	if v := valueOf(b, 10); v != 0 {
		t.Errorf("zeros are %d", v)
	}
	b[500] = 1
	if v := valueOf(b, 10); v != torn {
		t.Errorf("damaged zeros pass for %d", v)
	}
}
