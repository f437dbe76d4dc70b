// Package mds is the metadata server: it decides filesystem operations, orders the resulting events with Raft,
// materializes them, and looks after sessions, leases, chunk servers and repair.
//
// Init makes the directory of a new cluster's first server, Join that of a further one. Open starts the server in such a
// directory; Run waits until it ends; Shutdown ends it in order, Kill abruptly.
//
// What a server has agreed on is in node (Raft, the state, the journal). What only a leader has, and loses with its
// leadership, is in leadership: latches, counters, sessions' deadlines, registered chunk servers, the read lease. It is made
// anew at each gain, so nothing of an earlier term can act in a later one.
//
// The directory holds mds.json (who the server is; written once), lock (taken while a process uses the directory), raft.db
// (Raft's log and votes), snapshots/ (Raft's snapshots: the state with its place in the journal) and journal/.
//
// Lock order: latches (sorted keys), then freeze of an inode, then leadership.mu, then node.mu (the state). No
// lock but a latch or a freeze is held over a wait for another process. A callback's own effects (a flush of size and mtime, a
// release) bypass the latch of the inode that the caller of the callback holds.
package mds
