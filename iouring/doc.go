// Package iouring drives the kernel's io_uring: a Ring owned by one thread, to which operations on files, sockets and timers are
// submitted in batches and from which completions are reaped. It stands alone and knows nothing of who uses it.
//
// # Use
//
// New, then a method for each operation (Read, RecvMulti, Timeout, ...) to queue it, Submit or SubmitWait to hand the queue over and wait,
// Reap to take completions, Close. Each operation carries a number of the caller's, data, which comes back in each of its
// completions, and returns a handle (Op) that Cancel and TimeoutUpdate take; Op.Slot is a small index that no other operation
// under way has. If the queue is full it is handed over by itself; ErrFull means that Options.InFlight operations are under way.
//
//	r, err := iouring.New(iouring.Options{})
//	op, err := r.RecvMulti(fd, group, 7) // completions with Data 7
//	for {
//		err = r.Submit(1) // hands over, waits for one completion
//		done = r.Reap(done[:0], 64)
//		for i := range done { ... group.Buffer(done[i].Buffer)[:done[i].N] ... }
//	}
//
// # Guarantees
//
// A Ring belongs to one goroutine, which must be locked to its thread (runtime.LockOSThread) from New, or Enable, to Close: the best modes of
// the kernel allow one submitting thread only, and a thread that ends takes its operations along. Only Waker.Wake may be called from
// elsewhere.
//
// Every operation that was queued gets completions, the last of them without More, unless Close takes it back. None is lost: those that do
// not fit into the ring wait in the kernel, and Reap fetches them. Nothing is allocated for an operation once its slot was used with
// as many buffers.
//
// Memory. Each operation has a slot, which refers to its buffers and to what its entry points to (vectors, message headers, addresses,
// durations) until its last completion was reaped. So a caller may forget a buffer; it must not change or reuse
// it before that. After a zero-copy send the last completion is the notification. A ring is reachable until it is closed, whoever forgets
// it. Close cancels, waits, and only then frees; if something does not end in time it leaves the memory allocated for good. Memory that the
// caller mapped itself must stay mapped as long. Registered buffers stay referred to until SetBuffer replaces them, and by operations under way.
//
// Files named by a descriptor must be open when they are submitted, not after; descriptors should be blocking, since io_uring
// answers EAGAIN instead of waiting for those with O_NONBLOCK.
//
// # Kernels
//
// The floor is 5.15. Probe finds out what is there; where something is missing the ring falls back by itself unless the table says
// otherwise, and Options.Without forces that for tests.
//
//	feature                        kernel  without it
//	multishot poll, direct accept  5.13, 5.15  (always there)
//	CQESkip                        5.17    Timeout ignores Success
//	SubmitAll                      5.18    a faulty entry splits a batch
//	RingFD                         5.18    a look-up of the descriptor on each call
//	MsgRing                        5.18    Message fails; use a Waker
//	CoopTaskrun                    5.19    completions interrupt the owner
//	SparseTables                   5.19    tables are registered with empty entries
//	DirectAlloc                    5.19    AcceptDirectMulti fails; accept descriptors and SetFile
//	BufferRing                     5.19    buffers go back by operations with the next Submit
//	MultishotAccept                5.19    every completion of AcceptMulti is without More
//	CancelMany                     5.19    CancelFD and CancelAll cancel one by one
//	SQE128, CQE32, UringCmd        5.19    New or Raw fails
//	SingleIssuer                   6.0     the kernel does not know the owner
//	MultishotRecv                  6.0     every completion of RecvMulti is without More
//	SendZC                         6.0     the kernel copies; one completion
//	CancelFixed                    6.0     CancelFD of a registered file cancels one by one
//	DeferTaskrun                   6.1     completions are made at any time
//	SendmsgZC                      6.1     as SendZC
//	ReportUsage                    6.2     Completion.Copied does not tell
//	MultishotTimeout               6.4     every completion with Repeat is without More
//	NoSQArray                      6.6     an indirection in the queue
//	SyncMsgRing                    6.13    a Waker is an eventfd that the ring reads
//	NoIOWait                       6.15    waits count as waiting for a disk
//
// Sources: the kernel's include/uapi/linux/io_uring.h; the manual pages io_uring_setup(2), io_uring_enter(2), io_uring_register(2) and
// io_uring_prep_*(3) of liburing, which name the versions; "io_uring and networking in 2023" in liburing's wiki.
package iouring
