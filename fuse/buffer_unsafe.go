package fuse

import (
	"sync"
	"unsafe"
)

// A buffer holds one message. Its memory starts at a page; data (of a WRITE that came or of a READ that
// is answered) starts at the second page, so that it may go to a disk or a registered ring buffer as it
// is, and what precedes the data is put right before it.
type buffer struct {
	mem   []byte
	class int
}

// dataStart is where data begins in a buffer.
const dataStart = pageSize

// bufferClasses are the lengths of data that buffers are made for, in bytes. The last is what the kernel may
// send at most; a page more is there for names.
var bufferClasses = [...]int{4 << 10, 16 << 10, 64 << 10, 256 << 10, maxWrite}

var bufferPools [len(bufferClasses)]sync.Pool

// getBuffer returns a buffer with room for n bytes from dataStart on, its contents undefined. n is at most maxWrite.
func getBuffer(n int) *buffer {
	class := 0
	for class < len(bufferClasses)-1 && bufferClasses[class] < n {
		class++
	}
	if b, ok := bufferPools[class].Get().(*buffer); ok {
		return b
	}
	return &buffer{mem: pageAligned(dataStart + bufferClasses[class] + pageSize), class: class}
}

// put gives b back; nothing may refer to it any more.
func (b *buffer) put() { bufferPools[b.class].Put(b) }

// pageAligned returns n bytes that start at a page.
func pageAligned(n int) []byte {
	b := make([]byte, n+pageSize)
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(b))) & (pageSize - 1))
	return b[skip : skip+n : skip+n]
}
