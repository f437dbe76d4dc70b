// Package bondsim stands in for the kernel's bonding driver in tests, on kernels that do not have it: one interface that sends through several others
// by the transmit hash of the driver, and what /proc/net/bonding would say of it.
//
// The hash is the program's in bpf/bond.c, which was written after the kernel's source, and knows nothing of package ebpf's. As the driver does, it takes the usable
// slaves in the order in which they were enslaved; a slave whose interface loses its carrier is no longer one of them when the next look
// (Options.MIIMon) finds that. Cut drops all that a slave receives, which no look finds.
//
// The interface that stands for the bond may be of any kind that has an Ethernet header, as one end of a veth pair; its own way out is not used.
package bondsim

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel,bpfeb -type bond -type link bond bpf/bond.c -- -O2 -Wall -Werror -Ibpf
