// Package fuse mounts a varve cluster: it speaks the kernel's FUSE protocol and turns every request
// into a call of a Backend.
//
// Use: Mount attaches a Backend at a directory and returns a Session; Session.Wait returns when the
// mount is gone, Session.Unmount ends it within a deadline. Unmount and IsMounted work on the mounts of
// other processes.
//
// Guarantees. A request that blocks (a lock wait, stalled I/O) never stops another one. Names and
// attributes are cached by the kernel for as long as the Backend says (Keeper), and dropped by Session.ForgetMeta: see keep.go.
// Files are opened for direct I/O, so that each read and write reaches the Backend; mapped files go through the page cache
// and are kept right by Session.InvalidateInode. Unmounting never hangs: the last resort is to abort the connection, after
// which the kernel answers by itself. Handles and the locks taken through them are released exactly
// once, also when the kernel never says so because the connection was aborted.
//
// Rooms. format.go and parse.go know the protocol and nothing else; request.go is one request,
// independent of the way it arrived; dispatch.go and the ops_*.go files answer it; hot.go has reads and writes go on without a goroutine; choose.go
// chooses the transport: loops.go reads /dev/fuse on reactors, uring.go adds FUSE over io_uring, dev.go reads it by goroutines; handover.go and uringhold.go have a mount go on in another program; capture.go hands what was answered to who captures the mount; mount.go and unmount.go talk to the kernel about the mount itself.
//
// Locks. The tables of a Session (nodes, files, owners, flights, budget, notes) each have a mutex of
// their own; none is held while another is taken, nor during a call of the Backend or a system call, but that an answer which the
// kernel may keep is written between Keeper.Hold and Unhold. So
// there is no lock order to keep.
//
// Notifications. Writing FUSE_NOTIFY_INVAL_INODE makes the kernel take page locks, and a page that is
// being read is locked until that READ is answered; writing FUSE_NOTIFY_INVAL_ENTRY takes the lock of
// the directory, which an operation in that directory holds until it is answered. So a notification
// must never be written by something that such an answer waits for. InvalidateInode and
// InvalidateEntry therefore only queue; one goroutine, which holds no lock, writes. ForgetMeta, ForgetAttrs and ForgetAllMeta
// write themselves: they touch no page and no directory's lock.
//
// The process that serves a mount must not open files of it: the Go runtime asks the kernel whether a new file
// can be polled, from the very thread that would wake up the reader of /dev/fuse; and a page fault on a
// mapped file, or a vfork(2), stops a thread that the scheduler counts on. Use another process.
//
// Interrupts. The kernel reports every signal, also harmless ones (SIGCHLD, the Go scheduler's
// SIGURG), and applications do not expect EINTR from a disk file. So a wait for a lock is canceled by any
// signal, and every other operation only once its caller is being killed.
package fuse
