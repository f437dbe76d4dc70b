package mds

import (
	"log/slog"

	"varve/internal/bond"
	"varve/internal/netcheck"
)

// newMember returns the server's part in a check of the network.
func (s *Server) newMember() *netcheck.Member {
	return netcheck.New(netcheck.Options{Network: s.o.Network, Hello: s.peerHello, Addr: s.identity.Addr, Wall: s.o.Wall, Logger: s.log, Warnings: lookAtBonds})
}

// lookAtBonds says what is wrong with the host's bonds at this moment. A metadata server has too little traffic to watch them all the time.
func lookAtBonds(string) ([]string, string) {
	b := bond.Watch(bond.Options{Logger: slog.New(slog.DiscardHandler)})
	defer b.Close()
	return b.Warnings(), ""
}
