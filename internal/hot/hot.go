package hot

import (
	"context"

	"varve/iouring/reactor"
)

// Ender is told how an operation ended. It is called on the thread of the loop whose seat the operation was begun with.
type Ender interface {
	// Ended has the number of bytes that were read, fewer than asked for only at the end of the file, or written: all, unless err is not nil. err is or wraps
	// an fserr.Code.
	Ended(n int, err error)
}

// Waiter is an Ender that has a context for what of its operation has to wait after all, in a goroutine. The context is done when nobody waits for
// the operation any more, since its caller is being killed or the mount goes away: then the operation ends soon, with that error. Any goroutine may ask
// for it, before Ended is called.
type Waiter interface {
	Ender
	Context() context.Context
}

// Seat is a loop's number at the client it sits with.
type Seat int

// Host is a client that loops can sit with.
type Host interface {
	// Sit makes what the client needs on a loop: connections, memory. It may be called by any goroutine but the loop's.
	Sit(l *reactor.Loop) (Seat, error)
	// Leave ends it. What is under way ends first: Leave returns when no Ended is called any more. Call it before the loop is closed.
	Leave(s Seat)
}

// File is an open file whose reads and writes can be begun on a seat's thread. One that cannot be written to answers false, and WriteAt has
// the error.
type File interface {
	// BeginRead begins to fill p from off.
	BeginRead(s Seat, p []byte, off int64, e Ender) bool
	// BeginWrite begins to write p at off, never at the end of the file as O_APPEND does.
	BeginWrite(s Seat, p []byte, off int64, e Ender) bool
}

// Syncer is a File whose flushes can be begun on a seat's thread as well.
type Syncer interface {
	File
	// BeginFsync begins to put on stable media what was written through any handle of the client; with dataOnly the modification time may stay
	// behind. Ended has 0 bytes.
	BeginFsync(s Seat, dataOnly bool, e Ender) bool
}
