package mds

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/planted"
	"varve/journal"
	"varve/mds/event"
	"varve/mds/state"
)

// errDiverged is why a server stops that would apply something else than the others.
var errDiverged = errors.New("metadata diverged")

// applied is what the FSM answers to whoever proposed an entry.
type applied struct {
	first id.Index // of the entry's first event
	err   error
}

// fsm applies committed entries to the state and writes them to the journal. Raft calls it from one goroutine; others
// read the state with view.
//
// After a restart Raft gives entries again whose events the journal has. While the state is behind the journal each event is
// compared with its record; from there on events are appended.
type fsm struct {
	journal *journal.Journal
	log     *slog.Logger
	fatal   func(error) // stops the server; called once at most
	roomy   func() bool // whether the disk has room for a snapshot; nil: always

	mu     sync.RWMutex
	state  *state.State
	raft   uint64        // index of the last entry applied
	change chan struct{} // closed and replaced after each entry

	replay  *journal.Reader // while the state is behind the journal
	stopped error
	halted  atomic.Pointer[error] // set from outside
	quit    <-chan struct{}       // closed when the server stops

	persisted func(time.Duration) // told how long each checkpoint took
	security  chan struct{}       // holds one if who may speak may have changed
	sums      sums                // guarded by mu
}

var _ raft.FSM = (*fsm)(nil)

func newFSM(j *journal.Journal, log *slog.Logger, fatal func(error)) *fsm {
	return &fsm{journal: j, log: log, fatal: fatal, state: state.New(), change: make(chan struct{}), security: make(chan struct{}, 1)}
}

// view runs fn with the state, which does not change meanwhile. fn must not wait for anything.
func (f *fsm) view(fn func(*state.State)) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	fn(f.state)
}

// clone returns the state as it is now, for long reads.
func (f *fsm) clone() *state.State {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state.Clone()
}

// openAsOf returns the index of an event as of which the session is open; 0 if it is not.
func (f *fsm) openAsOf(session id.SessionID) (index id.Index) {
	f.view(func(st *state.State) {
		if x, ok := st.Session(session); ok && !x.Fenced {
			index = st.Index()
		}
	})
	return index
}

func (f *fsm) index() id.Index {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.state.Index()
}

// changed returns a channel that is closed when the next entry has been applied.
func (f *fsm) changed() <-chan struct{} {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.change
}

// Apply implements raft.FSM.
func (f *fsm) Apply(l *raft.Log) any {
	if p := f.halted.Load(); p != nil {
		f.stopped = *p
	}
	if f.stopped != nil {
		return applied{err: f.stopped}
	}
	batch := new(event.Batch)
	if err := batch.UnmarshalVT(l.Data); err != nil {
		return f.stop(fmt.Errorf("raft entry %d: %w: %w", l.Index, errDiverged, err))
	}
	f.mu.Lock()
	first := f.state.Index() + 1
	misfit := f.applyAll(batch.Events)
	f.raft = l.Index
	change := f.change
	f.change = make(chan struct{})
	f.mu.Unlock()
	if misfit != nil {
		return f.stop(misfit)
	}
	if err := f.record(l.Index, batch.Events); err != nil {
		return f.stop(err)
	}
	for _, ev := range batch.Events {
		if d := ev.GetDigest(); d != nil {
			f.mu.Lock()
			err := f.sums.compare(d)
			f.mu.Unlock()
			if err != nil {
				return f.stop(err)
			}
		}
	}
	close(change)
	return applied{first: first}
}

// applyAll applies the events of one entry. One that does not fit is not in the journal then, and no server that has it goes on: they
// start again once a version runs that knows what to do, so the directory gets no marker.
func (f *fsm) applyAll(events []*event.Event) error {
	for _, ev := range events {
		if err := f.state.Try(ev); err != nil {
			if errors.Is(err, state.ErrUnknown) {
				err = fmt.Errorf("%w; upgrade this server to the version of the leader and start it again", err)
			} else {
				err = fmt.Errorf("%w; if the other servers go on, this one's state is wrong: make it anew with varve make-mds --rebuild -r DIR", err)
			}
			return err
		}
		if planted.Is(planted.ApplyTwice) && f.state.Index()%32 == 0 {
			_ = f.state.Try(ev) // one that does not fit twice is not noticed
		}
		f.sums.note(f.state.Index(), f.state.Sum(), ev)
		if ev.GetSecuritySet() != nil || ev.GetCertRevoke() != nil || ev.GetConfigSet().GetKey() == securityStage {
			f.securityChanged()
		}
	}
	return nil
}

// securityChanged does not wait.
func (f *fsm) securityChanged() {
	select {
	case f.security <- struct{}{}:
	default:
	}
}

// halt has nothing applied any more.
func (f *fsm) halt(err error) { f.halted.Store(&err) }

// sumAt returns the state's sum at an index, if it is remembered.
func (f *fsm) sumAt(index id.Index) (state.Sum, bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.sums.at(index)
}

// remembered returns the oldest index at which the sum is remembered, and the newest at which others agreed with it.
func (f *fsm) remembered() (oldest, agreed id.Index) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.sums.first, f.sums.agreed
}

// newest returns the index of the state, and that of the newest event that is not a Digest.
func (f *fsm) newest() (index, changed id.Index) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.state.Index(), f.sums.changed
}

// wait returns when the state is at the index or beyond. ctx is the request's, life the server's.
func (f *fsm) wait(ctx, life context.Context, index id.Index) error {
	for {
		changed := f.changed()
		if f.index() >= index {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return waitError(ctx, fmt.Sprintf("index %d to be applied", index))
		case <-life.Done():
			return fserr.Unavailable
		}
	}
}

func (f *fsm) stop(err error) applied {
	f.stopped = err
	f.fatal(err)
	return applied{err: err}
}

// record puts the events into the journal, or compares them with what it has.
func (f *fsm) record(entry uint64, events []*event.Event) error {
	recs := make([]journal.Record, 0, len(events))
	for _, ev := range events {
		b, err := ev.MarshalVT()
		if err != nil {
			return fmt.Errorf("encode event %d: %w", ev.Index, err)
		}
		rec := journal.Record{Index: id.Index(ev.Index), Time: ev.Time, Raft: entry, Payload: b}
		if rec.Index > f.journal.Last().Index {
			recs = append(recs, rec)
			continue
		}
		if err := f.compare(rec); err != nil {
			return err
		}
	}
	if len(recs) == 0 {
		return nil
	}
	if f.replay != nil {
		f.replay.Close()
		f.replay = nil
	}
	return f.journal.Append(recs)
}

func (f *fsm) compare(want journal.Record) error {
	if f.replay == nil {
		r, err := f.journal.Reader(want.Index)
		if err != nil {
			return fmt.Errorf("compare journal record %d: %w", want.Index, err)
		}
		f.replay = r
	}
	got, err := f.replay.Next()
	if err != nil {
		return fmt.Errorf("compare journal record %d: %w", want.Index, err)
	}
	if got.Index != want.Index || got.Raft != want.Raft || !bytes.Equal(got.Payload, want.Payload) {
		return fmt.Errorf("journal record %d of raft entry %d, %d bytes, differs from raft entry %d, event %d, %d bytes; "+
			"make this server anew with varve make-mds --rebuild -r DIR: %w",
			got.Index, got.Raft, len(got.Payload), want.Raft, want.Index, len(want.Payload), errDiverged)
	}
	return nil
}

// Snapshot format, version 1. Little-endian. What Raft keeps and sends as its snapshot.
//
//	offset size
//	 0     4    magic "VRVS"
//	 4     4    version
//	 8     8    index of the last event
//	16     8    index of its Raft entry
//	24     8    its time
//	32     16   its chain hash in the journal
//	48     -    the state, as state.Write writes it (absent at index 0)
//
// Raft's store checks the whole with a checksum. Versions: 1, first.
const (
	snapshotMagic   = "VRVS"
	snapshotVersion = 1
	snapshotHeader  = 48
)

func appendSnapshotHeader(b []byte, p journal.Position) []byte {
	le := binary.LittleEndian
	b = append(b, snapshotMagic...)
	b = le.AppendUint32(b, snapshotVersion)
	b = le.AppendUint64(b, uint64(p.Index))
	b = le.AppendUint64(b, p.Raft)
	b = le.AppendUint64(b, uint64(p.Time))
	return append(b, p.Chain[:]...)
}

func readSnapshotHeader(r io.Reader) (journal.Position, error) {
	var b [snapshotHeader]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return journal.Position{}, fmt.Errorf("snapshot header: %w", err)
	}
	le := binary.LittleEndian
	if v := le.Uint32(b[4:]); string(b[:4]) != snapshotMagic || v != snapshotVersion {
		return journal.Position{}, fmt.Errorf("snapshot header: magic %q version %d, want %q %d", b[:4], v, snapshotMagic, snapshotVersion)
	}
	return journal.Position{
		Index: id.Index(le.Uint64(b[8:])), Raft: le.Uint64(b[16:]), Time: int64(le.Uint64(b[24:])), Chain: [16]byte(b[32:48]),
	}, nil
}

// snapshot is the state at a position, being persisted while the server goes on.
type snapshot struct {
	f     *fsm
	state *state.State
	at    journal.Position
}

// Snapshot implements raft.FSM. It takes constant time.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	if p := f.halted.Load(); p != nil {
		return nil, *p
	}
	if f.stopped != nil {
		return nil, f.stopped
	}
	if f.roomy != nil && !f.roomy() { // a checkpoint that failed would end the journal
		return nil, fmt.Errorf("no snapshot while the disk is nearly full: %w", fserr.NoSpace)
	}
	c := f.clone()
	at := f.journal.Last()
	if c.Index() != at.Index {
		return nil, fmt.Errorf("no snapshot at index %d while the journal, at %d, is compared", c.Index(), at.Index)
	}
	f.journal.Cut() // so that what is before the checkpoint can be dropped
	return &snapshot{f: f, state: c, at: at}, nil
}

// Persist implements raft.FSMSnapshot. Raft truncates its log only afterwards, so what leaves it is on stable media in the
// journal.
func (s *snapshot) Persist(sink raft.SnapshotSink) error {
	start := time.Now()
	err := s.persist(sink)
	if err == nil && s.f.persisted != nil {
		s.f.persisted(time.Since(start))
	}
	if errors.Is(err, state.ErrChanged) {
		err = fmt.Errorf("%w; this server's memory is not to be trusted, make it anew with varve make-mds --rebuild -r DIR: %w", err, errDiverged)
		s.f.fatal(err)
	}
	if err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

func (s *snapshot) persist(sink raft.SnapshotSink) error {
	if err := s.f.journal.Sync(); err != nil {
		return err
	}
	if _, err := sink.Write(appendSnapshotHeader(nil, s.at)); err != nil {
		return err
	}
	if s.at.Index == 0 {
		return nil
	}
	return s.f.journal.WriteCheckpoint(s.at, func(w io.Writer) error {
		return s.state.Write(newPaced(io.MultiWriter(w, sink), s.f.quit))
	})
}

// Release implements raft.FSMSnapshot.
func (s *snapshot) Release() {}

// Restore implements raft.FSM: with the server's own snapshot at its start, or with the leader's, which the journal has not
// got to yet and then continues behind.
func (f *fsm) Restore(rc io.ReadCloser) error {
	defer rc.Close()
	at, err := readSnapshotHeader(rc)
	if err != nil {
		return err
	}
	s := state.New()
	if at.Index > 0 {
		if s, err = state.Read(rc); err != nil {
			return err
		}
	}
	if s.Index() != at.Index {
		return fmt.Errorf("snapshot of index %d holds the state at %d: %w", at.Index, s.Index(), errDiverged)
	}
	if at.Index > f.journal.Last().Index {
		if err := f.journal.WriteCheckpoint(at, s.Write); err != nil {
			return err
		}
		if err := f.journal.Reset(at); err != nil {
			return err
		}
	} else if last := f.journal.Last(); at.Index == last.Index && at.Chain != last.Chain {
		return fmt.Errorf("journal at index %d has chain %x, the snapshot %x: %w", at.Index, last.Chain, at.Chain, errDiverged)
	}
	if f.replay != nil {
		f.replay.Close()
		f.replay = nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state, f.raft = s, at.Raft
	f.sums.reset()
	f.securityChanged()
	close(f.change)
	f.change = make(chan struct{})
	return nil
}
