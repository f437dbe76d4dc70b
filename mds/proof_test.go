package mds

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"varve/internal/pki"
)

// exporting is a connection whose keying material is known.
type exporting struct {
	net.Conn
	material string
	sent     bytes.Reader
}

func (e *exporting) Export(string) ([]byte, error) { return []byte(e.material), nil }
func (e *exporting) Read(b []byte) (int, error)    { return e.sent.Read(b) }

// TestProof: a proof counts with its key, on its connection, and for what it was made.
func TestProof(t *testing.T) {
	key, other := pki.ClusterKey{1}, pki.ClusterKey{2}
	made, err := proof(&key, &exporting{material: "one"}, proofRaft)
	if err != nil || len(made) != proofSize {
		t.Fatal(made, err)
	}
	moved, err := proof(&key, &exporting{material: "one"}, proofMove)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name     string
		key      *pki.ClusterKey
		material string
		sent     []byte
		good     bool
	}{
		{"as it was made", &key, "one", made, true},
		{"no key, no proof", nil, "one", nil, true},
		{"another key", &other, "one", made, false},
		{"another connection", &key, "two", made, false},
		{"for something else", &key, "one", moved, false},
		{"half of it", &key, "one", made[:16], false},
		{"nothing", &key, "one", nil, false},
	} {
		e := &exporting{material: c.material}
		e.sent.Reset(c.sent)
		if err := readProof(c.key, e, proofRaft); err == nil != c.good {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if a, b := net.Pipe(); true {
		defer a.Close()
		defer b.Close()
		if _, err := proof(&key, a, proofRaft); err == nil {
			t.Error("a proof on a connection that has no keying material")
		}
	}
}

// keyed is one end of a pipe whose keying material is known.
type keyed struct {
	net.Conn
	material string
}

func (k *keyed) Export(string) ([]byte, error) { return []byte(k.material), nil }

// TestRaftAnswersWithProof: who is spoken to by Raft shows the cluster key too, and what it was shown itself does not do.
func TestRaftAnswersWithProof(t *testing.T) {
	key, other := pki.ClusterKey{1}, pki.ClusterKey{2}
	for _, c := range []struct {
		name   string
		answer func(shown []byte) []byte
		good   bool
	}{
		{"a metadata server", func([]byte) []byte { return proofBy(&key, []byte("one"), proofServes) }, true},
		{"what it was shown", func(shown []byte) []byte { return shown }, false},
		{"without the key", func([]byte) []byte { return proofBy(&other, []byte("one"), proofServes) }, false},
		{"from another connection", func([]byte) []byte { return proofBy(&key, []byte("two"), proofServes) }, false},
		{"nothing", func([]byte) []byte { return nil }, false},
	} {
		a, b := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer b.Close()
			got := make([]byte, len(raftMagic)+16+proofSize)
			if _, err := io.ReadFull(b, got); err != nil {
				t.Error(err)
				return
			}
			_, _ = b.Write(c.answer(got[len(raftMagic)+16:]))
			if c.good {
				_, _ = io.Copy(io.Discard, b) // until the other end closes: a pipe that is closed here has no deadline to take back there
			}
		}()
		keys := new(keyHolder)
		keys.key.Store(&key)
		layer := &streamLayer{keys: keys}
		if err := layer.greet(&keyed{a, "one"}, raftMagic, 20*time.Second); err == nil != c.good {
			t.Errorf("%s: %v", c.name, err)
		}
		a.Close()
		<-done
	}
}
