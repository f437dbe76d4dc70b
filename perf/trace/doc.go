// Package trace is what was done once, and can be done again: the operations of a capture, or of a trace that another program made, in one form.
//
// Use: Load reads a file whatever its format is: what `varve perf capture` writes, fio's iolog of version 2 and 3, blktrace's binary files (one for
// each CPU, named by any of them) and the text of blkparse. Write makes a capture of it, WriteFio an iolog, Summary a table for people. Operations are
// in the order in which they began.
//
// What other formats do not say. An iolog says when operations began and not how long they took; one of version 2 does not even say that, but for its
// waits. Then Timed is false. In an iolog each file is one handle. blktrace knows a disk and no files: each device is one file of that
// name, without handles' closing and opening; an operation is from issue to completion as the driver saw it, or from queue to completion where
// the device has no driver below it that issues. A Trace may be used by several goroutines that only read it.
package trace
