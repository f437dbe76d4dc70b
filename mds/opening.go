package mds

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"varve/internal/disk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/pki"
	"varve/internal/secure"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds/event"
	"varve/mds/state"
)

// A cluster that was made without security becomes a secured one while it runs. Its stage is a setting that nobody but the leader sets:
//
//	none      as made: SecuritySet decides
//	open      SecuritySet counts, and who has no certificate is served as well
//	closed    SecuritySet counts, and nothing else
//	off       SecuritySet does not count: it was given up. The next one has the next version, and another authority.
//
// open comes before the first SecuritySet, but after one that follows off. So a leader that falls in between leaves nothing that counts.
const (
	securityStage = "security.stage"
	stageOpen     = "open"
	stageClosed   = "closed"
	stageOff      = "off"
)

const (
	// openRequestFile is in the leader's directory: who may write there may secure the cluster. See WriteOpenRequest.
	openRequestFile = "secure.request"
	tendOpeningEach = time.Second
	openingTimeout  = 5 * time.Second
	hintEach        = time.Minute
	probeEach       = 10 * time.Second
	// openRequestFor is for how long a request counts, should its author be killed before he takes it away: anybody may have it carried out.
	openRequestFor = 2 * time.Minute
)

// openRequest says how a cluster is to be secured, or that this is to be given up.
type openRequest struct {
	Verifier []byte `json:"verifier,omitempty"` // of the password, which is nowhere
	Node     string `json:"node,omitempty"`
	Abort    bool   `json:"abort,omitempty"`
	Until    int64  `json:"until"` // ns since 1970
}

// WriteOpenRequest leaves in the directory of a metadata server what it needs to secure its cluster once it is asked to (msg.ChangeSecurity_OPEN).
func WriteOpenRequest(dir string, password []byte, node string) error {
	v, err := pki.NewPasswordVerifier(password)
	if err := errors.Join(err, pki.ValidNode(node)); err != nil {
		return err
	}
	verifier, err := v.Encode()
	if err != nil {
		return err
	}
	return openRequest{Verifier: verifier, Node: node}.write(dir)
}

// WriteAbortRequest leaves there that it may give up securing its cluster when it is asked to, by who has no certificate either: the cluster key may be lost.
func WriteAbortRequest(dir string) error { return openRequest{Abort: true}.write(dir) }

func (r openRequest) write(dir string) error {
	r.Until = time.Now().Add(openRequestFor).UnixNano()
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return pki.WriteFile(filepath.Join(dir, openRequestFile), b, 0o600)
}

// openRequest reads what was left in the server's directory.
func (s *Server) openRequest() (r openRequest, _ error) {
	path := filepath.Join(s.o.Dir, openRequestFile)
	b, err := readWhole(s.o.FS, path, maxIdentity)
	if err != nil {
		return r, fmt.Errorf("the request comes with a file in the directory of the metadata server that leads: varve cluster secure -r %s: %w: %w", s.o.Dir, err, fserr.Access)
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("%s: %w: %w", path, err, fserr.Invalid)
	}
	if left := time.Until(time.Unix(0, r.Until)); left < 0 || left > openRequestFor {
		return r, fmt.Errorf("%s is left over from a command that was killed; repeat it: %w", path, fserr.Access)
	}
	return r, nil
}

// DropOpenRequest removes it.
func DropOpenRequest(dir string) error {
	if err := os.Remove(filepath.Join(dir, openRequestFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// ServerOf returns the id and the address of the metadata server of a directory, and the cluster's UUID.
func ServerOf(dir string) (id.MetaID, string, id.Cluster, error) {
	d, err := readIdentity(disk.OS{}, dir)
	if err != nil {
		return 0, "", id.Cluster{}, err
	}
	return d.server(), d.Addr, d.cluster(), nil
}

// keyHolder has the cluster key. It may come while the server runs.
type keyHolder struct {
	key     atomic.Pointer[pki.ClusterKey]
	opening *secure.Opening
}

// of returns the key if it is to be proved on a connection, nil if not: the cluster has no security, or not for everybody yet.
func (k *keyHolder) of(c net.Conn) *pki.ClusterKey {
	if k == nil {
		return nil
	}
	if _, ok := wire.PeerOf(c); !ok && k.opening != nil && k.opening.Stage() != secure.Closed {
		return nil
	}
	return k.key.Load()
}

// inForce returns what a state says of who may speak, nil if the cluster has no security, and whether who has no certificate is served as well.
func inForce(st *state.State) (v *state.Security, opening bool) {
	stage := st.Config(securityStage)
	if v = st.Security(); v == nil || stage == stageOff {
		return nil, false
	}
	return v, stage == stageOpen
}

// creds returns who this server is, nil if it has no security.
func (s *Server) creds() *pki.Credentials {
	if s.o.opening != nil {
		return s.o.opening.Credentials()
	}
	return s.o.Credentials
}

// opening reports whether the cluster is being secured.
func (s *Server) opening() (open bool) {
	s.fsm.view(func(st *state.State) { _, open = inForce(st) })
	return open
}

// tellOpening is what a member is told on its connection: the version of the newest statement of who may speak, 0 if the cluster has no security, and whether it is
// being secured. Both are of one moment, since a member that hears of a version and not of the opening shuts out who has no certificate. Who has shown none is to come
// with one if the leader has one.
func (s *Server) tellOpening(c *wire.Conn) (version uint64, opening bool) {
	s.fsm.view(func(st *state.State) {
		var v *state.Security
		if v, opening = inForce(st); v != nil {
			version = v.Changed
		}
	})
	_, shown := c.Peer()
	return version, opening && (shown || s.creds() != nil)
}

// keyed reports whether the server can take part in a secured cluster.
func (s *Server) keyed() bool { return s.keys.key.Load() != nil && s.creds() != nil }

// open has the server's connections take what credentials there are, of a cluster that has no security for good yet. A metadata server shows a certificate
// only with the cluster key, without which it cannot speak to others that have one.
func (d *identity) open(o *Options, dir string) error {
	if d.Key {
		o.opening.Look()
	}
	o.Network = secure.Of(secure.Options{Under: o.Network, Opening: o.opening, Logger: o.Logger})
	if d.ClusterDir == dir {
		return nil
	}
	noted := *d
	noted.ClusterDir = dir
	if err := replaceIdentity(o.FS, o.Dir, &noted); err != nil {
		return err
	}
	*d = noted
	return nil
}

// note changes mds.json.
func (g *guard) note(change func(*identity)) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	next := g.noted
	change(&next)
	if slices.Equal(next.Peers, g.noted.Peers) && next.Secured == g.noted.Secured && next.Key == g.noted.Key && next.Opening == g.noted.Opening {
		return nil
	}
	if err := replaceIdentity(g.s.o.FS, g.s.o.Dir, &next); err != nil {
		return err
	}
	g.noted = next
	return nil
}

// mayChange says whether who has asked may change who may speak. While the cluster is being secured that is an administrator by his certificate; to begin it or
// give it up, who may write into the leader's directory.
func (s *Server) mayChange(t wire.Type, req any, peer pki.Identity, known bool) (fserr.Code, string) {
	if t != wire.Revoke && t != wire.ChangeSecurity || known && peer.Role == pki.RoleAdmin {
		return fserr.OK, ""
	}
	if c, ok := req.(*msg.ChangeSecurity); ok && c.What == msg.ChangeSecurity_OPEN {
		return fserr.OK, ""
	} else if ok && c.What == msg.ChangeSecurity_ABORT {
		if r, err := s.openRequest(); err == nil && r.Abort {
			return fserr.OK, ""
		}
	}
	var v *state.Security
	s.fsm.view(func(st *state.State) { v, _ = inForce(st) })
	if v == nil {
		return fserr.OK, ""
	}
	return fserr.Denied, "this needs the certificate of an administrator: varve auth-node --role admin"
}

// openSecurity makes an authority for a cluster that has none, as the file in the server's directory says. It can be repeated: the password that was given last counts.
func (l *leadership) openSecurity(ctx context.Context) error {
	g, o := l.s.guard, &l.s.o
	req, err := l.s.openRequest()
	if err != nil {
		return err
	}
	verifier, err := pki.DecodeVerifier(req.Verifier)
	if err := errors.Join(err, pki.ValidNode(req.Node)); err != nil {
		return fmt.Errorf("%s: %w: %w", openRequestFile, err, fserr.Invalid)
	}
	if o.opening == nil || o.opening.Dir() == "" {
		return fmt.Errorf("the process of %v does not know the cluster's directory on its host; start it again with -c: %w", l.s.identity.server(), fserr.NotSupported)
	}
	begun, err := l.makeSecurity(ctx, verifier)
	if err == nil && !begun {
		err = l.changeSecurity(ctx, "the cluster is being secured, by who may write into the leader's directory", func(s *pki.Secrets) error {
			if slices.Equal(s.Password.Stored, verifier.Stored) && slices.Equal(s.Password.Salt, verifier.Salt) {
				return errUnchanged
			}
			s.Password = verifier
			return nil
		})
	}
	if err != nil {
		return err
	}
	return g.issueHost(ctx, l, req.Node)
}

// makeSecurity is the part of openSecurity that is one change of who may speak. It reports false if the cluster is being secured already.
func (l *leadership) makeSecurity(ctx context.Context, verifier *pki.PasswordVerifier) (begun bool, _ error) {
	release, err := l.latchSecurityAll(ctx)
	if err != nil {
		return false, err
	}
	defer release()
	var old, now *state.Security
	var opening bool
	l.s.fsm.view(func(st *state.State) {
		old = st.Security()
		now, opening = inForce(st)
	})
	switch {
	case now != nil && opening:
		return false, nil
	case now != nil:
		return false, fmt.Errorf("the cluster is secured: %w", fserr.Exist)
	case old != nil && !l.s.guard.letGo(): // what this server still has of a security that was given up is not of the next one
		return false, fmt.Errorf("the key of a security that was given up is still there; see the log: %w", fserr.Unavailable)
	}
	key, err := l.s.guard.makeKey()
	if err != nil {
		return false, err
	}
	l.s.keys.key.Store(key) // before the events, which may come into the log though they fail here
	secrets, err := pki.NewSecrets(l.s.identity.cluster(), verifier, l.s.o.Wall())
	if err != nil {
		return false, err
	}
	version := uint64(1)
	if old != nil {
		version = old.Version + 1
	}
	set, err := securitySet(secrets, *key, version)
	if err != nil {
		return false, err
	}
	const why = "the cluster is being secured"
	security := &event.Event{Body: &event.Event_SecuritySet{SecuritySet: set}}
	both := []*event.Event{stageEvent(stageOpen), security}
	if old != nil {
		slices.Reverse(both)
	}
	for _, ev := range both {
		if err := l.propose(ev, why); err != nil {
			return false, err
		}
	}
	l.s.log.Info("the cluster is being secured: nodes can join by the password, and who has no certificate is served as well", "fingerprint", secrets.Authority.Fingerprint())
	return true, nil
}

func stageEvent(stage string) *event.Event {
	return &event.Event{Body: &event.Event_ConfigSet{ConfigSet: &event.ConfigSet{Key: securityStage, Value: stage}}}
}

// makeKey returns the cluster key of the directory, which an attempt that broke off may have left, or a new one. Every SecuritySet that may still come into the
// log from here is sealed with that.
func (g *guard) makeKey() (*pki.ClusterKey, error) {
	if key := g.s.keys.key.Load(); key != nil {
		return key, nil
	}
	key, err := readKey(g.s.o.FS, g.s.o.Dir, &identity{Key: true})
	if errors.Is(err, fs.ErrNotExist) {
		var made pki.ClusterKey
		if made, err = pki.NewClusterKey(); err == nil {
			key, err = &made, writeKey(g.s.o.FS, g.s.o.Dir, made)
		}
	}
	if err != nil {
		return nil, err
	}
	return key, g.keepKey(uint64(g.s.fsm.index()))
}

// keepKey notes that the directory has a key. What the log says up to index does not take it back.
func (g *guard) keepKey(index uint64) error {
	return g.note(func(d *identity) { d.Key, d.Opening = true, max(index, 1) })
}

// issueHost gives the host of a leader that has the key its credentials, which it cannot ask anybody for.
func (g *guard) issueHost(ctx context.Context, l *leadership, node string) error {
	dir := g.s.o.opening.Dir()
	_, secrets, err := g.security()
	if err != nil || secrets == nil {
		return err
	}
	if bundle := secrets.Authority.Bundle(); signed(dir, pki.RoleNode, bundle) && signed(dir, pki.RoleAdmin, bundle) {
		return nil
	}
	unlock, err := pki.LockDir(dir, true)
	if err != nil {
		return err
	}
	defer unlock()
	if err := errors.Join(secure.MarkOpening(dir), pki.WriteBundle(dir, secrets.Authority.Bundle())); err != nil {
		return err
	}
	for _, role := range []pki.Role{pki.RoleAdmin, pki.RoleNode} {
		key, csr, err := pki.NewKey()
		if err != nil {
			return err
		}
		pub, err := pki.ReadCSR(csr)
		if err != nil {
			return err
		}
		chain, err := l.issue(ctx, pub, pki.Identity{Cluster: g.s.identity.cluster(), Role: role, Node: node}, "of the host on which the cluster was secured")
		if err != nil {
			return err
		}
		if err := pki.WriteCredentials(dir, pki.EncodeChain(chain), key); err != nil {
			return err
		}
	}
	return nil
}

// signed reports whether a cluster directory has credentials of a role that the authority of a bundle has signed. Others may be left over from another attempt.
func signed(dir string, role pki.Role, bundle []byte) bool {
	creds, err := pki.LoadCredentials(dir, role)
	return err == nil && creds.SignedBy(bundle)
}

// closeSecurity ends the opening: who has no certificate is refused from then on. Without force nobody who runs may be without.
func (l *leadership) closeSecurity(ctx context.Context, force bool, by string) error {
	l.s.lookAround()
	r, err := l.secureStatus(ctx)
	switch {
	case err != nil:
		return err
	case !r.Secured:
		return fmt.Errorf("the cluster is not being secured; begin with: varve cluster secure: %w", fserr.NotSupported)
	case !r.Opening:
		return nil
	}
	voters, keyed := 0, 0
	for _, m := range l.s.raftMembers() {
		if m.Suffrage != raft.Voter {
			continue
		}
		voters++
		if i := slices.IndexFunc(r.Members, func(x *msg.SecureMember) bool { return x.Name == string(m.ID) }); i >= 0 && !r.Members[i].Plain && !r.Members[i].Away {
			keyed++
		}
	}
	if keyed <= voters/2 {
		return fmt.Errorf("%d of %d metadata servers that vote have the cluster key, which is no majority; run auth-node, and auth-node --role admin, on the hosts of the others: %w",
			keyed, voters, fserr.Busy)
	}
	var plain []string
	for _, m := range r.Members {
		if m.Plain {
			plain = append(plain, strings.TrimSpace(m.Name+" "+cmp.Or(m.Host, m.Addr)))
		}
	}
	if unheard := l.unheard(); len(plain) == 0 && len(unheard) > 0 && !force {
		return fmt.Errorf("%s may run, and has not connected to this leader yet: %w", strings.Join(unheard[:min(len(unheard), 8)], ", "), fserr.Unavailable)
	}
	if len(plain) > 0 && !force {
		more := ""
		if len(plain) > 8 {
			more = fmt.Sprintf(" and %d more", len(plain)-8)
			plain = plain[:8]
		}
		return fmt.Errorf("%s%s would be shut out; run auth-node on their hosts (cluster secure --status), or say --force: %w", strings.Join(plain, ", "), more, fserr.Busy)
	}
	return l.setStage(ctx, stageClosed, "the cluster is secured by "+by)
}

// abortSecurity gives up what openSecurity has begun.
func (l *leadership) abortSecurity(ctx context.Context, by string) error {
	var v *state.Security
	var opening bool
	l.s.fsm.view(func(st *state.State) { v, opening = inForce(st) })
	switch {
	case v == nil:
		return nil
	case !opening:
		return fmt.Errorf("the cluster is secured, which is not taken back: %w", fserr.NotSupported)
	}
	// The certificates are of an authority that nobody trusts any more. They are not revoked, since that ends sessions, which go on without.
	return l.setStage(ctx, stageOff, "securing the cluster is given up by "+by)
}

// setStage changes the stage from open to another.
func (l *leadership) setStage(ctx context.Context, stage, why string) error {
	release, err := l.latchSecurityAll(ctx)
	if err != nil {
		return err
	}
	defer release()
	if !l.s.opening() {
		return fmt.Errorf("the cluster is not being secured any more: %w", fserr.Busy)
	}
	if err := l.propose(stageEvent(stage), why); err != nil {
		return err
	}
	l.s.log.Info("stage of security changed", "stage", stage, "cause", why)
	return nil
}
