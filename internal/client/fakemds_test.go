package client

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/ledger"
	"varve/internal/pki"
	"varve/internal/secure"
	"varve/internal/secure/securetest"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/test/ports"
)

var testCluster = id.Cluster{1, 2, 3}

// world is a cluster in memory: one metadata state behind several addresses, and chunk servers, all over loopback.
type world struct {
	t       *testing.T
	host    string
	servers []*fakeMDS
	cs      map[id.ServerID]*fakeCS
	seal    *seal // nil: connections are as they are

	mu       sync.Mutex
	leader   int // which of servers
	index    uint64
	next     uint64
	sessions map[uint64]*fakeSession
	nonces   map[string]uint64
	inodes   map[uint64]*fakeInode
	names    map[string]uint64
	norm     int
	min      int
	log      []string                                      // operations carried out, by name
	before   func(req *msg.MetaRequest) (fserr.Code, bool) // answers instead, if it says so
	loseNext int                                           // so many changes are carried out without an answer
	locks    map[uint64]uint64                             // inode -> owner
	tree     *tree                                         // directories, with leases of metadata
	cacheMs  uint32
	renewMs  uint32
	delay    func(req *msg.MetaRequest) // called before the answer to what was carried out
	deaf     bool                       // renewals are answered late
	silent   []uint32                   // chunk servers that renewals call silent
	tokens   tokens
	ended    []uint64          // sessions of dead clients that others have ended
	ca       *securetest.CA    // if set: the cluster is secured
	serials  map[string]string // of the certificates of nodes
	signer   *pki.Signer
	key      pki.CapabilityKey // that members are told of
}

type fakeSession struct {
	conn    *wire.Conn
	replies map[uint64]*msg.MetaReply
	codes   map[uint64]fserr.Code
}

type fakeInode struct {
	grant    sync.Mutex // one Open at a time
	op       sync.Mutex // one truncate, drop or grant at a time; not held while a lease is called back
	attr     *msg.Attr
	chunks   map[uint32]*msg.Chunk
	holders  map[uint64]msg.Want
	leases   map[uint64]uint64
	version  uint64
	writable uint64 // index of the grant that let somebody write last
}

type fakeMDS struct {
	w    *world
	n    int
	addr string
	l    net.Listener
	srv  *wire.Server
}

func newWorld(t *testing.T, metas, chunkServers, norm, min int) *world {
	return newWorldAt(t, "127.0.0.1", metas, chunkServers, norm, min)
}

// newWorldAt is newWorld at another address of this host.
func newWorldAt(t *testing.T, host string, metas, chunkServers, norm, min int) *world {
	return newWorldOf(t, host, nil, metas, chunkServers, norm, min)
}

// newWorldOf is newWorldAt with an authority: each server is a node, named as the server.
func newWorldOf(t *testing.T, host string, ca *securetest.CA, metas, chunkServers, norm, min int) *world {
	w := &world{t: t, host: host, ca: ca, cs: map[id.ServerID]*fakeCS{}, sessions: map[uint64]*fakeSession{}, nonces: map[string]uint64{},
		inodes: map[uint64]*fakeInode{}, names: map[string]uint64{}, norm: norm, min: min, next: 100, renewMs: 50, locks: map[uint64]uint64{}}
	if ca == nil {
		w.seal = newSeal(t)
	} else {
		var err error
		if w.signer, err = pki.NewSigner(testCluster, 1); err != nil {
			t.Fatal(err)
		}
		w.key = w.signer.Key()
	}
	for i := range metas {
		m := &fakeMDS{w: w, n: i}
		m.start()
		w.servers = append(w.servers, m)
	}
	for i := range chunkServers {
		cs := &fakeCS{w: w, id: id.ServerID(i + 1), chunks: map[id.ChunkID]*fakeChunk{}}
		cs.start()
		w.cs[cs.id] = cs
	}
	t.Cleanup(func() {
		for _, m := range w.servers {
			m.stop()
		}
		for _, cs := range w.cs {
			cs.stop()
		}
	})
	return w
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func (m *fakeMDS) start() {
	addr := m.addr
	if addr == "" {
		addr = ports.HoldAt(m.w.t, m.w.host)
	}
	m.l = m.w.listen(fmt.Sprint("mds", m.n), addr)
	m.addr = m.l.Addr().String()
	m.srv = &wire.Server{Logger: quiet(), Accept: func(c *wire.Conn, h *msg.Hello) (wire.Handler, *msg.HelloReply, fserr.Code) {
		if len(h.Cluster) != 0 && id.Cluster(h.Cluster) != testCluster {
			return nil, nil, fserr.WrongCluster
		}
		return m, &msg.HelloReply{Cluster: testCluster[:], Proof: wire.MetaProof(c, m.w.signs())}, fserr.OK
	}}
	go m.srv.Serve(m.l)
}

func (m *fakeMDS) stop() {
	m.l.Close()
	m.srv.Close()
}

func (w *world) signs() *pki.Signer {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.signer
}

// listen listens as a node.
func (w *world) listen(node, addr string) net.Listener {
	l := listenAgain(w.t, addr)
	if w.ca == nil {
		return l
	}
	creds := w.ca.Node(w.t, node)
	w.mu.Lock()
	if w.serials == nil {
		w.serials = map[string]string{}
	}
	w.serials[node] = creds.Identity().Serial
	w.mu.Unlock()
	return secure.New(secure.Options{Credentials: creds, Logger: quiet()}).Wrap(l)
}

func listenAgain(t *testing.T, addr string) net.Listener {
	for range 100 {
		l, err := wire.Listen(context.Background(), addr)
		if err == nil {
			return l
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("listen on %s", addr)
	return nil
}

func (m *fakeMDS) Serve(ctx context.Context, c *wire.Conn, f *wire.Frame) {
	w := m.w
	w.mu.Lock()
	isLeader, leaderAddr := w.leader == m.n, w.servers[w.leader].addr
	var addrs []string
	for _, s := range w.servers {
		addrs = append(addrs, s.addr)
	}
	renewMs := w.renewMs
	w.mu.Unlock()
	if f.Type == wire.Members {
		r := &msg.MembersReply{Leader: leaderAddr, Addrs: addrs}
		c.ReplyMessage(f, fserr.OK, r)
		return
	}
	if f.Type == wire.Trust && w.ca != nil {
		c.ReplyMessage(f, fserr.OK, w.ca.Told(1, []pki.CapabilityKey{w.key}))
		return
	}
	if !isLeader {
		c.ReplyMessage(f, fserr.NotLeader, &msg.MetaReply{Leader: leaderAddr})
		return
	}
	switch f.Type {
	case wire.OpenSession:
		req := new(msg.OpenSession)
		req.UnmarshalVT(f.Body)
		key := hex.EncodeToString(req.Nonce)
		w.mu.Lock()
		s := w.nonces[key]
		if s == 0 {
			w.next++
			s = w.next
			w.nonces[key] = s
			w.sessions[s] = &fakeSession{replies: map[uint64]*msg.MetaReply{}, codes: map[uint64]fserr.Code{}}
		}
		w.mu.Unlock()
		c.ReplyMessage(f, fserr.OK, &msg.OpenSessionReply{Session: s, LeaseMs: 10000, RenewMs: renewMs})
	case wire.RenewSession:
		req := new(msg.RenewSession)
		req.UnmarshalVT(f.Body)
		w.mu.Lock()
		s := w.sessions[req.Session]
		if s != nil {
			s.conn = c
		}
		w.mu.Unlock()
		if s == nil {
			c.ReplyMessage(f, fserr.NoSession, nil)
			return
		}
		w.mu.Lock()
		cacheMs, deaf, silent, index := w.cacheMs, w.deaf, w.silent, w.index
		w.mu.Unlock()
		for n := 0; deaf && n < 250; n++ {
			time.Sleep(10 * time.Millisecond)
			w.mu.Lock()
			deaf = w.deaf
			w.mu.Unlock()
		}
		c.ReplyMessage(f, fserr.OK, &msg.RenewSessionReply{LeaseMs: 10000, CacheMs: cacheMs, Silent: silent, Index: index, Capability: []byte(w.tokens.given(req.Capability))})
	case wire.CloseSession:
		req := new(msg.CloseSession)
		req.UnmarshalVT(f.Body)
		if len(req.Secret) > 0 {
			w.mu.Lock()
			req.Session = w.nonces[hex.EncodeToString(ledger.Nonce(req.Secret))]
			w.ended = append(w.ended, req.Session)
			w.mu.Unlock()
		}
		w.expire(req.Session)
		c.ReplyMessage(f, fserr.OK, &msg.Empty{})
	case wire.Status:
		c.ReplyMessage(f, fserr.OK, &msg.StatusReply{Name: "fake"})
	case wire.Meta:
		w.meta(c, f)
	default:
		c.Reply(f, fserr.NotSupported, nil, nil)
	}
}

// expire forgets a session and what it holds, and fences it.
func (w *world) expire(s uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.sessions, s)
	for _, in := range w.inodes {
		delete(in.holders, s)
	}
	for _, cs := range w.cs {
		cs.mu.Lock()
		cs.fenced = append(cs.fenced, s)
		cs.mu.Unlock()
	}
}

func (w *world) meta(c *wire.Conn, f *wire.Frame) {
	req := new(msg.MetaRequest)
	if req.UnmarshalVT(f.Body) != nil {
		c.Reply(f, fserr.Protocol, nil, nil)
		return
	}
	w.mu.Lock()
	before := w.before
	s := w.sessions[req.Session]
	if s == nil {
		w.mu.Unlock()
		c.Reply(f, fserr.NoSession, nil, nil)
		return
	}
	s.conn = c
	if r, ok := s.replies[req.Seq]; ok && req.Seq > 0 {
		code := s.codes[req.Seq]
		w.mu.Unlock()
		c.ReplyMessage(f, code, r)
		return
	}
	w.mu.Unlock()
	if before != nil {
		if code, ok := before(req); ok {
			c.ReplyMessage(f, code, &msg.MetaReply{})
			return
		}
	}
	reply := new(msg.MetaReply)
	code := w.carryOut(req, reply)
	w.mu.Lock()
	if reply.Index == 0 {
		reply.Index = w.index
	}
	delay := w.delay
	lose := false
	if req.Seq > 0 && code == fserr.OK {
		s.replies[req.Seq], s.codes[req.Seq] = reply, code
		if w.loseNext > 0 {
			w.loseNext--
			lose = true
		}
	}
	w.mu.Unlock()
	if delay != nil {
		delay(req)
	}
	if lose {
		c.Close()
		return
	}
	c.ReplyMessage(f, code, reply)
}

func (w *world) count(name string) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range w.log {
		if l == name {
			n++
		}
	}
	return n
}

func (w *world) setBefore(f func(req *msg.MetaRequest) (fserr.Code, bool)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.before = f
}

func (w *world) inode(ino uint64) *fakeInode {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.inodes[ino]
}

// call sends a callback to a session and waits for the answer.
func (w *world) call(session uint64, cb *msg.Callback) *msg.CallbackReply {
	r := new(msg.CallbackReply)
	for range 100 {
		w.mu.Lock()
		s := w.sessions[session]
		if s == nil {
			w.mu.Unlock()
			return r
		}
		conn := s.conn
		w.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		_, err := conn.CallMessage(ctx, wire.Callback, wire.ClassMeta, cb, r)
		cancel()
		if err == nil {
			return r
		}
		time.Sleep(10 * time.Millisecond)
	}
	w.t.Errorf("callback %v was not answered", cb)
	return r
}

func modeOf(in *fakeInode) msg.Mode {
	writers := 0
	for _, h := range in.holders {
		if h == msg.Want_WANT_WRITE {
			writers++
		}
	}
	switch {
	case writers == 0:
		return msg.Mode_SHARED_READ
	case len(in.holders) == 1:
		return msg.Mode_EXCLUSIVE_WRITE
	}
	return msg.Mode_SHARED_WRITE
}

func (w *world) holders(in *fakeInode, but uint64) []uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []uint64
	for s := range in.holders {
		if s != but {
			all = append(all, s)
		}
	}
	slices.Sort(all)
	return all
}

// open grants a lease after it has called others back.
func (w *world) open(session uint64, in *fakeInode, want msg.Want) *msg.OpenReply {
	in.grant.Lock()
	defer in.grant.Unlock()
	others := w.holders(in, session)
	w.mu.Lock()
	held := in.holders[session]
	was := modeOf(in)
	in.holders[session] = max(held, want)
	mode := modeOf(in)
	in.holders[session] = held
	if held == 0 {
		delete(in.holders, session)
	}
	w.mu.Unlock()
	if mode != was || held == 0 && was == msg.Mode_EXCLUSIVE_WRITE {
		for _, o := range others {
			w.mu.Lock()
			lease := in.leases[o]
			w.mu.Unlock()
			r := w.call(o, &msg.Callback{Kind: msg.Callback_LEASE, Ino: in.attr.Ino, Lease: lease, Mode: mode})
			w.mu.Lock()
			if r.HasAttr {
				in.attr.Size, in.attr.Mtime = max(in.attr.Size, r.Size), r.Mtime
			}
			in.holders[o] = r.Keep
			if r.Keep == 0 {
				delete(in.holders, o)
			}
			w.mu.Unlock()
		}
	}
	in.op.Lock()
	defer in.op.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.index++
	before := in.writable
	if held < want && want == msg.Want_WANT_WRITE {
		in.writable = w.index
	}
	in.holders[session] = max(held, want)
	in.leases[session] = w.index
	return &msg.OpenReply{Mode: modeOf(in), Lease: w.index, Layout: w.layout(in, 0, 64), Writable: in.writable, WritableBefore: before}
}

func (w *world) layout(in *fakeInode, first, count uint32) *msg.LayoutReply {
	r := &msg.LayoutReply{First: first, Count: count, Version: in.version, Min: uint32(w.min), Norm: uint32(w.norm)}
	for i := first; i < first+count; i++ {
		if ch := in.chunks[i]; ch != nil {
			cp := &msg.Chunk{Index: ch.Index, Id: ch.Id, Epoch: ch.Epoch, Lost: ch.Lost}
			for _, rep := range ch.Replicas {
				cp.Replicas = append(cp.Replicas, &msg.Replica{Server: rep.Server, Joining: rep.Joining, Addr: rep.Addr})
			}
			r.Chunks = append(r.Chunks, cp)
		}
	}
	return r
}

func (w *world) attr(in *fakeInode) *msg.Attr {
	a := in.attr
	return &msg.Attr{Ino: a.Ino, Type: a.Type, Perm: a.Perm, Nlink: a.Nlink, Size: a.Size, Mtime: a.Mtime}
}

func (w *world) callOthers(in *fakeInode, session uint64, cb *msg.Callback) {
	for _, o := range w.holders(in, session) {
		cb.Ino = in.attr.Ino
		w.call(o, cb)
	}
}

// carryOut does an operation.
func (w *world) carryOut(req *msg.MetaRequest, reply *msg.MetaReply) fserr.Code {
	note := func(name string) {
		w.mu.Lock()
		w.log = append(w.log, name)
		w.index++
		w.mu.Unlock()
	}
	answer := func(in *fakeInode) fserr.Code {
		w.mu.Lock()
		reply.Attr = w.attr(in)
		w.mu.Unlock()
		return fserr.OK
	}
	if w.tree != nil {
		if code, ok := w.tree.carryOut(req, reply); ok {
			return code
		}
	}
	switch op := req.Op.(type) {
	case *msg.MetaRequest_Lookup:
		w.mu.Lock()
		in := w.inodes[w.names[string(op.Lookup.Name)]]
		w.mu.Unlock()
		if in == nil {
			return fserr.NotExist
		}
		return answer(in)
	case *msg.MetaRequest_GetAttr:
		note("getattr")
		in := w.inode(op.GetAttr.Ino)
		if in == nil {
			return fserr.NotExist
		}
		if o := w.holders(in, req.Session); len(o) == 1 {
			if r := w.call(o[0], &msg.Callback{Kind: msg.Callback_ATTR, Ino: in.attr.Ino}); r.HasAttr {
				w.mu.Lock()
				in.attr.Size, in.attr.Mtime = max(in.attr.Size, r.Size), r.Mtime
				w.mu.Unlock()
			}
		}
		return answer(in)
	case *msg.MetaRequest_Create:
		note("create")
		w.mu.Lock()
		if w.names[string(op.Create.Name)] != 0 {
			w.mu.Unlock()
			return fserr.Exist
		}
		w.next++
		in := &fakeInode{attr: &msg.Attr{Ino: w.next, Type: msg.FileType_REGULAR, Nlink: 1}, chunks: map[uint32]*msg.Chunk{},
			holders: map[uint64]msg.Want{}, leases: map[uint64]uint64{}}
		w.inodes[w.next], w.names[string(op.Create.Name)] = in, w.next
		w.mu.Unlock()
		if op.Create.Open {
			reply.Result = &msg.MetaReply_Open{Open: w.open(req.Session, in, msg.Want_WANT_WRITE)}
		}
		return answer(in)
	case *msg.MetaRequest_Remove:
		note("remove")
		w.mu.Lock()
		in := w.inodes[w.names[string(op.Remove.Name)]]
		if in == nil {
			w.mu.Unlock()
			return fserr.NotExist
		}
		delete(w.names, string(op.Remove.Name))
		in.attr.Nlink--
		w.mu.Unlock()
		return answer(in)
	case *msg.MetaRequest_Open:
		note("open")
		in := w.inode(op.Open.Ino)
		if in == nil {
			return fserr.NotExist
		}
		reply.Result = &msg.MetaReply_Open{Open: w.open(req.Session, in, op.Open.Want)}
		return answer(in)
	case *msg.MetaRequest_Release:
		note("release")
		in := w.inode(op.Release.Ino)
		if in == nil {
			return fserr.NotExist
		}
		w.mu.Lock()
		delete(in.holders, req.Session)
		w.mu.Unlock()
	case *msg.MetaRequest_SetAttr:
		return w.setAttr(req.Session, op.SetAttr, reply, note, answer)
	case *msg.MetaRequest_PunchDone:
		note("punchdone")
	case *msg.MetaRequest_GetLayout:
		note("getlayout")
		in := w.inode(op.GetLayout.Ino)
		if in == nil {
			return fserr.NotExist
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		reply.Result = &msg.MetaReply_Layout{Layout: w.layout(in, op.GetLayout.First, op.GetLayout.Count)}
	case *msg.MetaRequest_AllocChunk:
		note("alloc")
		in := w.inode(op.AllocChunk.Ino)
		if in == nil {
			return fserr.NotExist
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		for i := op.AllocChunk.First; i < op.AllocChunk.First+op.AllocChunk.Count; i++ {
			w.allocate(in, i)
		}
		reply.Result = &msg.MetaReply_Layout{Layout: w.layout(in, op.AllocChunk.First, op.AllocChunk.Count)}
	case *msg.MetaRequest_DropReplica:
		return w.drop(req.Session, op.DropReplica, reply, note)
	case *msg.MetaRequest_WriteDone:
		note("writedone")
		in := w.inode(op.WriteDone.Ino)
		if in == nil {
			return fserr.NotExist
		}
		w.mu.Lock()
		if !op.WriteDone.Punch {
			in.attr.Size = max(in.attr.Size, op.WriteDone.Offset+op.WriteDone.Length)
		}
		w.mu.Unlock()
		w.callOthers(in, req.Session, &msg.Callback{Kind: msg.Callback_INVALIDATE, Offset: op.WriteDone.Offset, Length: op.WriteDone.Length})
		return answer(in)
	case *msg.MetaRequest_Append:
		note("append")
		in := w.inode(op.Append.Ino)
		if in == nil {
			return fserr.NotExist
		}
		w.mu.Lock()
		end := max(in.attr.Size, op.Append.Size) // as if nobody else had been granted anything yet
		reply.Result = &msg.MetaReply_Append{Append: &msg.AppendReply{Offset: end}}
		in.attr.Size = end + op.Append.Length
		w.mu.Unlock()
		return answer(in)
	case *msg.MetaRequest_Lock:
		w.mu.Lock()
		defer w.mu.Unlock()
		l := op.Lock
		switch owner := w.locks[l.Ino]; {
		case l.Type == msg.LockType_UNLOCK:
			delete(w.locks, l.Ino)
		case owner != 0 && owner != l.Owner:
			return fserr.Again
		default:
			w.locks[l.Ino] = l.Owner
		}
		reply.Result = &msg.MetaReply_Lock{Lock: &msg.LockReply{Type: l.Type}}
	default:
		return fserr.NotSupported
	}
	return fserr.OK
}

func (w *world) allocate(in *fakeInode, i uint32) {
	if in.chunks[i] != nil {
		return
	}
	w.next++
	ch := &msg.Chunk{Index: i, Id: w.next, Epoch: 1}
	for s := 1; s <= w.norm; s++ {
		cs := w.cs[id.ServerID(s)]
		cs.create(id.ChunkID(ch.Id), 1)
		ch.Replicas = append(ch.Replicas, &msg.Replica{Server: uint32(s), Addr: cs.addr})
	}
	in.chunks[i] = ch
	in.version++
}

func (w *world) setAttr(session uint64, set *msg.SetAttr, reply *msg.MetaReply, note func(string), answer func(*fakeInode) fserr.Code) fserr.Code {
	in := w.inode(set.Ino)
	if in == nil {
		return fserr.NotExist
	}
	if set.Flush {
		note("flushattr")
		w.mu.Lock()
		if set.Size != nil && in.holders[session] == msg.Want_WANT_WRITE && len(in.holders) == 1 {
			in.attr.Size = max(in.attr.Size, *set.Size)
		}
		if set.Mtime != nil {
			in.attr.Mtime = *set.Mtime
		}
		w.mu.Unlock()
		return answer(in)
	}
	note("setattr")
	if set.Size != nil {
		in.op.Lock()
		defer in.op.Unlock()
		w.callOthers(in, session, &msg.Callback{Kind: msg.Callback_LAYOUT})
		w.mu.Lock()
		old, size := in.attr.Size, *set.Size
		in.attr.Size = size
		for i := range in.chunks {
			if uint64(i)*chunk.Size >= size {
				delete(in.chunks, i)
			}
		}
		in.version++
		if i := uint32(size / chunk.Size); size < old && in.chunks[i] != nil {
			reply.Result = &msg.MetaReply_SetAttr{SetAttr: &msg.SetAttrReply{Punch: true, Index: i, From: uint32(size % chunk.Size)}}
		}
		w.mu.Unlock()
	}
	w.mu.Lock()
	if set.Mtime != nil {
		in.attr.Mtime = *set.Mtime
	}
	w.mu.Unlock()
	return answer(in)
}

func (w *world) drop(session uint64, op *msg.DropReplica, reply *msg.MetaReply, note func(string)) fserr.Code {
	in := w.inode(op.Ino)
	if in == nil {
		return fserr.NotExist
	}
	in.op.Lock()
	defer in.op.Unlock()
	w.callOthers(in, session, &msg.Callback{Kind: msg.Callback_LAYOUT})
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, ch := range in.chunks {
		if ch.Id == op.Chunk && ch.Epoch != op.Epoch {
			return fserr.StaleEpoch
		}
		if len(ch.Replicas)-1 < w.min && slices.ContainsFunc(ch.Replicas, func(r *msg.Replica) bool { return r.Server == op.Server && !r.Joining }) {
			return fserr.TooFew
		}
	}
	for _, ch := range in.chunks {
		n := len(ch.Replicas)
		ch.Replicas = slices.DeleteFunc(ch.Replicas, func(r *msg.Replica) bool { return r.Server == op.Server })
		if len(ch.Replicas) < n {
			ch.Epoch++
		}
	}
	in.version++
	w.mu.Unlock()
	note("drop")
	w.mu.Lock()
	reply.Result = &msg.MetaReply_Layout{Layout: w.layout(in, op.First, op.Count)}
	return fserr.OK
}
