package cs

import (
	"varve/internal/secure"
	"varve/internal/wire"
)

// What this process has heard of the setting by which data is encrypted.
const (
	unheard uint32 = iota
	encryptOff
	encryptOn
)

// obeyDataTLS has data encrypted, or not, on connections that others make from now on, and notes that for the next process. If it was set while no process of
// this server heard of it, those that came before the leader was heard end, to come back encrypted. One goroutine at a time calls it.
func (s *Server) obeyDataTLS(on bool) {
	n, ok := s.o.Network.(*secure.Network)
	if !ok {
		return
	}
	now := encryptOff
	if on {
		now = encryptOn
	}
	was := s.encrypt.Swap(now)
	n.RequireDataTLS(on)
	if was == now {
		return
	}
	noted := s.whoami().DataTLS
	if noted != on {
		s.updateIdentity(func(d *identity) { d.DataTLS = on })
	}
	if on && was == unheard && !noted {
		s.wire.CloseIf(func(c *wire.Conn) bool { return inClear(c) })
	}
}

// tooLate reports whether a connection began before data was to be encrypted, and says hello after.
func (s *Server) tooLate(c *wire.Conn) bool { return s.encrypt.Load() == encryptOn && inClear(c) }

// inClear reports whether frames go over a connection of members as they are.
func inClear(c *wire.Conn) bool { return c.Keys() != wire.Keys{} }
