package cs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/pki"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

const (
	// dialTimeout bounds connection and handshake with one metadata server. A few of them fit into a lease.
	dialTimeout = 1500 * time.Millisecond
	// registerTimeout bounds a registration, which may have to be committed.
	registerTimeout = 3 * time.Second
	membersTimeout  = time.Second
	// leaderInFlight bounds the requests of the leader that are handled at once. Answers to heartbeats are not read
	// while so many are under way, so it is above anything a planner asks for.
	leaderInFlight = 4096
)

// leader is a connection to the leader on which this server is registered.
type leader struct {
	conn  *wire.Conn
	addr  string
	reply *msg.RegisterServerReply
	since int64 // boot-time clock before the registration was sent
}

// finder finds the leader among the metadata servers that it knows. One goroutine calls find.
type finder struct {
	cluster id.Cluster
	version string
	network wire.Network
	trust   func() *pki.Trust // nil, or returns nil: the cluster is insecure, or nobody is obeyed
	logger  *slog.Logger
	// aside, if set, is the network without the plane of heartbeats: where nobody answers by that, it is asked where the members are for servers.
	aside wire.Network
	more  func() []string // Options.More, or nil

	mu    sync.Mutex
	metas []string // the last leader first
}

// learn adds addresses; those that are known keep their place.
func (f *finder) learn(addrs []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range addrs {
		if len(f.metas) < maxMetas && a != "" && !slices.Contains(f.metas, a) {
			f.metas = append(f.metas, a)
		}
	}
}

// replace sets the addresses to those of the members.
func (f *finder) replace(addrs []string) {
	if len(addrs) == 0 || len(addrs) > maxMetas {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.metas = slices.Clone(addrs)
}

func (f *finder) known() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.metas)
}

func (f *finder) first(addr string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if i := slices.Index(f.metas, addr); i > 0 {
		f.metas = slices.Insert(slices.Delete(f.metas, i, i+1), 0, addr)
	}
}

// find asks each metadata server once, those first that another named as leader, and registers with the one that leads. h answers what the
// leader asks on the connection. An error wraps Retired or WrongCluster if all that answered said so, else Unavailable.
func (f *finder) find(ctx context.Context, h wire.Handler, reg *msg.RegisterServer) (*leader, error) {
	queue, tried := f.known(), map[string]bool{}
	var faults []error
	more, most := f.more, maxMetas
	for len(tried) < most {
		if len(queue) == 0 && more != nil { // once
			queue, more = more(), nil
			most = len(tried) + maxMetas
		}
		if len(queue) == 0 {
			break
		}
		addr := queue[0]
		queue = queue[1:]
		if tried[addr] {
			continue
		}
		tried[addr] = true
		l, hint, err := f.try(ctx, addr, h, reg)
		if err == nil {
			f.learn([]string{addr})
			f.first(addr)
			return l, nil
		}
		faults = append(faults, fmt.Errorf("%s: %w", addr, err))
		if errors.Is(err, fserr.Retired) || ctx.Err() != nil {
			break
		}
		if hint != "" {
			queue = slices.Insert(queue, 0, hint)
		}
	}
	if err := errors.Join(faults...); errors.Is(err, fserr.Retired) || allWrong(faults) {
		return nil, err
	}
	f.askAround(ctx)
	return nil, fmt.Errorf("no leader among %d metadata servers: %w: %w", len(tried), fserr.Unavailable, errors.Join(faults...))
}

// askAround learns where the metadata servers are for other servers from those that are reached in any other way, such as at their addresses for clients.
func (f *finder) askAround(ctx context.Context) {
	if f.aside == nil {
		return
	}
	known := f.known()
	if f.more != nil {
		known = append(known, f.more()...)
	}
	for _, addr := range known[:min(len(known), 2*maxMetas)] {
		dctx, cancel := context.WithTimeout(ctx, dialTimeout)
		hello := &msg.Hello{Cluster: f.cluster[:], Role: msg.Hello_CHUNK_SERVER, Version: f.version}
		c, _, err := wire.Dial(dctx, addr, hello, nil, wire.Options{Class: wire.ClassMeta, Network: f.aside})
		cancel()
		if err != nil {
			continue
		}
		ok := f.askMembers(ctx, c)
		c.Close()
		if ok {
			return
		}
	}
}

// askMembers takes over where a metadata server says that all are.
func (f *finder) askMembers(ctx context.Context, c *wire.Conn) bool {
	ctx, cancel := context.WithTimeout(ctx, membersTimeout)
	defer cancel()
	reply := new(msg.MembersReply)
	code, err := c.CallMessage(ctx, wire.Members, wire.ClassMeta, &msg.Members{}, reply)
	if err != nil || code != fserr.OK || len(reply.Addrs) == 0 {
		return false
	}
	f.replace(reply.Addrs)
	return true
}

func allWrong(faults []error) bool {
	for _, err := range faults {
		if !errors.Is(err, fserr.WrongCluster) {
			return false
		}
	}
	return len(faults) > 0
}

// trusts returns what metadata servers have to show that they are such by, nil if they need not.
func (f *finder) trusts() *pki.Trust {
	if f.trust == nil {
		return nil
	}
	return f.trust()
}

// try registers with one metadata server. If that does not lead, hint is whom it takes for the leader.
func (f *finder) try(ctx context.Context, addr string, h wire.Handler, reg *msg.RegisterServer) (l *leader, hint string, err error) {
	dctx, cancel := context.WithTimeout(ctx, dialTimeout)
	hello := &msg.Hello{Cluster: f.cluster[:], Role: msg.Hello_CHUNK_SERVER, Server: reg.Server, Version: f.version}
	c, _, err := wire.DialMeta(dctx, addr, hello, h, f.trusts(), wire.Options{InFlight: leaderInFlight, Network: f.network})
	cancel()
	if err != nil {
		return nil, "", err
	}
	since := bootTime()
	rctx, cancel := context.WithTimeout(ctx, registerTimeout)
	defer cancel()
	reply := new(msg.RegisterServerReply)
	code, err := c.CallMessage(rctx, wire.RegisterServer, wire.ClassMeta, reg, reply)
	switch {
	case err != nil:
	case code == fserr.NotLeader:
		hint, err = f.members(ctx, c), code
	case code != fserr.OK:
		err = code
	case reply.Server == 0 || reg.Server != 0 && reply.Server != reg.Server || reply.HeartbeatMs == 0 || reply.LeaseMs == 0:
		err = fmt.Errorf("registration answered with server %d, heartbeat %d ms, lease %d ms: %w", reply.Server, reply.HeartbeatMs, reply.LeaseMs, fserr.Protocol)
	default:
		c.Mark(wire.ClassHeartbeat)
		return &leader{conn: c, addr: addr, reply: reply, since: since}, "", nil
	}
	c.Close()
	return nil, hint, err
}

// members asks a metadata server who the others are. It returns the leader's address, if that is known.
func (f *finder) members(ctx context.Context, c *wire.Conn) string {
	ctx, cancel := context.WithTimeout(ctx, membersTimeout)
	defer cancel()
	reply := new(msg.MembersReply)
	code, err := c.CallMessage(ctx, wire.Members, wire.ClassMeta, &msg.Members{}, reply)
	if err != nil || code != fserr.OK {
		return ""
	}
	f.learn(reply.Addrs)
	return reply.Leader
}
