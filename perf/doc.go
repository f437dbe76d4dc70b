// Package perf is a load generator: it reads and writes a target as told by Options and returns what it measured.
//
// Use: Run(ctx, Options) returns a Result, which WriteText prints for people and encoding/json for programs. Cancelling ctx
// ends the run early; the Result then holds what ran. A target that fails, fills up or goes away ends up in the Result
// too; Run returns an error only if nothing could run.
//
// What is measured. Latency is from the start of an operation to its end. With Options.Rate (open loop) it counts from
// the moment at which the operation was due, whether or not the generator came to start it: a target that stalls
// for a second is charged for every operation due in that second (no coordinated omission; see Gil Tene's wrk2).
// Laying files out, reading back and the generator's own work on the contents of blocks are not measured.
//
// Replay does the operations of a trace (perf/trace) once more, and compares what is measured with what was recorded (replay.go, replayplan.go).
//
// Verification. With Options.Verify every 512 bytes of a block say which run, job, block and write they belong to, under a
// checksum (block.go). A block that is read is compared with what was acknowledged last, and named lost, old, torn, misplaced, duplicated
// (a write that is at its own place as well, or that came back after a later one had been read) or corrupt, once for each write that should be there. After the
// run, all that it wrote is read back from the target, past the page cache where the kernel lets it. What was acknowledged is kept in memory, so it goes with the process.
//
// Several runs at once, and several hosts. Open makes a load ready and Load.Run begins it at a told moment; its Samples, a second each, add up exactly in a Gather,
// from however many hosts (package agent). What begins before the end of Options.Ramp is kept apart; Options.Steady ends the load when it has settled.
//
// What does not end. An operation under way is in its worker's flights, so that one that never ends is named with what it waits for (watch.go). Steps that cannot be
// interrupted, such as opening and reading back, are given up when they stand still for Options.Settle, and left behind.
//
// Names. With Options.Metadata the operations are on names instead of data: create, stat, lookup, list, rename and delete, in a directory of each job
// (names.go), by system calls, through the core client, or at the metadata servers themselves (mds:ADDR), where each job is a client that caches nothing
// and is seen to the end of a change of leader. No two operations under way meet on a file, so the outcome of each is known, and with Options.Verify the
// directory is compared after the run with what was acknowledged.
//
// Jobs work on ranges of their own: a file each below mount:DIR, named varve-perf.N, which are kept for the next run; a part each of
// file:PATH. On cluster:NAME/PATH each has a client of its own, which is what a mount has without FUSE. On cs:ADDR each job has a connection, and chunks that belong to no file (id.ChunkID.IsScratch), which the server makes for it
// and removes when the run ends, however it ends. A chunk server lets administrators, as which this package says hello, change no other chunks, so a
// run cannot damage a file; it takes the server's time and room like any client. Run may be called several times at once, on different targets.
package perf
