package main

import (
	"varve/internal/planes"
	"varve/internal/wire"

	"github.com/spf13/pflag"
)

// netFlag is --net of servers, for those planes that mean something to them.
func netFlag(f *pflag.FlagSet, to *string, which string) {
	f.StringVar(to, "net", "", "addresses or interfaces of this host by kind of traffic, PLANE=IP[:PORT]|INTERFACE,..., for the planes "+which+
		"; \"none\": all by the server's one address (default: as recorded)")
}

// checkNet refuses what no Spec is, and what is not there on this host.
func checkNet(text string) error {
	spec, err := planes.Parse(text)
	if err != nil || spec.IsZero() {
		return asUsage("--net", err)
	}
	host, err := planes.Host()
	if err != nil {
		return err
	}
	_, err = spec.Resolve("", host)
	return asUsage("--net", err)
}

func asUsage(what string, err error) error {
	if err == nil {
		return nil
	}
	return usagef("%s: %w", what, err)
}

// clientAddr is where clients reach the metadata server that was made at addr with planes that were checked.
func clientAddr(addr, net string) string {
	spec, err := planes.Parse(net)
	if err != nil || spec.IsZero() {
		return addr
	}
	host, err := planes.Host()
	if err != nil {
		return addr
	}
	at, err := spec.Resolve(addr, host)
	if err != nil {
		return addr
	}
	return at.Addr(planes.Client)
}

// dialFrom is the network of a mount that is to leave this host by an address or interface; "" for any.
func dialFrom(at string, tcp wire.TCP) (wire.Network, error) {
	if at == "" {
		return tcp, nil
	}
	host, err := planes.Host()
	if err != nil {
		return nil, err
	}
	p, err := planes.All(at).Resolve("", host)
	if err != nil {
		return nil, usagef("mount option \"net=%s\": %w", at, err)
	}
	return tcp.WithBind(p.Bind), nil
}
