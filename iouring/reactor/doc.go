// Package reactor runs sockets, files and timers on one thread: a Loop is a goroutine that is locked to its thread and waits for
// the kernel in one place, and everything else is small state machines that are called back when something has ended.
//
// Use: Start makes a Loop. Post has it run a Task; everything else is called on its thread only, in tasks and in
// callbacks, which must not block. Listen accepts connections, Adopt takes a connected socket, File makes operations
// on a descriptor possible, Poll waits for one to be ready, SetTimer starts a Timer. Close ends it all.
//
// Two implementations do the same: a ring (package iouring) where the kernel lets this process have one, and epoll with
// a few goroutines for files elsewhere. Start chooses; Kind and Reason tell people which and why.
//
// Memory. Nothing is allocated for an operation: Op, Send, Task and Timer are embedded by whoever needs them. A buffer that was handed
// to an operation is the kernel's until its callback: Op.Done, Send.Done, OnFilled, or OnClose for all of a connection. The kernel is never left with a
// buffer that Go could give to somebody else: Close of the loop waits for the last completion.
//
// Limits. What waits is bounded, and Stats counts it: operations that the kernel has (Options.Operations; more wait in their owner's
// memory), messages and bytes queued on a connection (Sends, SendBytes: above that it is not read, so that a peer which does not read its answers
// cannot ask for more), bytes received and not consumed (Held).
//
// A connection receives in one of two ways. Small things arrive in buffers that all connections of the loop share and go to OnData, by one
// operation that goes on by itself. A large payload is announced with Fill: what came of it already is copied, the rest is
// received into the given buffer, as one operation. After that, receives are asked for one by one for a while, since an
// operation that goes on by itself has taken what should have gone to the next Fill.
//
// The package knows nothing of varve.
package reactor
