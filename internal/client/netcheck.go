package client

import (
	"context"

	"varve/internal/fserr"
	"varve/internal/netcheck"
	"varve/internal/pki"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// serveNet answers what the leader asks about the network, for an administrator: one test at a time, of traffic that goes after guests'.
func (c *Client) serveNet(ctx context.Context, conn *wire.Conn, f *wire.Frame) {
	c.netOnce.Do(func() {
		c.net = netcheck.New(netcheck.Options{
			Network: c.o.Network, Addr: conn.LocalAddr(), Client: true, Logger: c.log,
			Warnings: func(string) ([]string, string) {
				if c.o.Bonds == nil {
					return nil, "this client does not watch bonds"
				}
				return c.o.Bonds.Warnings(), ""
			},
			Hello: func() *msg.Hello {
				return &msg.Hello{Cluster: c.o.Cluster[:], Role: msg.Hello_ADMIN, Version: c.o.Version} // not as the session, whose connections it would replace
			},
		})
	})
	if creds := c.o.creds(); f.Type == wire.NetTest && creds != nil && creds.Identity().Role == pki.RoleReader {
		_ = conn.Reply(f, fserr.Denied, nil, nil) // servers let it measure nothing
		return
	}
	c.net.Serve(ctx, conn, f, msg.Hello_ADMIN) // by the leader, who asked who it is
}
