package block

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"varve/internal/fserr"
	"varve/internal/hot"
	"varve/iouring/reactor"
)

// BlockSize is the unit, in bytes, in which the image is kept: what is aligned to it costs least, and only whole ones are freed.
const BlockSize = 4096

// File is an open image.
type File interface {
	// ReadAt fills p from off and answers fewer bytes only at the end of the file.
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	// WriteAt writes p at off, never with appendMode here.
	WriteAt(ctx context.Context, p []byte, off int64, appendMode bool) (n int, newOff int64, err error)
	// Fsync makes what was written durable.
	Fsync(ctx context.Context, dataOnly bool) error
	// Fallocate has the modes of fallocate(2).
	Fallocate(ctx context.Context, mode uint32, off, n int64) error
	// Seek finds the next data or hole.
	Seek(ctx context.Context, off int64, whence int) (int64, error)
}

// Image is what a disk is made of. Its methods may be called at once.
type Image interface {
	// Size returns the size in bytes.
	Size(ctx context.Context) (int64, error)
	// Open opens it, for reading alone if readOnly, and returns its size.
	Open(ctx context.Context, readOnly bool) (OpenFile, int64, error)
}

// OpenFile is an open image. Its first Fsync covers all that was ever written to the image, whoever wrote it: a server that was killed before the one that
// serves now may have acknowledged what nobody has flushed since.
type OpenFile interface {
	File
	// Inherit has the next Fsync cover what was written to old, an open of the same image whose session was lost, and not flushed.
	Inherit(old OpenFile)
	// Release ends the open.
	Release(ctx context.Context) error
}

// Guarded is an OpenFile whose session can be lost, and the image be somebody else's then.
type Guarded interface {
	OpenFile
	// Lost says that its session was lost.
	Lost() bool
	// Taken says that somebody else may have been let write to the image since those of its opens were lost. Who has used these must not go on with this one:
	// what he believes to be in the image is not there any more.
	Taken(lost []OpenFile) bool
}

// ErrTaken is why an image is not opened again for those who used it before.
var ErrTaken = fmt.Errorf("the session behind the image was lost, and somebody else was let write to it since: a guest that goes on would damage it; stop the guest, and start this server again: %w", fserr.Busy)

// Kind is what an operation does.
type Kind uint8

// Kinds.
const (
	Read   Kind = iota // fills P from Off
	Write              // writes P at Off
	Flush              // makes all that has ended durable
	Trim               // frees whole blocks within [Off, Off+N): what they read as afterwards is not said
	Zero               // makes [Off, Off+N) read as zeros, freeing it unless NoHole
	Cache              // reads [Off, Off+N), so that whoever caches has it
	Status             // appends to Extents what [Off, Off+N) is made of, or the beginning of it
)

// Op is one operation. Its owner embeds it where the request belongs, sets Done once, and may use it again once Done was called.
type Op struct {
	// Done is called on the thread of the loop that the operation was started on. err is or wraps an fserr.Code.
	Done func(err error)

	Kind    Kind
	FUA     bool   // of Write, Trim, Zero: on stable media before it ends
	NoHole  bool   // of Zero
	P       []byte // of Read and Write: the operation's until Done
	Off, N  int64
	Extents []Extent // of Status; at most as many as it has room for
	Zeros   bool     // of Read: there were fewer bytes in the file, and zeros were put in their place

	d    *Disk
	loop *Loop
	err  error
	task reactor.Task
	next *Op

	parked bool // it waits for another change; guarded by late.mu
}

// Extent is a part of a disk.
type Extent struct {
	Length int64
	Hole   bool // nothing is kept of it: it reads as zeros
}

// Disk is an image file as a block device. Start is called on the threads of loops, all of the same set, Dead and Close by anybody.
type Disk struct {
	f      File
	hot    hot.File // nil: nothing begins on a loop
	ctx    context.Context
	cancel context.CancelFunc
	dead   atomic.Bool
	wrote  atomic.Bool
	late   late
	crew   crew

	flushMu sync.Mutex
	flushes opList
	kick    chan struct{} // there are some
	closed  chan struct{}
	wg      sync.WaitGroup
}

// NewDisk makes a disk of an open file.
func NewDisk(f File) *Disk {
	d := &Disk{f: f, kick: make(chan struct{}, 1), closed: make(chan struct{})}
	d.hot, _ = f.(hot.File)
	d.ctx, d.cancel = context.WithCancel(context.Background())
	d.crew.init(d)
	d.wg.Go(d.flushAll)
	return d
}

// Dead says that the file's session was lost: nothing succeeds any more.
func (d *Disk) Dead() bool { return d.dead.Load() }

// Wrote says that something was to be changed.
func (d *Disk) Wrote() bool { return d.wrote.Load() }

// Cancel has operations that wait for the cluster end with an error.
func (d *Disk) Cancel() { d.cancel() }

// Close ends the disk's goroutines. Preconditions: no operation is under way.
func (d *Disk) Close() {
	d.cancel()
	d.crew.close()
	close(d.closed)
	d.wg.Wait()
}

// Start begins an operation, on the thread of l.
func (d *Disk) Start(l *Loop, op *Op) {
	op.d, op.loop, op.err, op.Zeros = d, l, nil, false
	if op.task.Run == nil {
		op.task.Run = op.deliver
	}
	changes := op.changes()
	if changes && !d.wrote.Load() {
		d.wrote.Store(true)
	}
	switch {
	case op.Kind == Flush:
		d.flush(op)
	case op.Kind == Read && d.hot != nil && l.seated && d.hot.BeginRead(l.seat, op.P, op.Off, op):
	case op.Kind == Write && d.hot != nil && l.seated && !d.late.meets(op) && d.hot.BeginWrite(l.seat, op.P, op.Off, op):
	case changes && !d.late.add(op): // its turn comes
	default:
		d.crew.add(op)
	}
}

var _ hot.Waiter = (*Op)(nil)

// Context implements hot.Waiter.
func (op *Op) Context() context.Context { return op.d.ctx }

// Ended implements hot.Ender.
func (op *Op) Ended(n int, err error) {
	switch {
	case err != nil:
	case op.Kind == Read:
		op.pad(n)
	case op.Kind == Write && op.FUA:
		op.d.flush(op)
		return
	}
	op.err = err
	op.deliver()
}

// pad makes zeros of what a file that is shorter than its disk did not fill.
func (op *Op) pad(n int) {
	if n < len(op.P) {
		clear(op.P[n:])
		op.Zeros = true
	}
}

// end gives an operation its outcome, from any goroutine.
func (op *Op) end(err error) {
	op.err = err
	op.loop.Post(&op.task)
}

func (op *Op) deliver() {
	err := op.err
	if err != nil && fserr.Of(err) == fserr.Stale {
		op.d.dead.Store(true)
	}
	op.P = nil
	op.Done(err)
}

// flush has op end when all that has ended before is durable.
func (d *Disk) flush(op *Op) {
	d.flushMu.Lock()
	d.flushes.push(op)
	d.flushMu.Unlock()
	select {
	case d.kick <- struct{}{}:
	default: // it will be seen
	}
}

// flushAll flushes for all that wait, one time after the other.
func (d *Disk) flushAll() {
	for {
		select {
		case <-d.kick:
		case <-d.closed:
			return
		}
		d.flushMu.Lock()
		all := d.flushes.take()
		d.flushMu.Unlock()
		if all == nil {
			continue
		}
		err := d.f.Fsync(d.ctx, true)
		for op := all; op != nil; {
			next := op.next
			op.end(err)
			op = next
		}
	}
}

// zeroPiece is how much is written at once where zeros have to be written.
const zeroPiece = 1 << 20

var zeros = make([]byte, zeroPiece)

// do carries out what waits, on a goroutine of the crew. It returns false if the operation ends otherwise.
func (op *Op) do() (err error, ended bool) {
	d := op.d
	switch op.Kind {
	case Read:
		n, err := d.f.ReadAt(d.ctx, op.P, op.Off)
		if err == nil {
			op.pad(n)
		}
		return err, true
	case Write:
		_, _, err = d.f.WriteAt(d.ctx, op.P, op.Off, false)
	case Trim:
		from := (op.Off + BlockSize - 1) &^ (BlockSize - 1)
		if n := (op.Off+op.N)&^(BlockSize-1) - from; n > 0 {
			err = d.f.Fallocate(d.ctx, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, from, n)
		}
	case Zero:
		err = op.zero()
	case Cache:
		return op.read(), true
	case Status:
		return op.status(), true
	default:
		return fmt.Errorf("operation %d: %w", op.Kind, fserr.Invalid), true
	}
	d.late.ended(op, d.crew.add)
	if err == nil && op.FUA {
		d.flush(op)
		return nil, false
	}
	return err, true
}

func (op *Op) zero() error {
	d := op.d
	if !op.NoHole {
		if op.N == 0 {
			return nil
		}
		return d.f.Fallocate(d.ctx, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, op.Off, op.N)
	}
	for off, n := op.Off, op.N; n > 0; {
		part := min(n, zeroPiece-off%zeroPiece)
		if _, _, err := d.f.WriteAt(d.ctx, zeros[:part], off, false); err != nil {
			return err
		}
		off, n = off+part, n-part
	}
	return nil
}

var pieces = sync.Pool{New: func() any { p := make([]byte, zeroPiece); return &p }}

// read reads a range for whoever caches it.
func (op *Op) read() error {
	p := pieces.Get().(*[]byte)
	defer pieces.Put(p)
	for off, n := op.Off, op.N; n > 0; {
		part := min(n, zeroPiece-off%zeroPiece)
		if _, err := op.d.f.ReadAt(op.d.ctx, (*p)[:part], off); err != nil {
			return err
		}
		off, n = off+part, n-part
	}
	return nil
}

// status fills Extents, up to their capacity.
func (op *Op) status() error {
	d := op.d
	end := op.Off + op.N
	op.Extents = op.Extents[:0]
	for off := op.Off; off < end && len(op.Extents) < cap(op.Extents); {
		next, hole := end, true
		data, err := d.f.Seek(d.ctx, off, unix.SEEK_DATA)
		switch {
		case err != nil && fserr.Of(err) == fserr.NoDevice: // a hole up to the end, and whatever is beyond it
		case err != nil:
			return err
		case data > off:
			next = min(data, end)
		default:
			hole = false
			if next, err = d.f.Seek(d.ctx, off, unix.SEEK_HOLE); err != nil && fserr.Of(err) != fserr.NoDevice {
				return err
			} else if err != nil { // cut meanwhile
				next, hole = end, true
			}
			next = min(next, end)
		}
		if next <= off {
			return fmt.Errorf("data and hole at %d both end there: %w", off, fserr.IO)
		}
		if n := len(op.Extents); n > 0 && op.Extents[n-1].Hole == hole {
			op.Extents[n-1].Length += next - off
		} else {
			op.Extents = append(op.Extents, Extent{next - off, hole})
		}
		off = next
	}
	return nil
}
