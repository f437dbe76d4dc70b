// Package mds is the metadata server: it decides filesystem operations, orders the resulting events with Raft,
// materializes them, and looks after sessions, leases, chunk servers and repair.
//
// Init makes the directory of a new cluster's first server, Join that of a further one. Serve runs the server of a directory, anew when its
// disk was full. Open starts the server in such a
// directory; Run waits until it ends; Shutdown ends it in order, Kill abruptly.
//
// What a server has agreed on is in fsm (the state and the journal behind Raft). What only a leader has, and loses with its
// leadership, is in leadership: latches, counters, sessions' deadlines, registered chunk servers. It is made anew at each gain, so
// nothing of an earlier term can act in a later one.
//
// The directory holds mds.json (who the server is), lock (taken while a process uses the directory), raft/ (Raft's log), votes (its term
// and vote), snapshots/ (Raft's snapshots: the state with its place in the journal), journal/, reserve (room for when the disk is full) and,
// if the server has stopped for good, stopped.json.
//
// Lock order: the grant latch of an inode, its freeze, the latches of package decide in their order, membership; then fsm.mu, then
// leadership.mu. fsm.mu and leadership.mu are never held over a wait. A grant or a freeze is held while clients are called
// back; the latches of package decide are not, so that what a client must still do before it answers can be done.
package mds
