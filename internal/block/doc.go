// Package block makes a disk of an image file, for servers of block protocols: reads and writes of a fixed size that begin on the thread of a
// reactor, flushes that share, and what has to wait on goroutines.
//
// Use: StartLoops makes the threads, NewDisk a disk of an open File. A server embeds an Op in each of its requests, sets its fields, and calls
// Disk.Start on the thread of a Loop; Op.Done is called on the same thread, exactly once. Memory for payload comes from the Loop, whose Get
// answers nil when the limit is reached: the server then stops reading whoever asked, and goes on when Put has made room. Disk.Close, when no Op is
// under way, ends the disk's goroutines; closing the file is the caller's.
//
// What it guarantees: a flush covers every operation of the disk that had ended before it began, on whatever loop; an operation with FUA has
// been flushed when it ends. Of changes that overlap, one that has to wait is made before those that were started after it. A read beyond the
// end of a file that has become shorter gives zeros. When the session behind the file is lost, every operation fails for ever, and Dead says so.
//
// Nothing is allocated for a read or write that begins on the loop.
package block
