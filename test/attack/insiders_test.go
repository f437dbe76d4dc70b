package attack

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/pki"
	"varve/internal/records"
	"varve/internal/secure"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// refusals are the outcomes by which servers say that somebody may not do what he asks for.
var refusals = []fserr.Code{fserr.Denied, fserr.Foreign, fserr.NoCapability, fserr.NoSession, fserr.ReadOnly, fserr.Access, fserr.Protocol, fserr.WrongCluster, fserr.Fenced, fserr.NotReady}

// loot is what an attacker has who has taken over a host of the cluster that is not the victim's: good certificates of another node.
type loot struct {
	node, reader tls.Certificate
	session      uint64 // the victim's
	chunk        uint64 // of the victim's file
	uuid, meta   []byte // of its first chunk server, and of its metadata server, which are no secrets either
	epoch        uint64
}

const evil = "attacker" // the node whose certificates the attacker has

func (a *attacker) loot() *loot {
	now := time.Now()
	l := &loot{
		node:   issue(a.t, a.c.secrets.Authority, pki.Identity{Role: pki.RoleNode, Node: evil}, now, now.Add(time.Hour)),
		reader: issue(a.t, a.c.secrets.Authority, pki.Identity{Role: pki.RoleReader, Node: evil}, now, now.Add(time.Hour)),
	}
	st, err := a.c.status()
	if err != nil {
		a.t.Fatal(err)
	}
	for _, s := range st.Sessions {
		l.session = s.Session
	}
	// What the chunk is called is no secret: whoever may look at the cluster sees it.
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := a.greet(l.node, a.c.servers[1].addr, wire.ClassGuest, a.hello(msg.Hello_ADMIN, 0, 0))
	if err != nil {
		a.t.Fatal(err)
	}
	defer c.Close()
	list := new(msg.ChunkListReply)
	code, err := c.CallMessage(ctx, wire.ChunkList, wire.ClassScrub, &msg.ChunkList{Max: 100}, list)
	if err != nil || code != fserr.OK || len(list.Chunks) == 0 || l.session == 0 {
		a.t.Fatalf("the victim has no session or no chunk: %v, %v %v", st.Sessions, code, err)
	}
	uuid := func(file string) []byte {
		b, err := os.ReadFile(filepath.Join(filepath.Dir(a.c.dir), file))
		var is struct{ UUID string }
		if err == nil {
			err = json.Unmarshal(b, &is)
		}
		if err == nil {
			b, err = hex.DecodeString(is.UUID)
		}
		if err != nil {
			a.t.Fatal(err)
		}
		return b
	}
	l.uuid, l.meta = uuid("cs1/cs.json"), uuid("mds1/mds.json")
	l.chunk, l.epoch = list.Chunks[0].Id, list.Chunks[0].Epoch
	return l
}

func (a *attacker) hello(role msg.Hello_Role, session uint64, server uint32) *msg.Hello {
	return &msg.Hello{Cluster: a.c.uuid[:], Role: role, Session: session, Server: server, Version: "attacker"}
}

// asks greets and asks one thing.
func (a *attacker) asks(cert tls.Certificate, addr string, h *msg.Hello, f *wire.Frame) (fserr.Code, error) {
	class := wire.ClassMeta
	if addr != a.c.meta.addr {
		class = wire.ClassGuest
	}
	c, err := a.greet(cert, addr, class, h)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	reply, err := c.Call(ctx, f)
	if err != nil {
		return 0, err
	}
	defer reply.Release()
	return reply.Code, nil
}

// denied makes an attack of a question that must be refused.
func (a *attacker) denied(name string, cert tls.Certificate, h *msg.Hello, t wire.Type, m wire.Message) attack {
	return attack{name, func(addr string) error {
		body, err := m.MarshalVT()
		if err != nil {
			return err
		}
		return refused(a.asks(cert, addr, h, &wire.Frame{Type: t, Class: wire.ClassMeta, Body: body}))
	}}
}

func refused(code fserr.Code, err error) error {
	if err != nil {
		for _, c := range refusals {
			if errors.Is(err, c) {
				return nil
			}
		}
		if errors.Is(err, wire.ErrClosed) {
			return nil // the connection was ended for it
		}
		return fmt.Errorf("not refused in words: %w", err)
	}
	if !slices.Contains(refusals, code) {
		return fmt.Errorf("the answer is %q", code)
	}
	return nil
}

// onMeta are attacks on the metadata server of who has certificates of another node.
func (a *attacker) onMeta(l *loot) []attack {
	admin, client := msg.Hello_ADMIN, msg.Hello_CLIENT
	create := func(session uint64) *msg.MetaRequest {
		return &msg.MetaRequest{Session: session, Seq: 1 << 40, Cred: &msg.Cred{}, Op: &msg.MetaRequest_Create{Create: &msg.Create{
			Parent: 1, Name: []byte("attacker"), Type: msg.FileType_REGULAR, Perm: 0o666}}}
	}
	remove := &msg.MetaRequest{Cred: &msg.Cred{}, Op: &msg.MetaRequest_Remove{Remove: &msg.Remove{Parent: 1, Name: []byte("image")}}}
	all := []attack{
		a.denied("the victim's session in the hello", l.node, a.hello(client, l.session, 0), wire.Meta, create(l.session)),
		a.denied("the victim's session in a request", l.node, a.hello(client, 0, 0), wire.Meta, create(l.session)),
		a.denied("a renewal of the victim's session", l.node, a.hello(client, 0, 0), wire.RenewSession, &msg.RenewSession{Session: l.session}),
		a.denied("a renewal of the victim's session, by a reader", l.reader, a.hello(client, 0, 0), wire.RenewSession, &msg.RenewSession{Session: l.session}),
		a.denied("the end of the victim's session", l.node, a.hello(client, 0, 0), wire.CloseSession, &msg.CloseSession{Session: l.session}),
		a.denied("the end of the victim's session, as an administrator", l.node, a.hello(admin, 0, 0), wire.CloseSession, &msg.CloseSession{Session: l.session}),
		a.denied("to be the victim's chunk server", l.node, a.hello(msg.Hello_CHUNK_SERVER, 0, 1), wire.RegisterServer, &msg.RegisterServer{Server: 1, Addr: "10.88.9.10:2511", Uuid: l.uuid}),
		a.denied("to speak for the victim's chunk server", l.node, a.hello(msg.Hello_CHUNK_SERVER, 0, 1), wire.Heartbeat, &msg.Heartbeat{Server: 1, State: "failed"}),
		a.denied("a report of the victim's chunk server", l.node, a.hello(msg.Hello_CHUNK_SERVER, 0, 1), wire.ChunkReport, &msg.ChunkReport{Server: 1}),
		a.denied("to be a metadata server, and get the key", l.node, a.hello(admin, 0, 0), wire.JoinMeta, &msg.JoinMeta{Addr: "10.88.9.10:2510", Uuid: make([]byte, 16)}),
		a.denied("that the metadata server is somewhere else", l.node, a.hello(admin, 0, 0), wire.JoinMeta, &msg.JoinMeta{Addr: "10.88.9.10:2510", Uuid: l.meta, Server: 1}),
		a.denied("that the metadata server is somewhere else, with a proof", l.node, a.hello(admin, 0, 0), wire.JoinMeta,
			&msg.JoinMeta{Addr: "10.88.9.10:2510", Uuid: l.meta, Server: 1, Proof: make([]byte, 32)}),
		a.denied("to be a chunk server, as a reader", l.reader, a.hello(msg.Hello_CHUNK_SERVER, 0, 0), wire.RegisterServer, &msg.RegisterServer{Addr: "10.88.9.10:2511", Uuid: make([]byte, 16)}),
	}
	for who, cert := range map[string]tls.Certificate{"a node": l.node, "a reader": l.reader} {
		for _, x := range []struct {
			t wire.Type
			m wire.Message
		}{
			{wire.SetConfig, &msg.SetConfig{Key: "session.grace", Value: "1s"}},
			{wire.FenceSession, &msg.FenceSession{Session: l.session, Reason: "attacker"}},
			{wire.LeaseTake, &msg.LeaseTake{Ino: 2, Force: true, Reason: "attacker"}},
			{wire.SetServerMode, &msg.SetServerMode{Servers: []uint32{1}, Mode: 1}},
			{wire.RemoveServer, &msg.RemoveServer{Server: 1, Force: true, Lose: true}},
			{wire.RemoveMeta, &msg.RemoveMeta{Server: 1}},
			{wire.TransferLeader, &msg.TransferLeader{}},
			{wire.SetTier, &msg.SetTier{Server: 1, Tier: 3}},
			{wire.Revoke, &msg.Revoke{Who: ownNode}},
			{wire.ChangeSecurity, &msg.ChangeSecurity{What: msg.ChangeSecurity_ROTATE_AUTHORITY}},
			{wire.Meta, create(0)},
			{wire.Meta, remove},
			{999, &msg.Empty{}},
		} {
			all = append(all, a.denied(fmt.Sprintf("request %d of %s", x.t, who), cert, a.hello(admin, 0, 0), x.t, x.m))
		}
	}
	for who, cert := range map[string]tls.Certificate{"a node": l.node, "a reader": l.reader} {
		for _, first := range []string{"VRFT", "VRFA", "\x16\x03\x01\x00", "GET "} {
			all = append(all, attack{fmt.Sprintf("%q of %s", first, who), func(addr string) error {
				c, err := a.secured(cert, addr, wire.ClassMeta, false)
				if err != nil {
					return err
				}
				defer c.Close()
				return mute(c, slices.Concat([]byte(first), a.c.uuid[:], make([]byte, 64)))
			}})
		}
	}
	return all
}

// secured is a connection after the handshake.
func (a *attacker) secured(cert tls.Certificate, addr string, class wire.Class, dataTLS bool) (net.Conn, error) {
	n, err := a.network(cert, dataTLS)
	if err != nil {
		return nil, err
	}
	c, err := inTime(func() (net.Conn, error) { return n.Dial(context.Background(), addr, class) })
	if err == nil {
		err = c.SetDeadline(time.Now().Add(patience))
	}
	return c, err
}

// keyed has the checksums of all headers in b as a connection with a key has them, so that it is not the key for which they are refused.
func keyed(b []byte, key uint32) []byte {
	b = slices.Clone(b)
	for at := 0; at+wire.HeaderSize <= len(b) && string(b[at:at+3]) == "VRV"; {
		h := b[at : at+wire.HeaderSize]
		binary.LittleEndian.PutUint32(h[44:], binary.LittleEndian.Uint32(h[44:])^key)
		at += wire.HeaderSize + int(min(binary.LittleEndian.Uint32(h[28:]), 1<<20))
	}
	return b
}

// frames are bytes that no member sends, of one who has good certificates: they end his connection, and nothing else.
func (a *attacker) frames(l *loot) []attack {
	good := hello(a.hello(msg.Hello_ADMIN, 0, 0))
	header := func(change func(b []byte), sum bool) []byte {
		b := wire.AppendRequest(nil, wire.Status, wire.ClassMeta, 0, 9, nil, 0, 0)
		change(b)
		if sum {
			binary.LittleEndian.PutUint32(b[44:], crc32.Checksum(b[:44], crc32.MakeTable(crc32.Castagnoli)))
		}
		return b
	}
	le := binary.LittleEndian
	long := a.hello(msg.Hello_ADMIN, 0, 0)
	long.Version = string(make([]byte, 1<<16))
	other := a.hello(msg.Hello_ADMIN, 0, 0)
	other.Cluster = make([]byte, 16)
	nobody := a.hello(17, 0, 0)
	var all []attack
	for _, x := range []struct {
		name   string
		sent   []byte
		greets bool // a good hello first
	}{
		{"a hello that is too long", hello(long), false},
		{"a hello of another cluster", hello(other), false},
		{"a hello of a role that there is not", hello(nobody), false},
		{"a hello that is no message", wire.AppendRequest(nil, wire.Hello, wire.ClassMeta, 0, 1, []byte{0xff, 0xff, 0xff}, 0, 0), false},
		{"a first frame that is no hello", wire.AppendRequest(nil, wire.Status, wire.ClassMeta, 0, 1, nil, 0, 0), false},
		{"noise", []byte("VRV1 and then something that is not a frame at all, and goes on for a while"), false},
		{"a body of 4 GiB", header(func(b []byte) { le.PutUint32(b[28:], 1<<32-1) }, true), true},
		{"data of 4 GiB", header(func(b []byte) { le.PutUint32(b[32:], 1<<32-1) }, true), true},
		{"a wrong checksum", header(func(b []byte) { b[44] ^= 1 }, false), true},
		{"a flag that there is not", header(func(b []byte) { b[7] = 2 }, true), true},
		{"a wrong magic", header(func(b []byte) { b[3] = 'X' }, true), true},
		{"a body with a wrong checksum", slices.Concat(header(func(b []byte) { le.PutUint32(b[28:], 4) }, true), []byte("abcd")), true},
	} {
		for _, way := range []struct {
			name    string
			class   wire.Class
			dataTLS bool
		}{{"control", wire.ClassMeta, false}, {"data", wire.ClassGuest, false}, {"encrypted data", wire.ClassGuest, true}} {
			all = append(all, attack{fmt.Sprintf("frames: %s, %s", x.name, way.name), func(addr string) error {
				c, err := a.secured(l.node, addr, way.class, way.dataTLS)
				if err != nil {
					return err
				}
				defer c.Close()
				sent := x.sent
				if x.greets {
					sent = slices.Concat(good, x.sent)
				}
				if k, ok := c.(interface{ FrameKeys() (send, receive uint32) }); ok {
					send, _ := k.FrameKeys()
					sent = keyed(sent, send)
				}
				_, _ = c.Write(sent)
				return a.falls(c)
			}})
		}
	}
	// Somebody on the way, who sends into a connection that is encrypted, or sends again what he saw.
	for _, x := range []struct {
		name string
		sent func(seen []byte) []byte
	}{
		{"a frame that is not sealed", func([]byte) []byte { return good }},
		{"a record again", func(seen []byte) []byte { return seen }},
		{"a record that was changed", func(seen []byte) []byte { seen[len(seen)/2] ^= 1; return seen }},
		{"a record without content", func([]byte) []byte { return append([]byte{1, 0, 0, 0}, make([]byte, 16)...) }},
		{"a record of 16 MiB", func([]byte) []byte { return []byte{1, 255, 255, 255} }},
		{"a TLS alert", func([]byte) []byte { return []byte{21, 3, 3, 0, 2, 2, 40} }},
	} {
		for _, greets := range []bool{false, true} {
			all = append(all, attack{fmt.Sprintf("records: %s, after a hello %v", x.name, greets), func(addr string) error {
				c, err := a.secured(l.node, addr, wire.ClassGuest, true)
				if err != nil {
					return err
				}
				defer c.Close()
				stream, is := c.(*records.Stream)
				if !is { // this machine has no instructions for AES
					return nil
				}
				socket := &seen{Conn: stream.NetConn()}
				stream.Conn = socket
				if _, err := stream.Write(good); err != nil {
					return err
				}
				if greets {
					if _, err := stream.Read(make([]byte, 1<<12)); err != nil {
						return err
					}
				}
				_, _ = socket.Conn.Write(x.sent(slices.Clone(socket.sent)))
				return a.falls(c)
			}})
		}
	}
	return all
}

// seen is a socket of which somebody sees what is sent.
type seen struct {
	net.Conn
	sent []byte
}

// Write implements net.Conn.
func (s *seen) Write(b []byte) (int, error) {
	s.sent = append(s.sent, b...)
	return s.Conn.Write(b)
}

// falls waits for a connection to end, and says what is wrong with how it does.
func (a *attacker) falls(c net.Conn) error {
	b := make([]byte, 1<<12)
	total := 0
	for {
		n, err := c.Read(b)
		if total += n; total > 1<<12 {
			return errors.New("it answers and answers")
		}
		if ne, is := errors.AsType[net.Error](err); is && ne.Timeout() {
			return errors.New("the connection stays")
		}
		if err != nil {
			return nil
		}
	}
}

// onData are attacks on a chunk server of who has certificates of another node: on the bytes of the victim's chunk.
func (a *attacker) onData(l *loot) []attack {
	now := time.Now()
	signer := a.c.secrets.Signer()
	capability := func(change func(*pki.Capability)) []byte {
		c := &pki.Capability{Cluster: a.c.uuid, Session: id.SessionID(l.session), Node: evil, Rights: pki.Read | pki.Write,
			NotBefore: now.Add(-time.Minute), NotAfter: now.Add(time.Hour)}
		change(c)
		return signer.Sign(c)
	}
	same := func(*pki.Capability) {}
	other, err := pki.NewSigner(id.Cluster{0xee, 1}, 1)
	if err != nil {
		a.t.Fatal(err)
	}
	strange := other.Sign(&pki.Capability{Cluster: id.Cluster{0xee, 1}, Session: id.SessionID(l.session), Node: evil, Rights: pki.Read | pki.Write,
		NotBefore: now.Add(-time.Minute), NotAfter: now.Add(time.Hour)})
	forger, err := pki.NewSigner(a.c.uuid, signer.Key().Generation)
	if err != nil {
		a.t.Fatal(err)
	}
	forged := forger.Sign(&pki.Capability{Cluster: a.c.uuid, Session: id.SessionID(l.session), Node: evil, Rights: pki.Read | pki.Write,
		NotBefore: now.Add(-time.Minute), NotAfter: now.Add(time.Hour)})
	bent := capability(same)
	bent[9] ^= 1 << 3
	noise := make([]byte, pki.CapabilitySize)
	_, _ = rand.Read(noise)

	request := func(t wire.Type, session uint64) *wire.Frame {
		r := &wire.DataRequest{Chunk: id.ChunkID(l.chunk), Session: id.SessionID(session), Length: blockSize}
		f := &wire.Frame{Type: t, Class: wire.ClassGuest, Epoch: id.Epoch(l.epoch)}
		if t == wire.Write {
			f.Data = make([]byte, blockSize)
			copy(f.Data, "attacker")
			r.Sums = []uint32{crc32.Checksum(f.Data, crc32.MakeTable(crc32.Castagnoli))}
		}
		f.Body = r.Append(nil)
		return f
	}
	var all []attack
	data := func(name string, cert tls.Certificate, h *msg.Hello, session uint64, types ...wire.Type) {
		for _, t := range types {
			own := a.hello(h.Role, h.Session, h.Server)
			own.Capability, own.Lane = h.Capability, uint32(len(all)+1) // another hello of the same lane would end this one's connection
			all = append(all, attack{fmt.Sprintf("data request %d: %s", t, name), func(addr string) error {
				return refused(a.asks(cert, addr, own, request(t, session)))
			}})
		}
	}
	shown := func(c []byte, session uint64) *msg.Hello {
		h := a.hello(msg.Hello_CLIENT, session, 0)
		h.Capability = c
		return h
	}
	any := []wire.Type{wire.Read, wire.Write, wire.Punch}
	for name, c := range map[string][]byte{
		"none": nil, "one byte": {1}, "noise": noise,
		"of the victim's node": capability(func(c *pki.Capability) { c.Node = ownNode }),
		"that is over":         capability(func(c *pki.Capability) { c.NotBefore, c.NotAfter = now.Add(-2*time.Hour), now.Add(-time.Hour) }),
		"for tomorrow":         capability(func(c *pki.Capability) { c.NotBefore, c.NotAfter = now.Add(24*time.Hour), now.Add(25*time.Hour) }),
		"of another session":   capability(func(c *pki.Capability) { c.Session++ }),
		"of another cluster":   strange, "signed by somebody else": forged, "that was bent": bent,
	} {
		data("a capability "+name, l.node, shown(c, l.session), l.session, any...)
	}
	data("without a session", l.node, shown(nil, 0), 0, any...)
	mine := capability(func(c *pki.Capability) { c.Session = 1 << 50 })
	data("the victim's session on a connection of another", l.node, shown(mine, 1<<50), l.session, wire.Write, wire.Punch)
	look := capability(func(c *pki.Capability) { c.Session, c.Rights = 1<<51, pki.Read })
	data("more than the capability gives", l.node, shown(look, 1<<51), 1<<51, wire.Write, wire.Punch)
	data("a writer's capability, with a reader's certificate", l.reader, shown(mine, 1<<50), 1<<50, wire.Write, wire.Punch)
	data("as a chunk server of another node", l.node, a.hello(msg.Hello_CHUNK_SERVER, 0, 2), 0, any...)
	data("as a metadata server", l.node, a.hello(msg.Hello_METADATA_SERVER, 0, 1), 0, any...)
	data("as an administrator, with a node's certificate", l.node, a.hello(msg.Hello_ADMIN, 0, 0), 0, any...)
	data("as an administrator, with a reader's certificate", l.reader, a.hello(msg.Hello_ADMIN, 0, 0), 0, any...)
	for _, h := range []*msg.Hello{a.hello(msg.Hello_METADATA_SERVER, 0, 1), a.hello(msg.Hello_ADMIN, 0, 0)} {
		all = append(all,
			a.denied(fmt.Sprintf("fence, as %v", h.Role), l.node, h, wire.Fence, &msg.Fence{Sessions: []uint64{l.session}}),
			a.denied(fmt.Sprintf("epoch, as %v", h.Role), l.node, h, wire.ChunkAdopt, &msg.ChunkAdopt{Chunk: l.chunk, Epoch: l.epoch + 9}),
			a.denied(fmt.Sprintf("join, as %v", h.Role), l.node, h, wire.ChunkJoin, &msg.ChunkJoin{Chunk: l.chunk, Epoch: l.epoch + 9}),
			a.denied(fmt.Sprintf("scrub, as %v", h.Role), l.node, h, wire.Scrub, &msg.Scrub{Begin: true}))
	}
	all = append(all, attack{"deletion of a chunk that belongs to a file", func(addr string) error {
		body, err := (&msg.ChunkDelete{Chunks: []uint64{l.chunk}}).MarshalVT()
		if err != nil {
			return err
		}
		code, err := a.asks(l.node, addr, a.hello(msg.Hello_ADMIN, 0, 0), &wire.Frame{Type: wire.ChunkDelete, Class: wire.ClassMeta, Body: body})
		if err == nil && code == fserr.OK {
			err = errors.New("it was done")
		}
		return err
	}})
	return all
}

// revoked takes the certificate of a node back: what it has open ends within seconds, and nothing new begins.
func (a *attacker) revoked() {
	creds, err := pki.LoadCredentials(a.joined, pki.RoleNode)
	if err != nil {
		a.t.Error(err)
		return
	}
	n := secure.New(secure.Options{Credentials: creds, Under: a.elsewhere()})
	dial := func(addr string, class wire.Class) (*wire.Conn, error) {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		return inTime(func() (*wire.Conn, error) {
			c, _, err := wire.Dial(ctx, addr, a.hello(msg.Hello_ADMIN, 0, 0), nil, wire.Options{Network: n, Class: class})
			return c, err
		})
	}
	type open struct {
		p     *process
		class wire.Class
		c     *wire.Conn
	}
	var all []open
	for _, x := range []open{{p: a.c.meta}, {p: a.c.servers[1], class: wire.ClassMeta}, {p: a.c.servers[1], class: wire.ClassGuest}} {
		if x.c, err = dial(x.p.addr, x.class); err != nil {
			a.t.Errorf("the node that joined, at %s: %v", x.p.name, err)
			return
		}
		defer x.c.Close()
		all = append(all, x)
	}
	begin := time.Now()
	varve(a.t, nil, "", "-c", a.c.dir, "revoke", newcomer)
	for _, x := range all {
		select {
		case <-x.c.Done():
		case <-time.After(time.Minute):
			a.t.Errorf("%s goes on with a node that is revoked, class %d", x.p.name, x.class)
			continue
		}
		if c, err := dial(x.p.addr, x.class); err == nil {
			c.Close()
			a.t.Errorf("%s lets a node in that is revoked, class %d", x.p.name, x.class)
		}
	}
	a.t.Logf("connections of a revoked node ended within %v", time.Since(begin).Round(time.Millisecond))
}
