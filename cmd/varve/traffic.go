package main

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"

	"varve/internal/bond"
	"varve/internal/planes"
	"varve/internal/traffic"
	"varve/internal/wire/msg"
	"varve/mds/settings"

	"github.com/spf13/pflag"
)

// hostAgent is the process' one agent for the traffic of its host, while somebody has joined it.
var hostAgent struct {
	sync.Mutex
	agent *traffic.Agent
	users int
	stop  func()
}

// seat is a server's or mount's place at the agent. It may be told things before it has joined, and after it has left.
type seat struct {
	classify string
	log      *slog.Logger
	follows  bool        // the addresses by which this host reaches the servers, whatever they are
	bonds    *bond.Bonds // of the host; may be nil

	mu     sync.Mutex
	addrs  []netip.Addr   // of the owner
	agent  *traffic.Agent // nil until it has joined
	member *traffic.Member
	latest *msg.MembersReply
}

// newSeat makes one that has not joined. Call leave at the end.
func newSeat(classify string, log *slog.Logger) *seat { return &seat{classify: classify, log: log} }

// useAgent begins the agent if need be.
func useAgent(log *slog.Logger) *traffic.Agent {
	hostAgent.Lock()
	defer hostAgent.Unlock()
	if hostAgent.users++; hostAgent.agent == nil {
		ctx, cancel := context.WithCancel(context.Background())
		a := traffic.New(traffic.Options{Logger: log})
		ended := make(chan struct{})
		go func() { defer close(ended); a.Run(ctx) }()
		hostAgent.agent, hostAgent.stop = a, func() { cancel(); <-ended }
	}
	return hostAgent.agent
}

// join says by which addresses of this host the owner of the seat talks, and on which ports it listens. The last call counts.
func (s *seat) join(who string, addrs []netip.Addr, listen []uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addrs = addrs
	if s.agent == nil {
		s.agent = useAgent(s.log)
	}
	if s.member != nil {
		s.member.Leave()
	}
	s.member = s.agent.Join(who, addrs, listen, s.classify)
	if s.latest != nil {
		s.member.Told(s.latest)
	}
}

// joinBook is join for a server.
func (s *seat) joinBook(who string, b planes.Book) {
	var addrs []netip.Addr
	var listen []uint16
	for _, at := range b.Addrs() {
		if ap, err := netip.ParseAddrPort(at); err == nil {
			if a := ap.Addr().Unmap(); !slices.Contains(addrs, a) {
				addrs = append(addrs, a)
			}
			if !slices.Contains(listen, ap.Port()) {
				listen = append(listen, ap.Port())
			}
		}
	}
	s.join(who, addrs, listen)
}

// maxReached bounds the servers to which a mount's way is looked up.
const maxReached = 64

// localAddrs returns the addresses of this host from which servers are reached.
func localAddrs(servers []string) (out []netip.Addr) {
	for _, at := range servers[:min(len(servers), maxReached)] {
		if a, err := traffic.LocalAddr(at); err == nil && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// joinClient is join for a mount that reaches the cluster at some addresses, by one of this host's if from says which. Else told follows the ways to all servers.
func (s *seat) joinClient(who, from string, metas []string) {
	var addrs []netip.Addr
	if host, err := planes.Host(); from != "" && err == nil {
		if p, err := planes.All(from).Resolve("", host); err == nil {
			if ap, err := netip.ParseAddrPort(p.Addr(planes.Client)); err == nil {
				addrs = append(addrs, ap.Addr())
			}
		}
	}
	if from == "" {
		addrs, s.follows = localAddrs(metas), true
	}
	s.join(who, addrs, nil)
}

// told takes what a metadata server has told of all servers.
func (s *seat) told(r *msg.MembersReply) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.latest = r
	if s.member == nil {
		return
	}
	s.member.Told(r)
	if s.follows {
		var at []string
		for _, b := range r.Servers {
			at = append(at, planes.Book(b).Addr(planes.Client))
		}
		if addrs := localAddrs(at); len(addrs) > 0 {
			s.member.Move(addrs)
		}
	}
}

// report is what was seen of this host's network, for the leader; nil before join.
func (s *seat) report() *msg.NetReport {
	s.mu.Lock()
	a, addrs := s.agent, s.addrs
	s.mu.Unlock()
	if a == nil {
		return nil
	}
	r := a.Latest().Report()
	r.Bonds = firstOf(s.bonds.Lines())
	r.Warnings = firstOf(append(s.bonds.Warnings(), bond.InterfaceWarnings(addrs)...))
	return r
}

// leave gives the seat up, and ends the agent with the last one.
func (s *seat) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.agent == nil {
		return
	}
	s.member.Leave()
	s.agent, s.member = nil, nil
	hostAgent.Lock()
	defer hostAgent.Unlock()
	if hostAgent.users--; hostAgent.users == 0 {
		hostAgent.stop()
		hostAgent.agent = nil
	}
}

// classifyFlag is --net-classify of a daemon.
func classifyFlag(f *pflag.FlagSet, to *string) {
	f.StringVar(to, "net-classify", "", "on this host, instead of the setting "+settings.NetClassify+": auto, on or off")
}

func checkClassify(v string) error {
	if v == "" {
		return nil
	}
	return asUsage("--net-classify", settings.Check(settings.NetClassify, v))
}
