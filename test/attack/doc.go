// Package attack has a machine that is in the same network as a secured cluster, and is not part of it, try to read, write, join and slow it: real servers
// and a mount, each server in a network namespace of its own (package netns), the attacker in another one with many addresses.
//
// Each attack must be refused and logged, at a bounded rate, and must leave the mount's writer and the servers' memory and descriptors as they were. At
// the end all that the writer wrote is verified, and the journal is searched for what the attacker did.
package attack
