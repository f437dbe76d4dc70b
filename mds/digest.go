package mds

import (
	"bytes"
	"fmt"
	"sync"

	"varve/internal/id"
	"varve/mds/state"
)

// digestEvery is the number of events between two indexes whose digests servers compare.
const digestEvery = 1 << 16

// digests remembers the state's digest at every digestEvery-th index. Each is computed from a clone, beside the log; the
// leader's goes into the log as a Digest event, against which the others compare theirs.
type digests struct {
	mu   sync.Mutex
	own  map[id.Index][32]byte
	want map[id.Index][]byte
	last id.Index // of the newest own one
	said id.Index // up to which they were proposed here
	bad  error
}

// note is called with the state after each event.
func (d *digests) note(s *state.State) {
	index := s.Index()
	if index%digestEvery != 0 {
		return
	}
	c := s.Clone()
	go d.add(index, c.Digest)
}

func (d *digests) add(index id.Index, digest func() [32]byte) {
	sum := digest()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.own == nil {
		d.own = make(map[id.Index][32]byte)
	}
	d.own[index], d.last = sum, max(d.last, index)
	if want, ok := d.want[index]; ok && !bytes.Equal(want, sum[:]) {
		d.bad = differs(index, sum[:], want)
	}
	delete(d.want, index)
	for i := range d.own {
		if i+maxDigests*digestEvery <= d.last {
			delete(d.own, i)
		}
	}
}

// newest returns the newest digest computed, and whether there is one.
func (d *digests) newest() (id.Index, [32]byte, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	sum, ok := d.own[d.last]
	return d.last, sum, ok
}

// claim reports whether the digest at index is still to be proposed by this server, and notes that it is.
func (d *digests) claim(index id.Index) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if index <= d.said {
		return false
	}
	d.said = index
	return true
}

// compare checks the leader's digest. One that is not computed here yet is checked when it is, and reported with the next.
func (d *digests) compare(index id.Index, want []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.bad != nil {
		return d.bad
	}
	if own, ok := d.own[index]; ok {
		if !bytes.Equal(own[:], want) {
			return differs(index, own[:], want)
		}
		return nil
	}
	if d.want == nil {
		d.want = make(map[id.Index][]byte)
	}
	if len(d.want) >= maxDigests {
		clear(d.want)
	}
	d.want[index] = want
	return nil
}

func differs(index id.Index, got, want []byte) error {
	return fmt.Errorf("state at index %d has digest %x, the leader's %x: %w", index, got, want, errDiverged)
}
