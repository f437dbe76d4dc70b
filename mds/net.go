package mds

import (
	"time"

	"varve/internal/wire/msg"
	"varve/mds/settings"
	"varve/mds/state"
)

// tellEvery is how often Options.Told is called.
const tellEvery = time.Second

// tell has Options.Told know of the servers and the settings of the network.
func (s *Server) tell() {
	for sleep(s.ctx, tellEvery) {
		r := s.members(msg.Hello_METADATA_SERVER)
		s.addNet(r)
		s.o.Told(r)
	}
}

// addNet adds what daemons need to know of all servers to tell their traffic apart.
func (s *Server) addNet(r *msg.MembersReply) {
	s.fsm.view(func(st *state.State) {
		st.Metas(func(m *state.Meta) bool {
			r.Servers = append(r.Servers, m.Addr)
			return true
		})
		st.Servers(func(x *state.Server) bool {
			if !x.Retired {
				r.Servers = append(r.Servers, x.Addr)
			}
			return true
		})
		st.Settings(func(c state.Setting) bool {
			if settings.IsNet(c.Key) {
				r.Settings = append(r.Settings, &msg.Setting{Key: c.Key, Value: c.Value})
			}
			return true
		})
	})
}
