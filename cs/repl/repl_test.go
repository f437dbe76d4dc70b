package repl

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"pgregory.net/rapid"

	"varve/internal/chunk"
	"varve/internal/id"
)

// inState returns a replica of epoch 5.
func inState(t testing.TB, name string) Replica {
	switch name {
	case "serving":
		return New(5)
	case "tracking":
		r, _ := New(4).Step(Input{Join, 5})
		return r
	case "lost":
		return Restart(Record{5, Tracking}, true)
	case "unclean":
		return Restart(Record{5, Serving}, true)
	case "copied":
		r, _ := inState(t, "tracking").Step(Input{Complete, 5})
		return r
	}
	t.Fatalf("no state %q", name)
	return Replica{}
}

// TestReplica runs testdata. "table STATE" prints what each message at epochs 4, 5 and 6 does to a
// replica of epoch 5; "run" starts a replica and gives it one message a line.
func TestReplica(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			var out strings.Builder
			switch d.Cmd {
			case "table":
				for k := Read; k <= lastKind; k++ {
					fmt.Fprintf(&out, "%-8v", k)
					for e := id.Epoch(4); e <= 6; e++ {
						next, v := inState(t, d.CmdArgs[0].Key).Step(Input{k, e})
						cell := v.String()
						if v == Persist {
							cell = fmt.Sprintf("%v at %v", next.State, next.Epoch)
						}
						fmt.Fprintf(&out, "%-19s", cell)
					}
					out.WriteString("\n")
				}
			case "run":
				r := New(1)
				for line := range strings.Lines(d.Input) {
					r = runLine(t, r, strings.TrimSpace(line), &out)
				}
			default:
				d.Fatalf(t, "no command %q", d.Cmd)
			}
			s := strings.ReplaceAll(out.String(), " \n", "\n")
			for strings.Contains(s, " \n") {
				s = strings.ReplaceAll(s, " \n", "\n")
			}
			return s
		})
	})
}

func runLine(t *testing.T, r Replica, line string, out *strings.Builder) Replica {
	var word string
	var e, from, to uint64
	fmt.Sscan(line, &word, &e, &from, &to)
	switch word {
	case "restart":
		r = Restart(r.Record(), strings.Contains(line, "active"))
		fmt.Fprintf(out, "%s: %v at %v\n", line, r.State, r.Epoch)
		return r
	case "spans":
		fmt.Fprintf(out, "%s: whole %t, part %v\n", line, r.Fresh.Whole(uint32(e)), r.Fresh.Spans(uint32(e)))
		return r
	}
	for k := Read; k <= lastKind; k++ {
		if k.String() != word {
			continue
		}
		next, v := r.Step(Input{k, id.Epoch(e)})
		fmt.Fprintf(out, "%s: %v", line, v)
		if v == Persist {
			fmt.Fprintf(out, " %v at %v", next.State, next.Epoch)
			r = next
			if _, again := r.Step(Input{k, id.Epoch(e)}); again != Do && again != DoNote {
				t.Errorf("%s: %v after it was persisted", line, again)
			}
		}
		if v == DoNote && to > from {
			r.Fresh.Note(uint32(from), uint32(to))
		}
		out.WriteString("\n")
		return r
	}
	t.Fatalf("no message %q", line)
	return r
}

// Epochs never decrease, what is not serving is never read, a lower epoch never does anything, what is
// to be persisted is let in afterwards and is the same after a clean restart, but for what is joining.
func TestProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := New(id.Epoch(rapid.Uint64Range(0, 3).Draw(t, "epoch")))
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			if rapid.IntRange(0, 9).Draw(t, "restart") == 0 {
				was := r
				r = Restart(r.Record(), rapid.Bool().Draw(t, "active"))
				if was.State == Copied && r.State != Unclean || was.State != Copied && was.State.Joining() && r.State != Lost || was.State == Unclean && r.State != Unclean || r.Epoch != was.Epoch {
					t.Fatalf("restart makes %v at %v of %v at %v", r.State, r.Epoch, was.State, was.Epoch)
				}
				continue
			}
			in := Input{Kind(rapid.IntRange(int(Read), int(lastKind)).Draw(t, "kind")), id.Epoch(rapid.Uint64Range(0, 12).Draw(t, "at"))}
			next, v := r.Step(in)
			switch {
			case next.Epoch < r.Epoch:
				t.Fatalf("%v lowers the epoch from %v to %v", in, r.Epoch, next.Epoch)
			case v != Persist && next != r:
				t.Fatalf("%v: %v, yet the replica changed", in, v)
			case in.Kind == Read && v == Do && r.State != Serving:
				t.Fatalf("%v is done while %v", in, r.State)
			case (in.Kind != Accept || in.Epoch != 0) && in.Epoch < r.Epoch && (v == Do || v == DoNote || v == Persist):
				t.Fatalf("%v: %v at epoch %v", in, v, r.Epoch)
			case (v == DoNote) != (r.State == Tracking && in.Epoch == r.Epoch && (in.Kind == Write || in.Kind == Punch)):
				t.Fatalf("%v: %v while %v at %v", in, v, r.State, r.Epoch)
			}
			if v == Persist {
				r = next
				if _, v := r.Step(in); v != Do && v != DoNote {
					t.Fatalf("%v: %v after it was persisted", in, v)
				}
			}
		}
	})
}

// Fresh agrees with a map of bytes over a few blocks.
func TestFresh(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const blocks = 3
		var f Fresh
		var model [blocks * chunk.BlockSize]bool
		for range rapid.IntRange(1, 60).Draw(t, "notes") {
			from := rapid.Uint32Range(0, blocks*chunk.BlockSize-1).Draw(t, "from")
			to := rapid.Uint32Range(from+1, blocks*chunk.BlockSize).Draw(t, "to")
			if rapid.Bool().Draw(t, "short") {
				to = min(to, from+50)
			}
			if !f.Room(from, to) {
				continue
			}
			f.Note(from, to)
			for i := from; i < to; i++ {
				model[i] = true
			}
		}
		for b := range uint32(blocks) {
			var got [chunk.BlockSize]bool
			for i := range got {
				got[i] = f.Whole(b)
			}
			spans := f.Spans(b)
			if len(spans) > MaxSpans || f.Whole(b) && spans != nil {
				t.Fatalf("block %d: whole %t, %d spans", b, f.Whole(b), len(spans))
			}
			for _, p := range spans {
				for i := p.From; i < p.To; i++ {
					got[i] = true
				}
			}
			if got != [chunk.BlockSize]bool(model[b*chunk.BlockSize:]) {
				t.Fatalf("block %d: fresh bytes differ from the model: %v", b, spans)
			}
		}
	})
}

func TestFreshIsBounded(t *testing.T) {
	var f Fresh
	for b := range uint32(MaxPartial) {
		f.Note(b*chunk.BlockSize, b*chunk.BlockSize+1)
	}
	at := uint32(MaxPartial * chunk.BlockSize)
	if f.Room(at, at+1) || !f.Room(at, at+chunk.BlockSize) || !f.Room(5, 6) {
		t.Fatal("want no room for one more partial block, but for whole and for known ones")
	}
	var g Fresh
	for i := range uint32(MaxSpans) {
		g.Note(2*i, 2*i+1)
	}
	if g.Room(1000, 1001) || !g.Room(0, chunk.BlockSize) {
		t.Fatal("want no room for one more span, but for the whole block")
	}
}

func TestStepDoesNotAllocate(t *testing.T) {
	r := New(3)
	if n := testing.AllocsPerRun(100, func() { r.Step(Input{Write, 3}) }); n > 0 {
		t.Fatalf("%v allocations", n)
	}
}
