package main

import (
	"fmt"
	"log/slog"
	"os"

	"varve/internal/bond"
	"varve/internal/wire"
)

// The environment says where the bonding driver's files are (tests have their own), and may leave the choice of ports to the kernel.
const (
	bondingDir  = "VARVE_BONDING"
	bondingPort = "VARVE_BOND_PORTS" // off: connections take the links of a bond by chance
)

// watchBonds begins to watch the bonds of this host, and returns the network by which connections are spread over their links.
func watchBonds(log *slog.Logger) (*bond.Bonds, wire.TCP) {
	b := bond.Watch(bond.Options{Dir: os.Getenv(bondingDir), Unsteered: os.Getenv(bondingPort) == "off", Logger: log})
	return b, wire.TCP{Spread: b.Spread}
}

// firstOf bounds what a heartbeat carries.
func firstOf(lines []string) []string {
	const limit = 32
	return lines[:min(len(lines), limit)]
}

// printBonds prints what the bonds of hosts do, and what is wrong with interfaces, each once: several servers of a host say the same.
func (a *app) printBonds(all []*netJSON, of []string) {
	said := map[string]bool{}
	for _, kind := range []struct {
		name  string
		lines func(*netJSON) []string
	}{
		{"bond", func(n *netJSON) []string { return n.Bonds }},
		{"warning", func(n *netJSON) []string { return n.Warnings }},
	} {
		for i, n := range all {
			if n == nil {
				continue
			}
			for _, line := range kind.lines(n) {
				if text := of[i] + line; !said[text] {
					said[text] = true
					fmt.Fprintf(a.out, "%-9s %s\n", kind.name, text)
				}
			}
		}
	}
}
