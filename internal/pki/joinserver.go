package pki

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"varve/internal/id"
)

// JoinHost is the metadata server that Joiner joins nodes to.
type JoinHost interface {
	// JoinSecrets returns what passwords are verified with, and the bundle, if this server leads; else where the leader is, "" if that is
	// not known.
	JoinSecrets() (s *Secrets, leader string)
	// JoinCluster returns the UUID and the name of the cluster.
	JoinCluster() (id.Cluster, string)
	// JoinOpening reports whether the cluster is being secured, and serves who has no certificate too.
	JoinOpening() bool
	// Issue gives a certificate. It returns when that is recorded.
	Issue(ctx context.Context, pub ed25519.PublicKey, who Identity, reason string) ([][]byte, error)
}

// ErrRefused says that a certificate will not be given, whoever is asked.
var ErrRefused = errors.New("refused")

// Joiner serves nodes that have no certificate yet.
type Joiner struct {
	host  JoinHost
	log   *slog.Logger
	limit *limiter
	said  Refusals
}

var _ JoinServer = (*Joiner)(nil)

// NewJoiner returns one.
func NewJoiner(host JoinHost, log *slog.Logger) *Joiner {
	return &Joiner{host: host, log: log, limit: newLimiter(time.Now)}
}

const (
	firstTimeout = 5 * time.Second  // for the first message
	proofTimeout = 25 * time.Second // for the proof, which takes a slow machine some seconds
	electionWait = time.Second      // after which to ask again where nobody leads
)

// ServeJoin implements JoinServer.
func (j *Joiner) ServeJoin(ctx context.Context, c *tls.Conn) {
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.NetConn().Close() })
	defer stop()
	peer := c.RemoteAddr().String()
	if err := j.serve(ctx, c, peer); err != nil {
		j.said.Log(j.log, slog.LevelInfo, "a node has not joined", peer, "err", err)
	}
}

func (j *Joiner) serve(ctx context.Context, c *tls.Conn, peer string) error {
	if err := c.SetDeadline(time.Now().Add(firstTimeout)); err != nil {
		return err
	}
	if err := c.HandshakeContext(ctx); err != nil {
		return err
	}
	refuse := func(r refusal) error {
		if _, err := writeMessage(c, joinChallenge{Refusal: r}); err != nil {
			return err
		}
		return errors.New(r.Detail)
	}
	var first joinFirst
	firstRaw, err := readMessage(c, &first)
	if err != nil {
		return err
	}
	role, rerr := ParseRole(first.Role)
	pub, cerr := ReadCSR(first.CSR)
	if err := errors.Join(rerr, ValidNode(first.Node), cerr); err != nil || first.Version != joinVersion || len(first.Nonce) != nonceSize {
		return refuse(refusal{Detail: "the request to join is not understood here; is this a newer version of varve?", Final: true})
	}
	secrets, leader := j.host.JoinSecrets()
	if secrets == nil {
		return refuse(refusal{Detail: "this metadata server does not lead", Leader: leader, Again: electionWait})
	}
	turn, wait := j.limit.begin(source(peer), func() { c.NetConn().Close() })
	if turn == nil {
		return refuse(refusal{Detail: "too many attempts", Again: wait})
	}
	defer turn.end()
	if h, ok := c.NetConn().(interface{ Admitted() }); ok {
		h.Admitted() // it is one of maxUnderWay now, not of those who may want anything
	}
	cluster, name := j.host.JoinCluster()
	v := secrets.Password
	challengeRaw, err := writeMessage(c, joinChallenge{Cluster: cluster.String(), Name: name, Bundle: string(secrets.Authority.Bundle()),
		Nonce: newNonce(), Salt: v.Salt, Stretch: v.Stretch})
	if err != nil {
		return err
	}
	cs := c.ConnectionState()
	channel, err := cs.ExportKeyingMaterial(exportLabel, nil, exportSize)
	if err != nil {
		return err
	}
	if err := c.SetDeadline(time.Now().Add(proofTimeout)); err != nil {
		return err
	}
	var proof joinProof
	if _, err := readMessage(c, &proof); err != nil {
		return err
	}
	if err := c.SetDeadline(time.Now().Add(proofTimeout)); err != nil {
		return err
	}
	said := exchange(firstRaw, challengeRaw, channel)
	who := Identity{Cluster: cluster, Role: role, Node: first.Node}
	if !v.verify(proof.Proof, said) {
		wait := turn.failed()
		j.said.Log(j.log, slog.LevelWarn, "wrong password of a node that wants to join", peer, "node", first.Node, "role", role.String(), "next_attempt_in", wait)
		_, err := writeMessage(c, joinResult{Refusal: refusal{Detail: "wrong password", Again: wait, Final: true}})
		return err
	}
	turn.succeeded()
	result := joinResult{Answer: v.answer(said), Opening: j.host.JoinOpening()} // before it is issued: it may be given up meanwhile
	result.Chain, err = j.host.Issue(ctx, pub, who, "joins with the password from "+peer)
	switch {
	case errors.Is(err, ErrRefused):
		result.Refusal = refusal{Detail: err.Error(), Final: true}
	case err != nil: // the leadership is over, or nobody knows; the same key gets the same certificate
		_, leader := j.host.JoinSecrets()
		result.Refusal = refusal{Detail: err.Error(), Leader: leader, Again: electionWait}
	default:
		j.log.Info("node has joined", "peer", peer, "node", who.Node, "role", role.String())
	}
	_, err = writeMessage(c, result)
	return err
}

// source is what attempts are counted by: an IPv4 address, or the network of an IPv6 address, which a host can have many of.
func source(peer string) netip.Prefix {
	ap, err := netip.ParseAddrPort(peer)
	if err != nil {
		return netip.Prefix{}
	}
	a := ap.Addr().Unmap().WithZone("")
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}
