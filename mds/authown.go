package mds

import (
	"errors"
	"fmt"
	"io"
	"time"

	"varve/internal/pki"
	"varve/journal"
	"varve/mds/event"
	"varve/mds/state"
)

// ownFor is how long a certificate is valid that a server gives itself.
const ownFor = 6 * time.Hour

// issueOwn gives the server a certificate of its own making when the one that it has is over, so that nobody lets it in who could give it another: were all metadata
// servers off for longer than their certificates are valid, none of them could ever lead again. It has the authority's keys in any case. why is returned
// where that is not so, or cannot be done. The leader gives it one that is in the log when this one is due.
func (g *guard) issueOwn(csr []byte, why error) ([][]byte, error) {
	creds := g.s.creds()
	if creds == nil {
		return nil, why
	}
	own, now := creds.Identity(), time.Now() // the clock of handshakes
	if now.Before(own.NotAfter) {
		return nil, why
	}
	v, revoked, err := g.recorded(own.Serial)
	if v == nil || err != nil {
		return nil, errors.Join(why, err)
	}
	if revoked {
		return nil, fmt.Errorf("the certificate of this server was revoked: %w", why)
	}
	secrets, err := g.open(v)
	if err != nil {
		return nil, err
	}
	pub, err := pki.ReadCSR(csr)
	if err != nil {
		return nil, err
	}
	chain, who, err := secrets.Authority.Issue(pub, own, now, now.Add(ownFor))
	if err == nil {
		g.s.log.Warn("the certificate of this server is over and nobody gives it another: it gives itself one", "serial", who.Serial, "until", who.NotAfter, "cause", why)
	}
	return chain, err
}

// recorded returns what this server's journal says last of who may speak, nil if nothing, and whether a certificate is revoked. Without a leader the state is
// that of the last checkpoint.
func (g *guard) recorded(serial string) (v *state.Security, revoked bool, err error) {
	from := g.s.fsm.index() + 1
	g.s.fsm.view(func(st *state.State) {
		v = st.Security()
		c, ok := st.Cert(serial)
		revoked = ok && c.Revoked != 0
	})
	if from > g.s.journal.Last().Index {
		return v, revoked, nil
	}
	r, err := g.s.journal.Reader(from)
	if err != nil {
		return v, revoked, err
	}
	defer r.Close()
	for {
		rec, err := r.Next()
		if errors.Is(err, io.EOF) {
			return v, revoked, nil
		}
		if gap := (*journal.GapError)(nil); errors.As(err, &gap) { // it goes on behind it
			continue
		}
		if err != nil {
			return v, revoked, err
		}
		ev := new(event.Event)
		if err := ev.UnmarshalVT(rec.Payload); err != nil {
			return v, revoked, fmt.Errorf("event %d: %w", rec.Index, err)
		}
		switch b := ev.Body.(type) {
		case *event.Event_SecuritySet:
			v = &state.Security{Version: b.SecuritySet.Version, Sealed: string(b.SecuritySet.Sealed)}
		case *event.Event_CertRevoke:
			for _, x := range b.CertRevoke.Serials {
				revoked = revoked || x == serial
			}
		}
	}
}
