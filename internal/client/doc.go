// Package client is the core client of a varve cluster: it keeps a session with the metadata leader, holds leases
// and layouts of files, and replicates what is written to the chunk servers. FUSE, the load generator and the
// command line are built on it.
//
// Dial opens a session and returns a Client; its methods are filesystem operations. Open and Create return a File, one
// open of a regular file. Close ends the session. All methods may be called at once. Errors wrap an fserr.Code
// (fserr.Of finds it).
//
// What it guarantees:
//   - A write that returned is on every current replica; after Fsync it is on stable media of every current replica, and
//     the size that covers it is committed at the metadata servers.
//   - While a server cannot be reached, operations wait and are retried; a changing metadata request is carried
//     out once, since a retry carries the same (session, seq). Waiting ends with ctx, Options.Timeout or Close.
//   - A write whose caller gave up half-way goes on in the background, its blocks still locked, until all replicas
//     are equal; so does a truncate.
//   - When the session was lost, every File of it fails with fserr.Stale for ever; nothing of it is tried again under
//     the next session.
//
// Lock order, outermost first; a lock is never waited for while holding one further down:
//
//	inode.leaseOp              one Open or Release request of the inode at a time
//	inode.appendOp             one exclusive append at a time
//	inode.ranges               blocks that are read, written or punched
//	inode.flushOp, attrOp      one flush of data, one flush of size and mtime at a time
//	inode.layoutMu (RW)        held for reading while a data request is under way, for writing to change mode or layout
//	inode.mu, session.mu       short, no waiting
//	cacheShard.mu (RW)         what is held under leases of metadata (metaCache); also for reading between Hold and Unhold
//
// What goes on on the thread of a reactor (hotseat.go) takes the same locks, but waits for none that is held while another machine is asked.
//
// No request to a metadata server is sent while inode.layoutMu is held, and callbacks take only attrOp (for a bounded
// time), layoutMu and what is below it. So the metadata server, which answers nobody until a callback is answered,
// cannot deadlock with us.
package client
