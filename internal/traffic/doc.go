// Package traffic does on a host what the settings net.* say about the traffic of its daemons: frames are told apart by kind and counted, by interface and by
// peer; the way out is shared among kinds; what strangers send to varve's ports is dropped; round-trip times and retransmissions are noted.
//
// Each process has one Agent; each server or mount in it joins it with what it needs (Need), and says when it is told of other members. Many processes share
// interfaces, so one of them owns all that is done: who holds the lock in a directory of the network namespace, /run/varve/net/NAMESPACE. Each process keeps
// its needs in a file there that it has locked; the owner adds up those of all that live, acts, and writes down once a second what was seen
// (stat.json), which everybody may read. When the owner ends, however it ends, the kernel takes its programs off and gives its lock up, and
// another process is owner within a second. What the kernel does not take off is Shape's queues, and filters where there is no TCX (before
// Linux 6.6): a new owner first takes off what it finds of these; where none is left, `varve net clean` does.
//
// Where the privilege (CAP_NET_ADMIN, CAP_BPF), the kernel or the directory is missing nothing is done, and Snapshot says what is off and why. Nothing here
// is needed for the servers to work. The guard is lifted where the members have not been told for a minute: a wrong list of networks cannot keep a
// cluster from itself for longer.
//
// Agent and Member may be used by several goroutines at once.
package traffic
