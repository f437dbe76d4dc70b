// Package ebpf tells kinds of traffic apart on the wire, and knows how Linux bonds spread it over their slaves.
//
// Use: Attach puts a classifier on an interface; Counters says how many frames and bytes of each class came and
// went; Close takes it off. ParseBond reads what the kernel says of a bond and Advice what is wrong with
// it; Flow.Hash is the hash by which the bonding driver chooses a slave, and ChoosePorts the source ports that spread
// connections evenly.
//
// The classifier counts and sets priorities, it never drops. It ends with the process that attached it, also when that is
// killed: the kernel drops the link with its last descriptor. Where the privilege (CAP_BPF, CAP_NET_ADMIN) or the kernel
// (6.6) is missing, Attach returns an error that wraps ErrNotSupported, and everything else works without it.
//
// A Classifier may be used by several goroutines at once; everything else is pure functions. The package knows nothing of
// varve: classes are numbers that the caller names.
//
// The programs are in bpf/, compiled by clang 14 into the objects that are committed beside this file; building needs no
// compiler. `go generate` makes them again.
package ebpf

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel,bpfeb -type count classify bpf/classify.c -- -O2 -Wall -Werror -Ibpf
