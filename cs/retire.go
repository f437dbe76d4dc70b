package cs

import (
	"fmt"

	"varve/internal/disk"
	"varve/internal/fserr"
)

// retired is why the directory of a removed server is not opened.
func (d identity) retired(dir string) error {
	return fmt.Errorf("%v was removed from cluster %s for good; erase %s to use it for a new server: %w", d.Server, d.Name, dir, fserr.Retired)
}

// retire remembers that the cluster has removed this server, so that the directory does not start again even where no metadata server can say so.
func (s *Server) retire() error {
	s.updateIdentity(func(d *identity) { d.Retired = true })
	return s.whoami().retired(s.o.Dir)
}

// Retired reports whether the directory is that of a server that was removed from its cluster and has noticed it.
func Retired(dir string) bool {
	d, err := readIdentity(disk.OS{}, dir)
	return err == nil && d.Retired
}

// takeTier keeps what tier the cluster says that the server has: 1 is tier 0, and 0 says nothing.
func (s *Server) takeTier(told uint32) {
	if told == 0 || s.whoami().Tier == told-1 {
		return
	}
	s.updateIdentity(func(d *identity) { d.Tier = told - 1 })
	s.log.Info("tier changed", "tier", told-1)
}
