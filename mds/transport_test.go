package mds

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"varve/internal/disk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// heldFS is a real disk on which the syncs of a raft log can be held up.
type heldFS struct {
	disk.FS
	mu   sync.Mutex
	held chan struct{} // closed to let syncs go on
}

type heldFile struct {
	disk.File
	fs *heldFS
}

func (h *heldFS) Open(path string, flag disk.Flag) (disk.File, error) {
	f, err := h.FS.Open(path, flag)
	if err == nil && filepath.Base(filepath.Dir(path)) == "raft" {
		return heldFile{f, h}, nil
	}
	return f, err
}

func (f heldFile) Sync() error {
	f.fs.mu.Lock()
	held := f.fs.held
	f.fs.mu.Unlock()
	if held != nil {
		<-held
	}
	return f.File.Sync()
}

func (h *heldFS) hold() (release func()) {
	ch := make(chan struct{})
	h.mu.Lock()
	h.held = ch
	h.mu.Unlock()
	return sync.OnceFunc(func() {
		h.mu.Lock()
		h.held = nil
		h.mu.Unlock()
		close(ch)
	})
}

// TestNothingCommitsBeforeTheLeadersDisk holds up the leader's disk: the followers have an event on theirs, but nobody may count the
// leader, so it is neither applied nor answered until the disk goes on. With one server, whose majority is itself, too.
func TestNothingCommitsBeforeTheLeadersDisk(t *testing.T) {
	for _, n := range []int{1, 3} {
		disks := make(map[string]*heldFS)
		c := newCluster(t, n, func(o *Options) {
			if disks[o.Dir] == nil {
				disks[o.Dir] = &heldFS{FS: disk.OS{}}
			}
			o.FS = disks[o.Dir]
		})
		k := newClient(c)
		k.create("before", false)
		tries := 0
		c.eventually("a leader that leads on while its disk is held", func() bool {
			tries++
			l := c.lead()
			index := l.s.fsm.index()
			release := disks[l.s.o.Dir].hold()
			t.Cleanup(release)
			done := make(chan fserr.Code, 1)
			req := k.change(&msg.Create{Parent: 1, Name: fmt.Append(nil, "held", tries), Type: msg.FileType_REGULAR, Perm: 0o644})
			go func() {
				_, code := k.do(req)
				done <- code
			}()
			if n > 1 {
				c.eventually("a follower to store the event", func() bool {
					return l.ctx.Err() != nil || slices.ContainsFunc(c.servers, func(s *Server) bool {
						last, _ := s.raftLog.LastIndex()
						return s != l.s && last > l.s.raft.AppliedIndex()
					})
				})
			}
			var code fserr.Code
			answered := false
			select {
			case code = <-done:
				answered = true
			case <-time.After(200 * time.Millisecond):
			}
			now := l.s.fsm.index()
			led := !slices.ContainsFunc(c.servers, func(s *Server) bool { return s.raft.CurrentTerm() > l.term }) // else the next leader may have answered
			switch {
			case led && answered:
				t.Fatalf("%d servers: answered %v before the leader's disk", n, code)
			case led && now != index:
				t.Fatalf("%d servers: applied up to %d before the leader's disk, was at %d", n, now, index)
			}
			release()
			if !answered {
				code = <-done
			}
			if code != fserr.OK {
				t.Fatalf("%d servers: %v", n, code)
			}
			return led
		})
	}
}

// TestAppendStream sends entries over a stream and has their answer wait for the sender's own disk.
func TestAppendStream(t *testing.T) {
	cluster := id.Cluster{7}
	stable := make(chan uint64)
	asked := make(chan uint64, 10)
	a := streamTest(t, cluster, func(i uint64) error { asked <- i; <-stable; return nil })
	b := streamTest(t, cluster, func(uint64) error { return nil })
	go func() {
		for rpc := range b.rpcs {
			req := rpc.Command.(*raft.AppendEntriesRequest)
			if req.Term == 9 {
				rpc.Respond(nil, errors.New("no"))
				continue
			}
			rpc.Respond(&raft.AppendEntriesResponse{Term: req.Term, LastLog: req.PrevLogEntry + uint64(len(req.Entries)), Success: true}, nil)
		}
	}()
	p, err := a.AppendEntriesPipeline("b", b.layer.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	send := func(term uint64, entries ...*raft.Log) raft.AppendFuture {
		t.Helper()
		f, err := p.AppendEntries(&raft.AppendEntriesRequest{Term: term, PrevLogEntry: 4, Entries: entries}, new(raft.AppendEntriesResponse))
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	send(1, &raft.Log{Index: 5, Data: []byte("x")})
	if i := <-asked; i != 5 {
		t.Fatalf("waits for entry %d", i)
	}
	select {
	case <-p.Consumer():
		t.Fatal("answered before the entry was stable")
	case <-time.After(50 * time.Millisecond):
	}
	stable <- 5
	if f := <-p.Consumer(); f.Error() != nil || !f.Response().Success || f.Response().LastLog != 5 {
		t.Fatalf("%+v, %v", f.Response(), f.Error())
	}
	if at, ok := a.confirmedAt("a", 1, raft.Configuration{Servers: []raft.Server{{ID: "a"}, {ID: "b"}}}, bootNow()); !ok || at > bootNow() {
		t.Errorf("not confirmed: %v %v", at, ok)
	}
	send(2)
	if f := <-p.Consumer(); f.Error() != nil || !f.Response().Success {
		t.Fatalf("%+v, %v", f.Response(), f.Error())
	}
	send(9)
	if f := <-p.Consumer(); f.Error() == nil || f.Response().Success {
		t.Fatalf("%+v, %v", f.Response(), f.Error())
	}
}

func streamTest(t *testing.T, cluster id.Cluster, stable func(uint64) error) *transport {
	t.Helper()
	l, err := wire.Listen(context.Background(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := newMux(l, cluster, testLogger())
	layer := &streamLayer{chanListener: m.raft, cluster: cluster, addr: raft.ServerAddress(l.Addr().String()), network: wire.TCP{}}
	tr := newTransport(layer, m.appends, testLogger(), &raftLogger{log: testLogger()}, stable, func() {})
	go m.run()
	t.Cleanup(func() {
		m.close()
		tr.Close()
	})
	return tr
}

// FuzzAppendStream decodes any body: no panic, and what is decoded encodes to the same.
func FuzzAppendStream(f *testing.F) {
	full := appendRequest(nil, &raft.AppendEntriesRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: 3, ID: []byte("mds1"), Addr: []byte("127.0.0.1:1")}, Term: 3, PrevLogEntry: 8, PrevLogTerm: 2, LeaderCommitIndex: 7,
		Entries: []*raft.Log{{Index: 9, Term: 3, Type: raft.LogCommand, Data: []byte("data"), AppendedAt: time.Unix(5, 6)}, {Index: 10, Term: 3, Type: raft.LogNoop, Extensions: []byte("e")}},
	})
	f.Add(full[8:])
	f.Add(appendAnswer(nil, &raft.AppendEntriesResponse{Term: 1, LastLog: 2, Success: true}, nil)[8:])
	f.Add(appendAnswer(nil, nil, errors.New("why"))[8:])
	f.Fuzz(func(t *testing.T, body []byte) {
		message := endMessage(append(beginMessage(nil), body...))
		got, err := readMessage(bufio.NewReader(bytes.NewReader(message)), maxAppend)
		if err != nil || !bytes.Equal(got, body) {
			t.Fatalf("message of %x reads as %x: %v", body, got, err)
		}
		if a, err := decodeRequest(body); err == nil {
			if again := appendRequest(nil, a); !bytes.Equal(again[8:], body) {
				t.Fatalf("request %x encodes to %x", body, again[8:])
			}
		} else if !errors.Is(err, errStream) {
			t.Fatal(err)
		}
		var r raft.AppendEntriesResponse
		if err := decodeAnswer(body, &r); err == nil {
			var same raft.AppendEntriesResponse
			if err := decodeAnswer(appendAnswer(nil, &r, nil)[8:], &same); err != nil || !reflect.DeepEqual(r, same) {
				t.Fatalf("answer %+v, then %+v: %v", r, same, err)
			}
		}
	})
}

// TestDamagedMessage ends a stream whose message is not whole.
func TestDamagedMessage(t *testing.T) {
	good := appendRequest(nil, &raft.AppendEntriesRequest{Term: 1, Entries: []*raft.Log{{Index: 1, Data: []byte("abc")}}})
	for i := range good {
		b := bytes.Clone(good)
		b[i] ^= 1
		if _, err := readMessage(bufio.NewReader(bytes.NewReader(b)), 1<<20); err == nil {
			t.Errorf("byte %d flipped: read", i)
		}
		if _, err := readMessage(bufio.NewReader(bytes.NewReader(good[:i])), 1<<20); !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut at %d: %v", i, err)
		}
	}
}
