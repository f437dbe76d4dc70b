// Package ledger has, for each session that a client of this host has open, a small file from which a later process learns that the client has died, and by which it
// may end the session.
//
// A client writes an entry (Write) before it asks for a session, keeps it locked (flock) for as long as it lives, and removes it (Remove) when the session was
// closed. The kernel gives the lock back when the last thread of the process has ended, however it ended, and never before. So an entry that can be locked is of a
// client that is no more, which sends nothing any more but what the kernel still has of it; that numbers of processes are used again does not matter. Dead
// returns such entries, each locked by the caller: of several heirs one has it, and when he dies before he has removed it the next one does.
//
// An entry holds a secret. What the metadata servers know of a session, its nonce, is the first half of the secret's hash, so who reads the journal cannot end
// somebody's session. Entries lie in a directory that only their user can enter, and are believed only there.
//
// Format of a file CLUSTER-RANDOM: one line of JSON, see Record, of at most 8 KiB. It is written under another name, locked, and then renamed, so nobody finds it
// unlocked or in parts. It need not survive the machine: an entry of another boot of the kernel (or of another machine, which shares the directory, and
// whose locks are not to be seen) is passed over, and removed after a day, as is what cannot be read.
//
// Everything works without entries; then a dead client's session ends when its lease is over.
package ledger
