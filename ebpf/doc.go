// Package ebpf tells kinds of traffic apart on the wire, shares links among them, keeps strangers off, watches connections, and knows how Linux bonds
// spread traffic over their slaves.
//
// Use: Attach puts a classifier on an interface; Counters and Peers say how many frames and bytes of each class, and with whom, came and
// went; Close takes it off. Shape has the kernel share the way out among classes, with the classifier's priorities; Protect drops what comes to some ports from
// who is no member; Watch notes round-trip times and retransmissions by peer. ParseBond reads what the kernel says of a bond and Advice what is wrong with
// it; Flow.Hash is the hash by which the bonding driver chooses a slave, and ChoosePorts the source ports that spread
// connections evenly.
//
// The classifier counts, and sets priorities and marks; it never drops. It, the guard and the watch end with the process that made them, also when that is
// killed: the kernel drops the link with its last descriptor. What stays after a crash is a filter where the kernel has no TCX (before 6.6), and Shape's queues:
// neither does any harm alone, and the next start takes them over. Where the privilege (CAP_BPF, CAP_NET_ADMIN) or the kernel is missing, each returns an
// error that wraps ErrNotSupported, and everything else works without it.
//
// Classifier, Guard, Watcher and Shaper may be used by several goroutines at once; bonds and hashes are pure functions. The package knows nothing of
// varve: classes are numbers that the caller names.
//
// The programs are in bpf/, compiled by clang 14 into the objects that are committed beside this file; building needs no
// compiler. `go generate` makes them again.
package ebpf

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel,bpfeb -type count -type peer classify bpf/classify.c -- -O2 -Wall -Werror -Ibpf
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel,bpfeb -type network -type sender guard bpf/guard.c -- -O2 -Wall -Werror -Ibpf
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel,bpfeb -type host -type health watch bpf/watch.c -- -O2 -Wall -Werror -Ibpf
