package wire

import "unsafe"

// bufferAt returns the n bytes that begin at p, which is the first byte of a buffer of that length.
func bufferAt(p *byte, n int) []byte { return unsafe.Slice(p, n) }
