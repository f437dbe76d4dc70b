// Package history answers questions about the past of a cluster from its journal: the state at any index, what each
// event touched under which path, what differs between two moments, who changed a file and why, the first event
// after which a test fails, what fills the log, and whether all of it is sound.
//
// A Source is where the journal is: Dir is one in a directory, which is only read; the command line has another for a
// running cluster. At and Advance replay; Watch walks events with the state before each; Diff, Blame, Bisect, Verify,
// CollectStats and the Explain functions are what people ask. Nothing here prints: Texter says what an event means in one line.
//
// Replay is a pipeline: one goroutine reads records into batches, some decode them, the caller's applies them in order.
// Batches are used again, so its memory is bounded by their number; the rest is the state itself. An event
// that a callback gets is valid until the callback returns.
//
// A State that this package returns may be read and cloned, and given to Advance. One call of Advance uses its Source and its State
// alone; a Source may serve several calls one after the other.
package history
