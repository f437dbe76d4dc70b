package mds

import (
	"context"
	"fmt"
	"slices"

	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds/state"
)

// secureStatus tells who is on the way, and who is not.
func (l *leadership) secureStatus(ctx context.Context) (*msg.SecureStatusReply, error) {
	s := l.s
	r := new(msg.SecureStatusReply)
	s.fsm.view(func(st *state.State) {
		v, opening := inForce(st)
		r.Secured, r.Opening = v != nil, opening
	})
	for _, m := range s.raftMembers() {
		one := &msg.SecureMember{Name: string(m.ID), Addr: s.public(string(m.Address))}
		if m.ID == s.raftID {
			one.Plain = !s.keyed()
		} else {
			p, _ := s.peers.get(string(m.Address))
			one.Plain, one.Away = p.ok && !p.keyed, !p.ok
		}
		if one.Plain || one.Away {
			one.Need = "auth-node, and auth-node --role admin, on its host"
		}
		r.Members = append(r.Members, one)
	}
	conns := make(map[id.ServerID]*wire.Conn)
	l.mu.Lock()
	for server, x := range l.servers {
		if x.conn != nil && l.live(x) {
			conns[server] = x.conn
		}
	}
	l.mu.Unlock()
	s.fsm.view(func(st *state.State) {
		st.Servers(func(x *state.Server) bool {
			if !x.Retired {
				r.Members = append(r.Members, secureMember(x.ID.String(), x.Host, x.Addr, conns[x.ID]))
			}
			return true
		})
		st.Sessions(func(x *state.Session) bool {
			if !x.Fenced {
				r.Members = append(r.Members, secureMember("session "+fmt.Sprint(uint64(x.ID)), x.Host, x.Mount, s.clients.get(x.ID)))
			}
			return true
		})
	})
	return r, l.confirmRead(ctx)
}

// unheard names who may run though he is not connected: he may not have found a new leader yet, or be about to connect anew.
func (l *leadership) unheard() (names []string) {
	var open []id.SessionID
	now := bootNow()
	l.mu.Lock()
	for session, x := range l.sessions {
		if !x.lapsed && !x.closing {
			open = append(open, session)
		}
	}
	for server, c := range l.servers {
		if c.conn == nil && now-c.heard <= l.s.o.ServerLease {
			names = append(names, server.String())
		}
	}
	l.mu.Unlock()
	slices.Sort(names)
	slices.Sort(open)
	for _, session := range open {
		if l.s.clients.get(session) == nil {
			names = append(names, "session "+fmt.Sprint(uint64(session)))
		}
	}
	return names
}

func secureMember(name, host, addr string, c *wire.Conn) *msg.SecureMember {
	m := &msg.SecureMember{Name: name, Host: host, Addr: addr, Away: c == nil}
	if c != nil {
		_, ok := c.Peer()
		m.Plain = !ok
	}
	if m.Plain || m.Away {
		m.Need = "auth-node on its host"
	}
	return m
}
