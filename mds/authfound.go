package mds

import (
	"cmp"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"varve/internal/disk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/pki"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds/event"
	"varve/mds/state"
)

// Files in a server's directory, if the cluster has security.
const (
	// keyFile opens the sealed record in the state. It is in no log, and leaves the directory only for servers that join.
	keyFile = "cluster.key"
	// foundingFile has the first events about security, an event.Batch, until they are in the log.
	foundingFile = "founding"
	maxFounding  = 1 << 20
)

// Founding is what makes a new cluster one with security.
type Founding struct {
	Password []byte // by which nodes join; see pki.CheckPassword
	Node     string // of the first server's host; default its hostname
	// ValidFor is how long the first certificates are valid; default pki.ValidFor.
	ValidFor time.Duration
}

// Founded are the credentials of the host on which a cluster was made.
type Founded struct {
	Cluster     id.Cluster
	Node        string
	Fingerprint string // of the authority
}

// HostNode returns the name of this host as certificates have it.
func HostNode() (string, error) {
	name, err := os.Hostname()
	if err == nil {
		err = pki.ValidNode(name)
	}
	if err != nil {
		return "", fmt.Errorf("the name of this host: %w; give another with --node", err)
	}
	return name, nil
}

// InitSecure is Init for a cluster with security. It writes the credentials of this node, and of an administrator on it, into o.ClusterDir.
// The server's directory becomes one last, so that the whole can be repeated.
func InitSecure(o Options, f Founding) (*Founded, error) {
	o = o.withDefaults()
	if o.ClusterDir == "" {
		return nil, errors.New("a cluster with security needs a cluster directory for its credentials")
	}
	if f.Node == "" {
		var err error
		if f.Node, err = HostNode(); err != nil {
			return nil, err
		}
	}
	verifier, err := pki.NewPasswordVerifier(f.Password)
	if err := errors.Join(err, pki.ValidNode(f.Node)); err != nil {
		return nil, err
	}
	out := &Founded{Cluster: id.Cluster(newUUID()), Node: f.Node}
	d, err := initIdentity(&o, out.Cluster)
	if err != nil {
		return nil, err
	}
	if err := checkFresh(o.FS, o.Dir); err != nil {
		return nil, err
	}
	d.Secured, d.Key = true, true
	now := o.Wall()
	secrets, err := pki.NewSecrets(out.Cluster, verifier, now)
	if err != nil {
		return nil, err
	}
	out.Fingerprint = secrets.Authority.Fingerprint()
	key, err := pki.NewClusterKey()
	if err != nil {
		return nil, err
	}
	set, err := securitySet(secrets, key, 1)
	if err != nil {
		return nil, err
	}
	batch := &event.Batch{Events: []*event.Event{{Body: &event.Event_SecuritySet{SecuritySet: set}}}}
	unlock, err := pki.LockDir(o.ClusterDir, true)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := pki.WriteBundle(o.ClusterDir, secrets.Authority.Bundle()); err != nil {
		return nil, err
	}
	for _, role := range []pki.Role{pki.RoleNode, pki.RoleAdmin} {
		pub, private, err := ed25519.GenerateKey(nil)
		if err != nil {
			return nil, err
		}
		chain, who, err := secrets.Authority.IssueNow(pub, pki.Identity{Role: role, Node: f.Node}, now, lifetime(f.ValidFor))
		if err != nil {
			return nil, err
		}
		if err := pki.WriteCredentials(o.ClusterDir, pki.EncodeChain(chain), private); err != nil {
			return nil, err
		}
		batch.Events = append(batch.Events, certIssue(who, now, secrets.Authority.Generation()))
	}
	founding, err := batch.MarshalVT()
	if err != nil {
		return nil, err
	}
	if err := o.FS.MkdirAll(o.Dir); err != nil {
		return nil, err
	}
	if err := errors.Join(writeFile(o.FS, filepath.Join(o.Dir, foundingFile), founding), writeKey(o.FS, o.Dir, key)); err != nil {
		return nil, err
	}
	return out, writeIdentity(o.FS, o.Dir, d)
}

func writeKey(fsys disk.FS, dir string, key pki.ClusterKey) error {
	path := filepath.Join(dir, keyFile)
	if err := writeFile(fsys, path+".new", key.Encode()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := fsys.Rename(path+".new", path); err != nil {
		return err
	}
	return fsys.SyncDir(dir)
}

// readKey returns the cluster key of a server, nil if its cluster has no security.
func readKey(fsys disk.FS, dir string, d *identity) (*pki.ClusterKey, error) {
	if !d.Key { // one that is there is left over from an attempt that broke off
		return nil, nil
	}
	path := filepath.Join(dir, keyFile)
	b, err := readWhole(fsys, path, maxIdentity)
	var key pki.ClusterKey
	if err == nil {
		key, err = pki.DecodeClusterKey(b)
	}
	if err != nil {
		return nil, fmt.Errorf("%s, without which this server cannot read the cluster's secrets: %w; copy it from the directory of another metadata server of %s, "+
			"mode 0600, or make this server anew from another: varve -c %s make-mds --rebuild -r %s", path, err, d.Name, d.Name, dir)
	}
	return &key, nil
}

// securitySet is the event that says what secrets are from now on.
func securitySet(s *pki.Secrets, key pki.ClusterKey, version uint64) (*event.SecuritySet, error) {
	sealed, err := s.Seal(key, version)
	if err != nil {
		return nil, err
	}
	ev := &event.SecuritySet{Version: version, Sealed: sealed, Bundle: s.Authority.Bundle(), Authority: s.Authority.Generation(), Oldest: s.Authority.Oldest()}
	for _, k := range s.CapabilityKeys() {
		ev.Keys = append(ev.Keys, &event.SecuritySet_Key{Generation: k.Generation, Public: k.Public})
	}
	return ev, nil
}

func certIssue(who pki.Identity, from time.Time, authority uint32) *event.Event {
	return &event.Event{Body: &event.Event_CertIssue{CertIssue: &event.CertIssue{Serial: who.Serial, Node: who.Node, Role: uint32(who.Role),
		From: from.UnixNano(), Until: who.NotAfter.UnixNano(), Authority: authority}}}
}

// foundSecurity makes the first events about security, as far as they are not in the log. Each start tries, since any may be the one that
// breaks off.
func (l *leadership) foundSecurity() error {
	path := filepath.Join(l.s.o.Dir, foundingFile)
	if !l.s.identity.First || !l.s.identity.Key {
		return nil
	}
	b, err := readWhole(l.s.o.FS, path, maxFounding)
	if errors.Is(err, fs.ErrNotExist) {
		return l.mustHaveSecurity(path)
	}
	batch := new(event.Batch)
	if err == nil {
		err = batch.UnmarshalVT(b)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	for _, ev := range batch.Events {
		there := false
		l.s.fsm.view(func(st *state.State) {
			switch b := ev.Body.(type) {
			case *event.Event_SecuritySet:
				there = st.Security() != nil
			case *event.Event_CertIssue:
				_, there = st.Cert(b.CertIssue.Serial)
			}
		})
		if there {
			continue
		}
		if err := l.propose(ev, "the cluster is made"); err != nil {
			return err
		}
	}
	if err := l.s.o.FS.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.s.log.Warn("not removed, though it is in the log", "file", path, "err", err)
	}
	return nil
}

// mustHaveSecurity refuses to lead a cluster with security without it.
func (l *leadership) mustHaveSecurity(path string) error {
	var there bool
	l.s.fsm.view(func(st *state.State) { there = st.Security() != nil })
	if !there && l.s.identity.Opening == 0 { // a key that came later may be of an attempt that broke off
		return fmt.Errorf("the cluster was made with security, and neither its log nor %s has any; restore that file", path)
	}
	return nil
}

// lifetime is how long new certificates are valid.
func lifetime(set time.Duration) time.Duration { return cmp.Or(set, pki.ValidFor) }

// keyFor returns the cluster key for a server that joins, nil if there is none or the server has it. It goes to administrators only, over TLS:
// whoever has it and a copy of a journal has the authority.
func (l *leadership) keyFor(c *wire.Conn, req *msg.JoinMeta) ([]byte, error) {
	key := l.s.keys.key.Load()
	if key == nil || req.Server != 0 || l.s.trustVersion() == 0 { // a key without security is of an attempt that broke off
		return nil, nil
	}
	if peer, ok := c.Peer(); !ok || peer.Role != pki.RoleAdmin {
		return nil, fmt.Errorf("a metadata server is added with an administrator's certificate (auth-node --role admin), this one is of %s: %w", peer, fserr.Access)
	}
	if _, err := c.Export(proofExport); err != nil { // a connection for data
		return nil, fmt.Errorf("the cluster key is given where it is encrypted: %w: %w", err, fserr.Access)
	}
	return key[:], nil
}

// takeKey writes the key that the leader gave.
func (d *identity) takeKey(o *Options, key []byte) error {
	if len(key) == 0 {
		return nil
	}
	if len(key) != len(pki.ClusterKey{}) {
		return fmt.Errorf("the leader's cluster key has %d bytes: %w", len(key), fserr.Protocol)
	}
	d.Key = true
	if err := o.FS.MkdirAll(o.Dir); err != nil {
		return err
	}
	return writeKey(o.FS, o.Dir, pki.ClusterKey(key))
}
