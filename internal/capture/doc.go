// Package capture is what a mount did: the records of its operations, how they leave the process that serves the mount, and the file
// they are kept in. No data is in them.
//
// Use. The process that serves a mount listens (Listen) and, when somebody connects, serves a capture (Serve): it makes Buffers, to which the
// mount adds a Record of each operation that it has answered. The process that wants the capture dials (Dial) and takes records until it
// says Stop; it finds the names of files (Names) and writes the file (Writer). Reader reads such a file.
//
// Guarantees. Buffers never make an operation wait for whoever takes the records: what does not fit is dropped and counted. Add may be called
// by any number of goroutines at once; a Writer, Reader, Stream and Names belong to one goroutine each, but that Stop may be called from another. A file
// whose writer was killed can be read up to its last whole block; format.go has the bytes.
//
// Who may capture: the user whose process serves the mount, in its network namespace. Names of sockets are abstract, so anybody may take one; both sides
// refuse a peer of another user than their own and root.
package capture
