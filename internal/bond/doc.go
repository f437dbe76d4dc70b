// Package bond has connections to one peer use all links of a bond, and says what is wrong with the bonds of this host.
//
// Watch begins to look at the bonds that the kernel has. Bonds.Spread, as the Spread of a wire.TCP, then gives the connections of one peer source ports
// that the bond's transmit hash (package ebpf) takes to different slaves, the first connection to the first usable one and so on; at the other end, if
// that is a bond with the same hash and as many slaves, what comes back takes the same ones. Who has several connections asks Lanes how many it should have, and,
// each time Changed says so, once a second, and of those that wait for something many times a second, Judge what to do with each: a connection that is on a slave which is not its own any more is to be moved, one
// that is on a slave which has died without the driver's knowledge to be dropped, and made again.
//
//	driver: a slave is down, or up again     the modulus of its hash is another one: ports that were chosen for that too stay (ebpf.Pair.Choose), others Move
//	a peer is silent on one connection       two attempts to connect over its slave, and over another: if only the other succeed, the slave is dead for this peer:
//	                                         what waits on it is to Drop, what comes next is on the others; it is tried again until it answers twice: Move back
//
// Where the hash does not look at ports, or looks at a number that nobody can choose, Spread leaves the port to the kernel, Judge finds nothing to do, and Warnings says
// what to set. A nil *Bonds has no bonds. All methods may be called at once.
package bond
