// Package planes is by which addresses and interfaces the kinds of traffic go: clients', replication, repair, and heartbeats with metadata.
//
// A Spec is what a person says (--net client=eth0,replication=10.1.0.5): for each plane an address of this host, or an interface. Resolve looks on
// the host and gives Planes: where a server listens, and, as wire.TCP's Bind, from where its connections leave. A Book is the text by which
// a server's addresses are told to others and kept in the state: its address, and those of planes that have another. One that has no planes is just
// IP:PORT, as it was before there were planes.
//
// Planes are where traffic goes, and no barrier: each port of a server answers what every other does. All but Bind are pure, or take what they look at
// as an argument; Planes are safe for concurrent use.
package planes
