package mds

import (
	"context"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// members asks the server at an address who the members are, in a role.
func membersOf(t *testing.T, c *testCluster, addr string, role msg.Hello_Role) *msg.MembersReply {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	conn, _, err := wire.Dial(ctx, addr, &msg.Hello{Cluster: c.cluster[:], Role: role}, nil, wire.Options{Class: wire.ClassMeta})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r := new(msg.MembersReply)
	if code, err := conn.CallMessage(ctx, wire.Members, wire.ClassMeta, &msg.Members{Net: true}, r); err != nil || code != 0 {
		t.Fatal(code, err)
	}
	return r
}

// TestPlanes: clients are told the addresses for clients, servers those for servers, and a server moves from one to the other by what it is started with.
func TestPlanes(t *testing.T) {
	net2, step := "client=127.0.0.2", 0
	c := newCluster(t, 2, func(o *Options) { o.Net = net2 })
	check := func(host string, single bool) {
		t.Helper()
		for i, addr := range c.addrs {
			_, port, err := net.SplitHostPort(addr)
			if err != nil {
				t.Fatal(err)
			}
			public := net.JoinHostPort(host, port)
			c.eventually("all addresses to be known", func() bool {
				forClients, forServers := membersOf(t, c, public, msg.Hello_ADMIN), membersOf(t, c, addr, msg.Hello_CHUNK_SERVER)
				return slices.Contains(forClients.Addrs, public) && slices.Contains(forServers.Addrs, addr) &&
					strings.HasPrefix(forClients.Leader, host+":") && strings.HasPrefix(forServers.Leader, "127.0.0.1:") && len(forServers.Servers) == 2 &&
					strings.Contains(forServers.Servers[i], " ") != single
			})
		}
		step++
	}
	check("127.0.0.2", false)
	for _, now := range []struct {
		net, host string
	}{{"client=127.0.0.3", "127.0.0.3"}, {"none", "127.0.0.1"}} {
		net2 = now.net
		for i := range c.servers {
			c.kill(i)
			c.start(i)
			c.eventually("all servers to vote and one to lead", func() bool { s := c.leading(); return s != nil && s.otherVoters() == 1 })
		}
		check(now.host, now.net == "none")
	}
	if step != 3 {
		t.Fatal(step)
	}
}
