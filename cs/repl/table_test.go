package repl

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"varve/internal/id"
)

func (m move) String() string {
	if m.next != 0 {
		return m.next.String()
	}
	return m.verdict.String()
}

// documented returns the table of the package's documentation: "state message" -> the three outcomes.
func documented(t *testing.T) map[string][3]string {
	src, err := os.ReadFile("repl.go")
	if err != nil {
		t.Fatal(err)
	}
	doc, _, _ := strings.Cut(string(src), "\npackage repl")
	_, doc, ok := strings.Cut(doc, "//\tstate            message   e < c      e = c      e > c\n")
	if !ok {
		t.Fatal("the documentation has no table")
	}
	out := map[string][3]string{}
	state := ""
	for line := range strings.Lines(doc) {
		line, ok := strings.CutPrefix(strings.TrimRight(line, "\n"), "//\t")
		if !ok {
			break
		}
		if s := strings.TrimSpace(line[:17]); s != "" {
			state = s
		}
		var cells [3]string
		rest := line[17:]
		kind, rest, _ := strings.Cut(rest, " ")
		rest = strings.ReplaceAll(strings.ReplaceAll(rest, "not ready", "not_ready"), "do, note", "do,_note")
		for i, w := range strings.Fields(rest) {
			if i < len(cells) {
				cells[i] = strings.ReplaceAll(w, "_", " ")
			}
		}
		out[state+" "+kind] = cells
	}
	return out
}

// TestTableIsWhatTheDocumentationSays: every state and message has an outcome for each epoch, and the documentation tells it.
func TestTableIsWhatTheDocumentationSays(t *testing.T) {
	doc := documented(t)
	n := 0
	for st := State(1); st <= states; st++ {
		for k := Read; k <= lastKind; k++ {
			n++
			name := fmt.Sprintf("%v %v", st, k)
			got := doc[name]
			for i, m := range table[st][k] {
				if (m.verdict == 0) == (m.next == 0) || m.verdict == Persist {
					t.Errorf("%s: outcome %d is %+v, want a verdict or a state", name, i, m)
				}
				if got[i] != m.String() {
					t.Errorf("%s: the table has %v, the documentation %q", name, m, got[i])
				}
			}
		}
	}
	if len(doc) != n {
		t.Errorf("the documentation has %d rows, want %d", len(doc), n)
	}
}

// lap is a replica and what a test knows of how it came to be.
type lap struct {
	State State
	Epoch id.Epoch
	// complete: it has all that was acknowledged at its epoch, as far as messages tell: it is new, adopted from there on without a gap, or
	// was promoted or accepted.
	complete bool
	copied   bool // since its last join
}

// TestEveryHistory goes through every sequence of messages and restarts at epochs 0 to 4, from every state that can be reached, and
// checks each step against what the states mean.
func TestEveryHistory(t *testing.T) {
	const epochs = 5
	start := lap{State: Serving, Epoch: 1, complete: true}
	seen := map[lap]bool{start: true}
	steps := 0
	check := func(from, to lap) lap {
		if to.Epoch < from.Epoch {
			t.Fatalf("%+v becomes %+v: the epoch went down", from, to)
		}
		if to.State == Serving && !to.complete {
			t.Fatalf("%+v becomes %+v: it serves without having been copied, promoted or accepted", from, to)
		}
		return to
	}
	for queue := []lap{start}; len(queue) > 0; queue = queue[1:] {
		at := queue[0]
		reach := func(next lap) {
			if next = check(at, next); !seen[next] {
				seen[next] = true
				queue = append(queue, next)
			}
		}
		r := Replica{Epoch: at.Epoch, State: at.State}
		if at.State == Tracking {
			r.Fresh = new(Fresh)
		}
		for _, active := range []bool{false, true} {
			next := Restart(r.Record(), active)
			if again := Restart(next.Record(), active); again.State != next.State && next.State != Serving {
				t.Fatalf("%v restarts as %v, then as %v", at, next.State, again.State)
			}
			l := at
			l.State, l.Epoch = next.State, next.Epoch
			l.complete = at.complete || at.copied && next.State == Unclean
			if next.State == Lost {
				l.copied, l.complete = false, false
			}
			reach(l)
		}
		for k := Read; k <= lastKind; k++ {
			for e := id.Epoch(0); e < epochs; e++ {
				steps++
				in := Input{k, e}
				next, v := r.Step(in)
				own := k == Accept && e == 0
				switch {
				case v != Persist && next != r:
					t.Fatalf("%v at %+v: %v, yet it changed", in, at, v)
				case (v == Do || v == DoNote || v == Persist) && e < at.Epoch && !own:
					t.Fatalf("%v at %+v: a lower epoch does something: %v", in, at, v)
				case k == Read && v == Do && (at.State != Serving || e != at.Epoch):
					t.Fatalf("%v at %+v is answered", in, at)
				case v == DoNote && at.State != Tracking, at.State == Tracking && (k == Write || k == Punch) && v == Do:
					t.Fatalf("%v at %+v: %v: what is written while joining must be noted, and only then", in, at, v)
				case k == Repair && v == Do && at.State != Tracking:
					t.Fatalf("%v at %+v: a block of a rebuild is let in", in, at)
				case v == Persist && next.State == Serving && at.State != Serving && k != Promote && k != Accept:
					t.Fatalf("%v at %+v makes it serve", in, at)
				case k == Accept && v == Persist && at.State != Unclean && at.State != Serving:
					t.Fatalf("%v at %+v: accepted", in, at)
				}
				if v != Persist {
					continue
				}
				if _, again := next.Step(in); again != Do && again != DoNote && !(k == Read && next.State != Serving) {
					t.Fatalf("%v at %+v: %v after it was persisted", in, at, again)
				}
				if back := Restart(next.Record(), false); !next.State.Joining() && (back.State != next.State || back.Epoch != next.Epoch) {
					t.Fatalf("%v at %+v: %v is not what a restart finds: %v", in, at, next.State, back.State)
				}
				l := lap{State: next.State, Epoch: next.Epoch, complete: at.complete, copied: at.copied}
				switch {
				case k == Join:
					l.copied, l.complete = false, false
				case k == Complete:
					l.copied = true
				case k == Promote, k == Accept:
					// The metadata server's word; what it must know is in ARCHITECTURE.md, section 7.
					l.complete = true
				}
				reach(l)
			}
		}
	}
	t.Logf("%d replicas, %d steps", len(seen), steps)
	if len(seen) < 20 {
		t.Errorf("only %d replicas were reached", len(seen))
	}
	for st := State(1); st <= states; st++ {
		found := false
		for l := range seen {
			found = found || l.State == st
		}
		if !found {
			t.Errorf("%v cannot be reached", st)
		}
	}
}
