// Package hot is the contract by which a read or write goes on without a goroutine of its own: the thread of a reactor that received the request
// begins it, and is told on the same thread when it has ended. Who serves requests (a FUSE transport, a block export) is on one side,
// the core client on the other.
//
// Use: a server of requests starts its reactors, and has the client take a Seat on each before the first request (Host.Sit). For a request it
// calls File.BeginRead or BeginWrite with that seat. If the answer is false, nothing was done, and the request goes on in a goroutine by
// ReadAt or WriteAt, which do whatever has to wait. If it is true, Ended is called exactly once, never before Begin has returned.
//
// What begins must not wait, nor allocate: no lock that is held while another machine is asked, no dial, no layout that is not known. What
// goes wrong under way (a lost connection, a stale epoch, a checksum that does not match, a time-out) is the callee's to put right, in a
// goroutine if need be, with the context of the Ender if that is a Waiter; Ended is then called on the loop's thread all the same.
//
// Memory: p belongs to the callee until Ended, also if the caller has lost interest meanwhile. It is read in place and filled in place where its address
// and the request are aligned to 4096 bytes; else it is copied.
package hot
