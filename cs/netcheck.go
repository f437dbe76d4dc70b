package cs

import (
	"varve/internal/netcheck"
	"varve/internal/wire/msg"
)

// netLane is the lane to other chunk servers on which the network is measured: nothing else waits for what is under way there.
const netLane = 16

// newMember returns the server's part in a check of the network.
func (s *Server) newMember() *netcheck.Member {
	return netcheck.New(netcheck.Options{
		Network: s.o.Network, Addr: s.Addr(), Wall: s.o.Wall, Logger: s.log,
		Warnings: func(string) ([]string, string) {
			if s.o.Bonds == nil {
				return nil, "this server does not watch bonds"
			}
			return s.o.Bonds.Warnings(), ""
		},
		Hello: func() *msg.Hello {
			return &msg.Hello{Cluster: s.cluster[:], Role: msg.Hello_CHUNK_SERVER, Server: uint32(s.id), Version: s.o.Version, Lane: netLane}
		},
	})
}
