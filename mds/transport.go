package mds

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"varve/internal/id"
	"varve/internal/wire"
)

// streamLayer carries Raft's connections over the server's one port.
type streamLayer struct {
	*chanListener
	cluster id.Cluster
	addr    raft.ServerAddress
	network wire.Network
	keys    *keyHolder // nil: the cluster has no security
}

var _ raft.StreamLayer = (*streamLayer)(nil)

// Addr implements net.Listener: what others are told.
func (s *streamLayer) Addr() net.Addr { return raftAddr(s.addr) }

type raftAddr string

func (raftAddr) Network() string  { return "tcp" }
func (a raftAddr) String() string { return string(a) }

// Dial implements raft.StreamLayer.
func (s *streamLayer) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	return s.dial(raftMagic, addr, timeout)
}

func (s *streamLayer) dial(magic string, addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	class := wire.ClassHeartbeat // Raft's own messages are few and short, but for snapshots
	if magic == appendMagic {
		class = wire.ClassMeta
	}
	c, err := s.network.Dial(ctx, string(addr), class)
	if err != nil {
		return nil, err
	}
	if err := s.greet(c, magic, timeout); err != nil {
		c.Close()
		return nil, err
	}
	wire.Mark(c, class)
	return c, nil
}

// greet says what the connection is for, and that both ends are metadata servers.
func (s *streamLayer) greet(c net.Conn, magic string, timeout time.Duration) error {
	key := s.keys.of(c)
	shown, err := proof(key, c, proofRaft)
	if err != nil {
		return err
	}
	if err := c.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	if _, err := c.Write(slices.Concat([]byte(magic), s.cluster[:], shown)); err != nil {
		return err
	}
	if err := readProof(key, c, proofServes); err != nil {
		return err
	}
	return c.SetDeadline(time.Time{})
}

// transport is Raft's way to the other servers: its own messages for what is rare, and a stream of log entries of ours (appendstream.go).
//
// It notes when each follower was last sent something that it confirmed: such a follower neither stands for
// election nor votes until the election time-out has passed since. VerifyLeader of raft would not do: an answer that was
// under way when it was called satisfies it, however old the question is.
//
// It also keeps the promise that the log is lazy about: the leader's log may store entries before they are on its stable media
// (raftlog.Options.Lazy), though Raft counts the leader as having them. So no follower's answer reaches Raft before they are: since
// every majority of two or more voters has a follower in it, nothing is committed that is not on stable media of all that were
// counted. For the same reason a follower, which may have been a lazy leader before, does not say that it has entries before they are on its
// stable media.
type transport struct {
	*raft.NetworkTransport
	layer   *streamLayer
	streams *chanListener // connections of append streams
	log     *slog.Logger
	stable  func(index uint64) error // waits until the entries up to index are on stable media here
	ended   func()                   // told when an append stream of another server has ended; Close waits for it

	rpcs chan raft.RPC
	stop chan struct{}
	wg   sync.WaitGroup

	mu        sync.Mutex
	conns     map[net.Conn]struct{} // of append streams that others sent
	closed    bool
	term      uint64
	confirmed map[raft.ServerID]time.Duration // bootNow when it was sent, in term
}

func newTransport(layer *streamLayer, streams *chanListener, log *slog.Logger, rlog *raftLogger, stable func(uint64) error, ended func()) *transport {
	t := &transport{
		NetworkTransport: raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			Stream: layer, MaxPool: raftConns, Timeout: raftTimeout, Logger: rlog,
		}),
		layer: layer, streams: streams, log: log, stable: stable, ended: ended,
		rpcs: make(chan raft.RPC), stop: make(chan struct{}), conns: make(map[net.Conn]struct{}),
	}
	t.wg.Add(2)
	go t.forward()
	go t.accept()
	return t
}

// Close ends all connections and waits for their goroutines.
func (t *transport) Close() error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil
	}
	t.closed = true
	for c := range t.conns {
		c.Close()
	}
	t.mu.Unlock()
	close(t.stop)
	t.streams.Close()
	err := t.NetworkTransport.Close()
	t.wg.Wait()
	return err
}

// Consumer implements raft.Transport.
func (t *transport) Consumer() <-chan raft.RPC { return t.rpcs }

// forward passes on what comes over Raft's own connections.
func (t *transport) forward() {
	defer t.wg.Done()
	for {
		var rpc raft.RPC
		select {
		case rpc = <-t.NetworkTransport.Consumer():
		case <-t.stop:
			return
		}
		a, ok := rpc.Command.(*raft.AppendEntriesRequest)
		if !ok || len(a.Entries) == 0 {
			t.give(rpc)
			continue
		}
		t.wg.Add(1)
		go func() {
			defer t.wg.Done()
			resp, err := t.serveAppend(a)
			if resp == nil {
				rpc.Respond(nil, err)
				return
			}
			rpc.Respond(resp, err)
		}()
	}
}

func (t *transport) give(rpc raft.RPC) bool {
	select {
	case t.rpcs <- rpc:
		return true
	case <-t.stop:
		return false
	}
}

// serveAppend has Raft store entries, and returns its answer when that is true after a loss of power, too.
func (t *transport) serveAppend(a *raft.AppendEntriesRequest) (*raft.AppendEntriesResponse, error) {
	ch := make(chan raft.RPCResponse, 1)
	if !t.give(raft.RPC{Command: a, RespChan: ch}) {
		return nil, raft.ErrTransportShutdown
	}
	var r raft.RPCResponse
	select {
	case r = <-ch:
	case <-t.stop:
		return nil, raft.ErrTransportShutdown
	}
	resp, _ := r.Response.(*raft.AppendEntriesResponse)
	if n := len(a.Entries); r.Error == nil && resp != nil && resp.Success && n > 0 {
		if err := t.stable(a.Entries[n-1].Index); err != nil {
			return nil, err
		}
	}
	return resp, r.Error
}

// accept serves the append streams of others.
func (t *transport) accept() {
	defer t.wg.Done()
	for {
		c, err := t.streams.Accept()
		if err != nil {
			return
		}
		t.mu.Lock()
		if t.closed || len(t.conns) >= maxAppendStreams {
			t.mu.Unlock()
			c.Close()
			continue
		}
		t.conns[c] = struct{}{}
		t.wg.Add(1)
		t.mu.Unlock()
		go func() {
			defer t.wg.Done()
			err := t.serveStream(c)
			c.Close()
			t.mu.Lock()
			delete(t.conns, c)
			closed := t.closed
			t.mu.Unlock()
			if closed {
				return
			}
			t.log.Debug("append stream ended", "peer", c.RemoteAddr().String(), "err", err)
			t.ended()
		}()
	}
}

func (t *transport) serveStream(c net.Conn) error {
	r := bufio.NewReaderSize(c, 64<<10)
	var out []byte
	for {
		b, err := readMessage(r, maxAppend)
		if err != nil {
			return err
		}
		a, err := decodeRequest(b)
		if err != nil {
			return err
		}
		resp, err := t.serveAppend(a)
		if errors.Is(err, raft.ErrTransportShutdown) {
			return nil
		}
		out = appendAnswer(out, resp, err)
		if err := c.SetWriteDeadline(time.Now().Add(raftTimeout)); err != nil {
			return err
		}
		if _, err := c.Write(out); err != nil {
			return err
		}
	}
}

// AppendEntriesPipeline implements raft.Transport.
func (t *transport) AppendEntriesPipeline(to raft.ServerID, addr raft.ServerAddress) (raft.AppendPipeline, error) {
	c, err := t.layer.dial(appendMagic, addr, raftTimeout)
	if err != nil {
		return nil, err
	}
	return newAppendPipeline(t, to, c), nil
}

// AppendEntries implements raft.Transport.
func (t *transport) AppendEntries(to raft.ServerID, addr raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	sent := bootNow()
	if err := t.NetworkTransport.AppendEntries(to, addr, args, resp); err != nil {
		return err
	}
	return t.answered(to, args, resp, sent)
}

// answered notes an answer to what was sent at a time, and returns when Raft may count it.
func (t *transport) answered(from raft.ServerID, a *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse, sent time.Duration) error {
	if !resp.Success || resp.Term != a.Term {
		return nil
	}
	t.confirm(from, a.Term, sent)
	if n := len(a.Entries); n > 0 {
		return t.stable(a.Entries[n-1].Index)
	}
	return nil
}

func (t *transport) confirm(from raft.ServerID, term uint64, sent time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if term < t.term {
		return
	}
	if term > t.term || t.confirmed == nil {
		t.term, t.confirmed = term, make(map[raft.ServerID]time.Duration)
	}
	t.confirmed[from] = max(t.confirmed[from], sent)
}

// confirmedAt returns the last moment at which a majority of the voters, self included, is known to have followed self
// in term; false if there was none.
func (t *transport) confirmedAt(self raft.ServerID, term uint64, conf raft.Configuration, now time.Duration) (time.Duration, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var few [8]time.Duration
	at, voters := few[:0], 0
	for _, s := range conf.Servers {
		if s.Suffrage != raft.Voter {
			continue
		}
		voters++
		if s.ID == self {
			at = append(at, now)
		} else if c, ok := t.confirmed[s.ID]; ok && t.term == term {
			at = append(at, c)
		}
	}
	need := voters/2 + 1
	if len(at) < need {
		return 0, false
	}
	slices.SortFunc(at, func(a, b time.Duration) int { return cmp.Compare(b, a) })
	return at[need-1], true
}
