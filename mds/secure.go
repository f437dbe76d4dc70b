package mds

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/pki"
	"varve/internal/secure"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds/event"
	"varve/mds/settings"
	"varve/mds/state"
)

// secure has the server's connections authenticated if its cluster is, and notes that they are to be from now on.
func (d *identity) secure(o *Options) (err error) {
	dir := cmp.Or(o.ClusterDir, d.ClusterDir)
	if o.Credentials == nil && !d.Secured {
		if o.opening = secure.OpeningOf(dir, d.cluster(), o.Logger); o.opening != nil {
			return d.open(o, dir)
		}
	}
	if o.Credentials == nil {
		if o.Credentials, err = secure.Load(dir, d.Secured); err != nil {
			return fmt.Errorf("credentials of %v: %w", d.server(), err)
		}
	}
	if err := secure.CheckCluster(o.Credentials, d.cluster()); err != nil {
		return err
	}
	if o.Credentials == nil {
		return nil
	}
	o.Network = secure.Of(secure.Options{Under: o.Network, Credentials: o.Credentials, Logger: o.Logger})
	if d.Secured && d.ClusterDir == dir {
		return nil
	}
	noted := *d
	noted.Secured, noted.ClusterDir = true, dir
	if err := replaceIdentity(o.FS, o.Dir, &noted); err != nil {
		return err
	}
	*d = noted
	return nil
}

const (
	nonceBytes = 16
	maxOwner   = len(readers) + 64 // and a node's name, of package pki
	// readers is before the name of a reader's node, which no node's name has in it.
	readers = "reader/"
	// One owner has a part of the sessions, one in so many.
	ownersShare, readersShare = 2, 16
)

// owner is what a session notes of who opened it, behind its nonce: the name of the node. A reader is somebody else than the servers and mounts of its node: its
// key may be in the hands of another user there.
func owner(who *pki.Identity) string {
	if who.Role == pki.RoleReader {
		return readers + who.Node
	}
	return who.Node
}

// ownerOf returns the owner of a session, "" if it has none: it was opened while the cluster was insecure.
func ownerOf(x *state.Session) string { return x.Nonce[min(nonceBytes, len(x.Nonce)):] }

// mayOpen refuses an owner that has as many sessions as one may have: nobody keeps others from opening theirs.
func (l *leadership) mayOpen(own string) error {
	if own == "" {
		return nil
	}
	most, n := maxSessions/ownersShare, 0
	if strings.HasPrefix(own, readers) {
		most = maxSessions / readersShare
	}
	l.s.fsm.view(func(st *state.State) {
		st.Sessions(func(x *state.Session) bool {
			if !x.Fenced && ownerOf(x) == own {
				n++
			}
			return true
		})
	})
	if n >= most {
		return fmt.Errorf("%s has %d sessions, which is the limit of one node: %w", own, n, fserr.Unavailable)
	}
	return nil
}

// identify returns who is at the other end of a connection that says hello, nil in an insecure cluster. Whoever comes without an identity to a secured one,
// or says that he is what his role may not be, is refused.
func (s *Server) identify(c *wire.Conn, hello *msg.Hello) (*pki.Identity, fserr.Code) {
	who, ok := c.Peer()
	if s.creds() == nil || !ok && s.o.opening != nil && s.o.opening.Stage() != secure.Closed {
		return nil, fserr.OK
	}
	if !ok || who.Cluster != s.identity.cluster() {
		return nil, fserr.WrongCluster
	}
	if !secure.MayGreet(hello.Role, who.Role) {
		return nil, fserr.Denied
	}
	return &who, fserr.OK
}

// ownSession reports Foreign for a session that another node, or its reader, opened. A session that this server does not know passes: it is looked for later.
func (s *Server) ownSession(p *peer, session id.SessionID) fserr.Code {
	if p.who == nil || p.owns.Load() == uint64(session) {
		return fserr.OK
	}
	code := fserr.OK
	s.fsm.view(func(st *state.State) {
		x, ok := st.Session(session)
		switch {
		case !ok || ownerOf(x) == "": // the latter from before the cluster was secured
		case ownerOf(x) != owner(p.who):
			code = fserr.Foreign
		default:
			p.owns.Store(uint64(session))
		}
	})
	if code != fserr.OK {
		s.log.Warn("request refused: the session belongs to another node", "session", session, "node", p.who.Node, "role", p.who.Role.String())
	}
	return code
}

// nodeOf returns the node that a chunk server runs on, "" if that is not known.
func nodeOf(st *state.State, server id.ServerID) string { return st.Config(settings.NodeOf(server)) }

// mayBe refuses a chunk server that comes from another node than it came from first.
func (l *leadership) mayBe(p *peer, req *msg.RegisterServer) error {
	if p.who == nil {
		return nil
	}
	var err error
	l.s.fsm.view(func(st *state.State) {
		st.Servers(func(x *state.Server) bool {
			if x.UUID != string(req.Uuid) {
				return true
			}
			if node := nodeOf(st, x.ID); node != "" && node != p.who.Node {
				err = fmt.Errorf("%v runs on node %s, and comes from %s; if it was moved, say so: varve set-config %s=%s: %w",
					x.ID, node, p.who.Node, settings.NodeOf(x.ID), p.who.Node, fserr.Foreign)
			}
			return false
		})
	})
	if err != nil {
		l.s.log.Warn("registration refused", "err", err)
	}
	return err
}

// bindServer notes the node that a chunk server came from first.
func (l *leadership) bindServer(p *peer, server id.ServerID) error {
	if p.who == nil {
		return nil
	}
	var known bool
	l.s.fsm.view(func(st *state.State) { known = nodeOf(st, server) != "" })
	if known {
		return nil
	}
	return l.propose(&event.Event{Body: &event.Event_ConfigSet{ConfigSet: &event.ConfigSet{Key: settings.NodeOf(server), Value: p.who.Node}}},
		"the node that the chunk server came from first")
}

// dataTLS reports whether data is to be encrypted on the way.
func (l *leadership) dataTLS() (on bool) {
	l.s.fsm.view(func(st *state.State) { on = settings.On(st.Config(settings.DataTLS)) })
	return on
}

// capabilityLeases is for how many leases of a session its capability is valid. A new one is signed when half of that is over; so a client that renews its session
// always has one, and one that does not is soon without.
const capabilityLeases = 6

// capability returns what a session may show to chunk servers, nil if what it was given last will do. now: it will not.
func (l *leadership) capability(p *peer, session id.SessionID, now bool) []byte {
	signer := l.s.guard.Signer()
	if p.who == nil || signer == nil {
		return nil
	}
	life := capabilityLeases * l.s.o.SessionLease
	at, last := bootNow(), time.Duration(p.signed.Load())
	if !now && last != 0 && at-last < life/2 {
		return nil
	}
	p.signed.Store(int64(at))
	wall := l.s.o.Wall()
	return signer.Sign(&pki.Capability{Session: session, Node: p.who.Node, Rights: secure.Rights(p.who.Role), NotBefore: wall, NotAfter: wall.Add(life)})
}
