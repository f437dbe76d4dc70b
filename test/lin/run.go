package lin

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/anishathalye/porcupine"

	"varve/internal/client"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

const (
	keysAtOnce  = 6               // directories in use
	keyTime     = 2 * time.Second // after which others are taken
	maxKnown    = 32              // inodes of a directory that workers choose from
	xattrName   = "user.r"
	lookupLimit = 20 * time.Second // of one question to one server
	shownOps    = 40               // of a history that cannot be explained
	checkLimit  = 3 * time.Minute  // of one directory's history
	firstLimit  = time.Minute      // for the first directories to be made
)

// directory is one key.
type directory struct {
	key   int
	ino   id.Ino
	mu    sync.Mutex
	known []int64 // inodes that an answer has named
}

func (d *directory) learn(ino int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, k := range d.known {
		if k == ino {
			return
		}
	}
	if len(d.known) < maxKnown {
		d.known = append(d.known, ino)
	} else {
		d.known[rand.IntN(maxKnown)] = ino
	}
}

// pick returns one of them, newer ones more often.
func (d *directory) pick() (int64, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.known) == 0 {
		return 0, false
	}
	n := len(d.known)
	return d.known[max(rand.IntN(n), rand.IntN(n))], true
}

// Run is one workload and its history.
type Run struct {
	Setup   *client.Client   // makes the directories
	Clients []*client.Client // do the operations
	Workers int              // of each client
	Servers []string         // also asked one by one, without a session, whoever leads
	Cluster id.Cluster
	Pause   time.Duration // of a worker after an operation, at most; else those that caches answer are most of the history

	start   time.Time
	ids     atomic.Int64
	who     atomic.Int64
	keys    atomic.Pointer[[]*directory]
	mu      sync.Mutex
	history []porcupine.Operation
	unknown int
	direct  int // answers by Servers
}

// Do runs the workload for d.
func (r *Run) Do(ctx context.Context, d time.Duration) error {
	r.start = time.Now()
	for err := r.newKeys(ctx, 0); err != nil; err = r.newKeys(ctx, 0) {
		if ctx.Err() != nil || time.Since(r.start) > firstLimit {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() {
		for round := 1; ; round++ {
			select {
			case <-ctx.Done():
				return
			case <-time.After(keyTime):
			}
			_ = r.newKeys(ctx, round) // while there is no leader the old ones have to do
		}
	})
	for _, c := range r.Clients {
		for range r.Workers {
			wg.Go(func() {
				for who := r.who.Add(1); ctx.Err() == nil; {
					if r.one(c, who) {
						who = r.who.Add(1)
					}
					if r.Pause > 0 {
						time.Sleep(rand.N(r.Pause))
					}
				}
			})
		}
	}
	for _, addr := range r.Servers {
		for range 2 {
			wg.Go(func() { r.lookups(ctx, addr) })
		}
	}
	wg.Wait()
	return nil
}

func (r *Run) newKeys(ctx context.Context, round int) error {
	keys := make([]*directory, keysAtOnce)
	begun := time.Now() // those of an attempt that failed may be there
	for i := range keys {
		key := round*keysAtOnce + i
		attr, _, err := r.Setup.Create(ctx, &msg.Cred{}, &msg.Create{
			Parent: 1, Name: fmt.Appendf(nil, "%d-%d", begun.UnixNano(), key), Type: msg.FileType_DIRECTORY, Perm: 0o755, Exclusive: true})
		if err != nil {
			return fmt.Errorf("make a directory: %w", err)
		}
		keys[i] = &directory{key: key, ino: id.Ino(attr.Ino)}
	}
	r.keys.Store(&keys)
	return nil
}

func (r *Run) directory() *directory {
	keys := *r.keys.Load()
	return keys[rand.IntN(len(keys))]
}

func name(i int) []byte { return []byte{byte('a' + i)} }

// note adds an operation to the history. What is not known has no end.
func (r *Run) note(who int64, in *input, call time.Duration, out *output) {
	op := porcupine.Operation{ClientId: int(who), Input: in, Call: int64(call), Output: out, Return: int64(time.Since(r.start))}
	if out.unknown {
		op.Return = math.MaxInt64
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.history = append(r.history, op)
	if out.unknown {
		r.unknown++
	}
}

// decided reports whether an operation that failed so has certainly no effect, now or later.
func decided(code fserr.Code) bool {
	switch code {
	case fserr.OK, fserr.NotExist, fserr.Exist, fserr.NotDir, fserr.IsDir, fserr.NotEmpty, fserr.Perm, fserr.NoAttr, fserr.Stale:
		return true
	}
	return false
}

// one does one random operation. It reports true when the outcome is not known: it may still be under way.
func (r *Run) one(c *client.Client, who int64) (pending bool) {
	d := r.directory()
	in := &input{kind: opKind(rand.IntN(int(opKinds))), key: d.key, id: r.ids.Add(1), a: rand.IntN(maxNames), b: rand.IntN(maxNames),
		dir: rand.IntN(4) == 0, mode: renameMode(rand.IntN(3)), value: 0o100 + uint32(rand.IntN(0o600))}
	switch in.kind {
	case opLink, opGetAttr, opChmod, opSetXattr, opGetXattr:
		ino, ok := d.pick()
		if !ok {
			in.kind = opMake
		}
		in.ino = ino
	}
	call := time.Since(r.start)
	out, err := do(c, d, in)
	out.code = fserr.Of(err)
	reads := in.kind == opStat || in.kind == opGetAttr || in.kind == opGetXattr || in.kind == opList
	// Stale is a missing inode; after a long wait it may also be a lost session.
	if !decided(out.code) || out.code == fserr.Stale && (in.ino == 0 || time.Since(r.start)-call > time.Second) {
		if reads {
			return false // says nothing
		}
		out.unknown = true
	}
	r.note(who, in, call, out)
	if out.ino > 0 {
		d.learn(out.ino)
	}
	for _, ino := range out.list {
		if ino > 0 {
			d.learn(ino)
		}
	}
	return out.unknown
}

func do(c *client.Client, d *directory, in *input) (*output, error) {
	ctx, cred, out := context.Background(), &msg.Cred{Checked: true}, &output{} // checked: lookups may be answered from the cache
	attr := func(a *msg.Attr, err error) error {
		if err == nil {
			out.ino, out.dir, out.perm, out.nlink = int64(a.Ino), a.Type == msg.FileType_DIRECTORY, a.Perm, a.Nlink
		}
		return err
	}
	ino := id.Ino(in.ino)
	switch in.kind {
	case opMake:
		typ := msg.FileType_REGULAR
		if in.dir {
			typ = msg.FileType_DIRECTORY
		}
		a, _, err := c.Create(ctx, cred, &msg.Create{Parent: uint64(d.ino), Name: name(in.a), Type: typ, Perm: in.value, Exclusive: true})
		return out, attr(a, err)
	case opRemove:
		return out, c.Remove(ctx, cred, d.ino, name(in.a), in.dir)
	case opRename:
		return out, c.Rename(ctx, cred, &msg.Rename{Parent: uint64(d.ino), Name: name(in.a), NewParent: uint64(d.ino), NewName: name(in.b),
			NoReplace: in.mode == noReplace, Exchange: in.mode == exchange})
	case opLink:
		_, err := c.Link(ctx, cred, ino, d.ino, name(in.a))
		return out, err
	case opStat:
		return out, attr(c.Lookup(ctx, cred, d.ino, name(in.a)))
	case opGetAttr:
		return out, attr(c.GetAttr(ctx, ino))
	case opChmod:
		perm := in.value
		_, err := c.SetAttr(ctx, cred, &msg.SetAttr{Ino: uint64(ino), Perm: &perm})
		return out, err
	case opSetXattr:
		return out, c.SetXattr(ctx, cred, &msg.SetXattr{Ino: uint64(ino), Name: []byte(xattrName), Value: binary.LittleEndian.AppendUint32(nil, in.value)})
	case opGetXattr:
		v, err := c.GetXattr(ctx, cred, ino, []byte(xattrName))
		if err == nil {
			out.value = binary.LittleEndian.Uint32(v)
		}
		return out, err
	}
	reply, err := c.ReadDir(ctx, cred, d.ino, 0, 2*maxNames, in.dir)
	if err == nil && !reply.End {
		return out, fserr.Busy // a part of the directory, and the next part would be of another moment
	}
	if err == nil {
		for _, e := range reply.Entries {
			out.list[e.Name[0]-'a'] = int64(e.Ino)
		}
	}
	return out, err
}

// lookups asks one server, without a session, for names. Questions that it gets while it stands still it answers when it
// goes on: the answer must be what was true at some moment in between.
func (r *Run) lookups(ctx context.Context, addr string) {
	for ctx.Err() == nil {
		dctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		conn, _, err := wire.Dial(dctx, addr, &msg.Hello{Cluster: r.Cluster[:], Role: msg.Hello_ADMIN}, nil, wire.Options{})
		cancel()
		for err == nil && ctx.Err() == nil {
			err = r.lookup(ctx, conn)
			time.Sleep(2 * time.Millisecond)
		}
		if conn != nil {
			conn.Close()
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (r *Run) lookup(ctx context.Context, conn *wire.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, lookupLimit)
	defer cancel()
	d := r.directory()
	in := &input{kind: opStat, key: d.key, id: r.ids.Add(1), a: rand.IntN(maxNames)}
	call := time.Since(r.start)
	reply := new(msg.MetaReply)
	code, err := conn.CallMessage(ctx, wire.Meta, wire.ClassMeta, &msg.MetaRequest{Cred: &msg.Cred{}, Op: &msg.MetaRequest_Lookup{
		Lookup: &msg.Lookup{Parent: uint64(d.ino), Name: name(in.a)}}}, reply)
	if err != nil || code != fserr.OK && code != fserr.NotExist {
		if err == nil && code == fserr.NotLeader {
			time.Sleep(20 * time.Millisecond)
		}
		return err
	}
	out := &output{code: code}
	if a := reply.Attr; code == fserr.OK {
		out.ino, out.dir, out.perm, out.nlink = int64(a.Ino), a.Type == msg.FileType_DIRECTORY, a.Perm, a.Nlink
	}
	r.note(r.who.Add(1), in, call, out)
	r.mu.Lock()
	r.direct++
	r.mu.Unlock()
	return nil
}

// Summary says what was done.
func (r *Run) Summary() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return fmt.Sprintf("%d operations, %d of them with unknown outcome, %d answered by a server asked alone", len(r.history), r.unknown, r.direct)
}

// Says reports whether the history has so many operations, most with an outcome, so many of them answered by Servers, and a read that can be made a stale one.
func (r *Run) Says(ops, direct int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.history) < ops || r.unknown > len(r.history)/2 || r.direct < direct {
		return false
	}
	_, ok := stale(r.history)
	return ok
}

// Check returns nil if the history can be explained. Else, a file in dir shows what cannot.
func (r *Run) Check(dir string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return check(r.history, dir)
}

func check(history []porcupine.Operation, dir string) error {
	one := model
	one.Partition = nil
	for _, part := range model.Partition(history) {
		switch porcupine.CheckOperationsTimeout(one, part, checkLimit) {
		case porcupine.Ok:
			continue
		case porcupine.Unknown:
			return fmt.Errorf("directory %d: %d operations could not be checked in %v", part[0].Input.(*input).key, len(part), checkLimit)
		}
		part = shortest(one, part)
		_, info := porcupine.CheckOperationsVerbose(one, part, checkLimit)
		path := filepath.Join(dir, fmt.Sprintf("history-%d.html", part[0].Input.(*input).key))
		err := os.MkdirAll(dir, 0o755)
		if err == nil {
			err = porcupine.VisualizePath(one, info, path)
		}
		if err == nil {
			err = os.WriteFile(strings.TrimSuffix(path, ".html")+".txt", []byte(tail(part, len(part))), 0o644)
		}
		if err != nil {
			return fmt.Errorf("a history of %d operations is not linearizable, and cannot be shown: %w", len(part), err)
		}
		return fmt.Errorf("a history of %d operations is not linearizable; see %s; its end:\n%s", len(part), path, tail(part, shownOps))
	}
	return nil
}

// shortest returns the operations that had ended when the first of them had that cannot be explained.
func shortest(m porcupine.Model, history []porcupine.Operation) []porcupine.Operation {
	byEnd := slices.SortedFunc(slices.Values(history), func(a, b porcupine.Operation) int { return cmp.Compare(a.Return, b.Return) })
	// What was under way at the end may have taken effect: it counts, without its outcome.
	until := func(n int) []porcupine.Operation {
		part := slices.Clone(byEnd[:n])
		for _, op := range byEnd[n:] {
			if op.Call <= byEnd[n-1].Return {
				out := *op.Output.(*output)
				out.unknown = true
				op.Output, op.Return = &out, math.MaxInt64
				part = append(part, op)
			}
		}
		return part
	}
	n := 1 + sort.Search(len(byEnd)-1, func(i int) bool {
		return porcupine.CheckOperationsTimeout(m, until(i+1), checkLimit) == porcupine.Illegal
	})
	return until(n)
}

// tail returns the last n operations of a history in the order in which they were called.
func tail(history []porcupine.Operation, n int) string {
	history = slices.SortedFunc(slices.Values(history), func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
	var b strings.Builder
	for _, op := range history[max(0, len(history)-n):] {
		end := "-"
		if op.Return != math.MaxInt64 {
			end = time.Duration(op.Return).String()
		}
		fmt.Fprintf(&b, "%v to %s, client %d: %s\n", time.Duration(op.Call), end, op.ClientId, describe(op.Input.(*input), op.Output.(*output)))
	}
	return b.String()
}

// stale returns a real history in which one read answers what was so before the last change that it followed, and reports whether it
// found such a read.
func stale(history []porcupine.Operation) ([]porcupine.Operation, bool) {
	last := make(map[[2]int]porcupine.Operation) // the newest stat of each name
	for i, op := range history {
		in, out := op.Input.(*input), op.Output.(*output)
		if in.kind != opStat || out.unknown {
			continue
		}
		name := [2]int{in.key, in.a}
		before, ok := last[name]
		if old := before.Output; ok && before.Return < op.Call && out.ino != 0 && old.(*output).ino != out.ino && old.(*output).ino != 0 {
			// Inodes are never used twice: what the name was before another inode had it may come back by a rename only.
			again := *old.(*output)
			again.perm ^= 0o7000 // a mode that nobody ever set
			changed := append([]porcupine.Operation(nil), history...)
			changed[i].Output = &again
			return changed, true
		}
		last[name] = op
	}
	return nil, false
}
