// Package raftlog keeps Raft's log in append-only segment files. It is a raft.LogStore that costs one write and one
// fdatasync for each batch of entries, however many there are.
//
// Open a Log and give it to Raft. All methods may be called at once. What StoreLogs was given is on stable media when it returns,
// unless Options.Lazy said otherwise for it: then Stable waits for it, and a background sync has begun. Entries that were read or
// stored must not be changed: they are shared.
//
// A log is removed from the front by whole segments. What is removed at the end, and the knowledge of where the front is, are records
// like the entries, so that nothing that was written is ever overwritten.
//
// A disk that is full fails StoreLogs before anything was written, and the log stays usable. Any other fault ends the log: what
// is on the disk is unknown then, so every later call fails, and Options.Failed is told once.
package raftlog
