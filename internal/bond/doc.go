// Package bond knows the bonding driver: what /proc/net/bonding and sysfs say of a bond, which of its links a connection leaves by, and from which ports to
// open connections so that they use all of them.
//
// Use: Read (or Parse) returns a Bond; Bond.Warnings says what an administrator should change; Bond.Link says by which slave a Flow leaves; Ports
// chooses source ports that spread connections to one peer over the slaves.
//
// The hashes are those of Linux: drivers/net/bonding/bond_main.c (bond_xmit_hash and what it calls), with the rule of kernels since 2022
// that the lowest bit is discarded for layer3+4 and encap3+4 only. A flow that is not encapsulated hashes the same by encap2+3 as by
// layer2+3, and by encap3+4 as by layer3+4, and only such flows are asked for. The link is the hash modulo the number of links in use, in the order in
// which they were enslaved. layer3+4 is symmetric: swapping both ends of a connection changes no hash, so both hosts of a connection choose links of the same
// number if they have equally many in use.
package bond
