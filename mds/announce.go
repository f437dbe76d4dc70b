package mds

import (
	"context"
	"slices"
	"time"

	"varve/internal/discover"
	"varve/internal/wire/msg"
	"varve/mds/settings"
	"varve/mds/state"
)

const (
	// membersEvery is how often Options.Members is told if nothing has changed: somebody may have written to the list.
	membersEvery = 10 * time.Second
	// announceLook is how often the setting is looked at, and announceAgain how long after a failure it is tried again: the interface may come.
	announceLook, announceAgain = time.Second, 30 * time.Second
)

// tellMembers tells Options.Members who the members are, while somebody leads: who hears no leader may have been removed.
func (s *Server) tellMembers() {
	if s.o.Members == nil {
		return
	}
	var told []string
	var at time.Time
	for sleep(s.ctx, announceLook) {
		if s.leaderAddr() == "" || !s.inConfiguration() {
			continue
		}
		addrs := s.members(msg.Hello_CLIENT).Addrs
		if len(addrs) == 0 || slices.Equal(addrs, told) && time.Since(at) < membersEvery {
			continue
		}
		told, at = addrs, time.Now()
		s.o.Members(slices.Clone(addrs))
	}
}

// announce answers multicast questions for metadata servers while the setting net.mdns is on.
func (s *Server) announce() {
	for sleep(s.ctx, announceLook) {
		if !s.announces() {
			continue
		}
		ctx, cancel := context.WithCancel(s.ctx)
		done := make(chan error, 1)
		cluster, name := s.Cluster()
		go func() {
			done <- discover.Announce(ctx, discover.Server{Cluster: cluster, Name: name, Server: s.identity.server().String(), Addr: s.public(s.identity.Addr), Logger: s.log})
		}()
		var err error
		for on := true; on; {
			select {
			case err = <-done:
				on = false
			case <-time.After(announceLook):
				if !s.announces() {
					s.log.Info("not announced by multicast any more: the setting is off")
					cancel()
				}
			}
		}
		cancel()
		if err != nil && s.ctx.Err() == nil {
			s.log.Warn("not announced by multicast, trying again", "in", announceAgain, "err", err)
			sleep(s.ctx, announceAgain)
		}
	}
}

func (s *Server) announces() (on bool) {
	s.fsm.view(func(st *state.State) { on = settings.On(st.Config(settings.MDNS)) })
	return on
}
