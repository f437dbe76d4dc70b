package perf

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"strconv"
	"strings"
	"sync"
)

// Mix says which operations on names a load does, and how often each: words with weights, such as "create:10,stat:80,delete:10", or one word
// alone. The words are create, stat, lookup, list, rename and delete.
type Mix string

// nameKinds are the kinds that a Mix may have.
var nameKinds = []opKind{opCreate, opStat, opLookup, opList, opRename, opDelete}

// weights is how often each kind is chosen.
type weights [opKinds]int

// maxWeight bounds a weight.
const maxWeight = 1_000_000

// parse returns the weights.
func (m Mix) parse() (w weights, err error) {
	for word := range strings.SplitSeq(string(m), ",") {
		name, number, given := strings.Cut(word, ":")
		n := 1
		if given {
			n, err = strconv.Atoi(number)
		}
		k := opKinds
		for _, x := range nameKinds {
			if x.String() == name {
				k = x
			}
		}
		if k == opKinds || err != nil || n < 1 || n > maxWeight || w[k] > 0 {
			return weights{}, fmt.Errorf("metadata %q: %q: want create, stat, lookup, list, rename or delete, each once, with a weight of 1 to %d such as stat:80", m, word, maxWeight)
		}
		w[k] = n
	}
	return w, nil
}

// String is a line for people.
func (w weights) String() string {
	var words []string
	sum := 0
	for _, n := range w {
		sum += n
	}
	for k, n := range w {
		if n > 0 {
			words = append(words, fmt.Sprintf("%s %.3g %%", opKind(k), 100*float64(n)/float64(sum)))
		}
	}
	return strings.Join(words, ", ")
}

// only reports whether the kind is the only one.
func (w weights) only(k opKind) bool {
	w[k] = 0
	return w == weights{}
}

// pick chooses a kind, opKinds if there is none to choose.
func (w weights) pick(rng *rand.Rand) opKind {
	sum := 0
	for _, n := range w {
		sum += n
	}
	if sum == 0 {
		return opKinds
	}
	at := rng.IntN(sum)
	for k, n := range w {
		if at -= n; at < 0 {
			return opKind(k)
		}
	}
	return opKinds // not reached: at is below the sum
}

// directory is where the names of one job are. It may be used by several goroutines at once.
type directory interface {
	create(name string) (handle uint64, err error)
	stat(e entry) error
	lookup(name string) error
	// list calls each, unless it is nil, for every name, and returns how many there are.
	list(each func(name string, handle uint64)) (int, error)
	rename(from, to string) error
	remove(name string) error
	sync() error
	// close takes the directory away if it is empty.
	close() error
}

// entry is a file of a directory. Its name is made of its number, and no number is used twice.
type entry struct {
	n      uint64
	handle uint64 // of the file at a metadata server
}

const entryPrefix = "f"

func (e entry) name() string { return entryPrefix + strconv.FormatUint(e.n, 10) }

// parseEntry returns the entry of a name, false if none of ours is so called.
func parseEntry(name string, handle uint64) (entry, bool) {
	digits, ok := strings.CutPrefix(name, entryPrefix)
	n, err := strconv.ParseUint(digits, 10, 63)
	e := entry{n, handle}
	return e, ok && err == nil && e.name() == name
}

// names are the files of a job. What an operation works on is out of the pool until it ends, so that no two meet on a file and each
// outcome is known beforehand. It is guarded by the job's mu; free of which are the functions that say so.
type names struct {
	dir    directory
	path   string // of dir, for people
	mix    weights
	limit  int // files at most
	pool   []entry
	have   int                 // files that are there or being made
	last   uint64              // the last number that was given out
	unsure map[uint64]struct{} // numbers of names of which a failed operation may or may not have left one
}

func newNames(o *Options, dir directory, path string) (*names, error) {
	mix, err := o.Metadata.parse()
	return &names{dir: dir, path: path, mix: mix, limit: o.Files, unsure: map[uint64]struct{}{}}, err
}

// choose makes o the next operation, false if there is nothing left to do.
func (s *names) choose(o op, rng *rand.Rand) (op, bool) {
	mix := s.mix
	if s.have >= s.limit {
		mix[opCreate] = 0
		if s.mix[opCreate] > 0 && mix[opDelete] > 0 { // stays at the limit, and the share of both as it is
			mix[opDelete] += s.mix[opCreate]
		}
	}
	if len(s.pool) == 0 {
		create, list := mix[opCreate], mix[opList]
		mix = weights{opCreate: create, opList: list}
		if s.mix[opList] > 0 && create == 0 && s.have == 0 && !s.mix.only(opList) {
			return o, false // an empty directory that stays so
		}
	}
	o.kind = mix.pick(rng)
	switch o.kind {
	case opKinds:
		return o, false
	case opList:
		return o, true
	case opCreate:
		s.last++
		s.have++
		o.file = entry{n: s.last}
		return o, true
	}
	i := rng.IntN(len(s.pool))
	o.file = s.pool[i]
	s.pool[i] = s.pool[len(s.pool)-1]
	s.pool = s.pool[:len(s.pool)-1]
	if o.kind == opRename {
		s.last++
		o.to = s.last
	}
	return o, true
}

// do carries an operation out; it needs no lock.
func (s *names) do(o *op) (err error) {
	switch o.kind {
	case opCreate:
		o.file.handle, err = s.dir.create(o.file.name())
	case opStat:
		err = s.dir.stat(o.file)
	case opLookup:
		err = s.dir.lookup(o.file.name())
	case opList:
		_, err = s.dir.list(nil)
	case opRename:
		err = s.dir.rename(o.file.name(), entry{n: o.to}.name())
	case opDelete:
		err = s.dir.remove(o.file.name())
	}
	return err
}

// done puts the file of an operation back. It reports whether the operation changed the directory.
func (s *names) done(o op, err error) bool {
	switch {
	case o.kind == opList:
		return false
	case o.kind == opStat || o.kind == opLookup || errors.Is(err, errTime):
		if o.kind == opCreate {
			s.have--
			return false
		}
		s.pool = append(s.pool, o.file)
		return false
	case err != nil: // nobody knows whether it was done
		s.have--
		s.unsure[o.file.n] = struct{}{}
		if o.kind == opRename {
			s.unsure[o.to] = struct{}{}
		}
		return false
	case o.kind == opDelete:
		s.have--
		return true
	case o.kind == opRename:
		o.file.n = o.to
	}
	s.pool = append(s.pool, o.file)
	return true
}

// fillers is how many files are made at once before a run.
const fillers = 16

// prepare makes the directory what the load wants: empty where it only creates, half full where it also does other things, and else full. What
// is there already is kept as far as it fits.
func (s *names) prepare(ctx context.Context, w *watch) error {
	w.step("listing %s", s.path)
	if _, err := s.dir.list(func(name string, handle uint64) {
		if e, ok := parseEntry(name, handle); ok {
			s.pool = append(s.pool, e)
			s.last = max(s.last, e.n)
		}
	}); err != nil {
		return err
	}
	var extra []entry
	want := s.limit
	switch {
	case s.mix.only(opCreate):
		extra, s.pool = s.pool, nil
		if err := inParallel(ctx, len(extra), func(i int) error { w.step("emptying %s", s.path); return s.dir.remove(extra[i].name()) }); err != nil {
			return err
		}
		want = 0
	case s.mix[opCreate] > 0:
		want = s.limit / 2
	}
	missing := make([]entry, max(want-len(s.pool), 0))
	err := inParallel(ctx, len(missing), func(i int) (err error) {
		w.step("filling %s", s.path)
		missing[i].n = s.last + 1 + uint64(i)
		missing[i].handle, err = s.dir.create(missing[i].name())
		return err
	})
	s.last += uint64(len(missing))
	s.pool = append(s.pool, missing...)
	s.have = len(s.pool)
	if err != nil || len(extra)+len(missing) == 0 {
		return err
	}
	return s.dir.sync()
}

// inParallel does f for 0 to n-1, several at a time, and returns the first error. After one it begins no more.
func inParallel(ctx context.Context, n int, f func(i int) error) error {
	var (
		mu   sync.Mutex
		next int
		bad  error
		wg   sync.WaitGroup
	)
	take := func(err error) int {
		mu.Lock()
		defer mu.Unlock()
		if bad == nil {
			bad = errors.Join(err, context.Cause(ctx))
		}
		if bad != nil || next >= n {
			return -1
		}
		next++
		return next - 1
	}
	for range min(n, fillers) {
		wg.Go(func() {
			for i := take(nil); i >= 0; {
				i = take(f(i))
			}
		})
	}
	wg.Wait()
	return bad
}

// prepareNames prepares all jobs, several at a time.
func prepareNames(ctx context.Context, jobs []*job, w *watch) error {
	return inParallel(ctx, len(jobs), func(i int) error {
		if err := jobs[i].names.prepare(ctx, w); err != nil {
			return fmt.Errorf("fill %s: %w", jobs[i].names.path, err)
		}
		return nil
	})
}

// verify compares the names that the directory has with those that were acknowledged. No operation may be under way.
func (s *names) verify(job int, r *recorder) error {
	want := make(map[uint64]bool, len(s.pool)) // true: seen
	for _, e := range s.pool {
		want[e.n] = false
	}
	fault := func(kind FaultKind, name string, n uint64, detail string) {
		r.checked(&Fault{Kind: kind, Job: job, Block: int64(n), Path: path.Join(s.path, name), Detail: detail})
	}
	if _, err := s.dir.list(func(name string, handle uint64) {
		e, ours := parseEntry(name, handle)
		seen, wanted := want[e.n]
		_, unsure := s.unsure[e.n]
		switch {
		case !ours:
		case wanted && seen:
			fault(Corrupt, name, e.n, "the name is listed twice")
		case wanted:
			want[e.n] = true
			r.checked(nil)
		case unsure:
		case e.n <= s.last:
			fault(Old, name, e.n, "the name is there, though its removal or renaming was acknowledged")
		default:
			fault(Corrupt, name, e.n, "nobody made a file of that name")
		}
	}); err != nil {
		return err
	}
	for n, seen := range want {
		if !seen {
			e := entry{n: n}
			fault(Lost, e.name(), n, "the name is missing, though it was acknowledged")
		}
	}
	return nil
}
