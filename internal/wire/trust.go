package wire

import (
	"context"
	"errors"
	"fmt"

	"varve/internal/fserr"
	"varve/internal/pki"
	"varve/internal/wire/msg"
)

// greetExport is the label of the keying material of a metadata server's greeting.
const greetExport = "EXPORTER-varve-greeting"

// MetaProof returns what a metadata server puts into its answer to a hello, nil on a connection that is not encrypted: nobody is to take it for one there.
func MetaProof(c *Conn, s *pki.Signer) []byte {
	if s == nil {
		return nil
	}
	material, err := c.Export(greetExport)
	if err != nil {
		return nil
	}
	return s.Greet(material)
}

// DialMeta is Dial to a metadata server of a secured cluster, which shows that it is one before h is asked anything: certificates say no more than that it is a node. In an
// insecure cluster t is nil.
func DialMeta(ctx context.Context, addr string, hello *msg.Hello, h Handler, t *pki.Trust, o Options) (*Conn, *msg.HelloReply, error) {
	if t == nil {
		return Dial(ctx, addr, hello, h, o)
	}
	o.Greeted = func(c *Conn, reply *msg.HelloReply) error {
		material, err := c.Export(greetExport)
		if err == nil {
			err = t.Verifier().VerifyGreeting(reply.Proof, material)
		}
		if err != nil {
			return fmt.Errorf("%w: %w", err, fserr.Unavailable)
		}
		return nil
	}
	c, reply, err := Dial(ctx, addr, hello, h, o)
	if !errors.Is(err, pki.ErrUnknownKey) {
		return c, reply, err
	}
	// What is newer than known is signed by the authority, whoever says it.
	if lerr := learnTrust(ctx, addr, hello, t, o); lerr != nil {
		return nil, nil, errors.Join(err, lerr)
	}
	return Dial(ctx, addr, hello, h, o)
}

func learnTrust(ctx context.Context, addr string, hello *msg.Hello, t *pki.Trust, o Options) error {
	o.Greeted = nil
	c, _, err := Dial(ctx, addr, &msg.Hello{Cluster: hello.Cluster, Role: hello.Role, Version: hello.Version}, nil, o)
	if err != nil {
		return err
	}
	defer c.Close()
	s, _, err := AskTrust(ctx, c, t.Version(), nil)
	if err == nil && s != nil {
		err = t.Learn(s)
	}
	return err
}

// AskTrust asks a metadata server what is newer than known of who may speak, and with csr, if it leads, for a new certificate for who this end is
// (pki.Asker).
func AskTrust(ctx context.Context, c *Conn, known uint64, csr []byte) (*pki.Statement, [][]byte, error) {
	reply := new(msg.TrustReply)
	code, err := c.CallMessage(ctx, Trust, ClassMeta, &msg.Trust{Known: known, Csr: csr}, reply)
	if err == nil && code != fserr.OK {
		err = fmt.Errorf("%s: %w", reply.Detail, code)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("ask %s who may speak: %w", c.RemoteAddr(), err)
	}
	if reply.Version <= known || len(reply.Bundle) == 0 {
		return nil, reply.Chain, nil
	}
	s := &pki.Statement{Version: reply.Version, Bundle: reply.Bundle, Revoked: reply.Revoked, Cross: reply.Cross, Signature: reply.Signature}
	for _, k := range reply.Keys {
		s.Keys = append(s.Keys, pki.CapabilityKey{Generation: k.Generation, Public: k.Public})
	}
	return s, reply.Chain, nil
}
