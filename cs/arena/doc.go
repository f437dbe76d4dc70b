// Package arena is the memory for payload: one mapping whose size is fixed at start, cut into buffers of a few sizes, outside the
// Go heap.
//
// Use: New; Get a buffer of n bytes, or nil if there is none now; Put it back when neither the program nor the kernel uses it any
// more. Who was refused is told by Options.Freed, or waits in Wait. Memory and Offset are for registering all of it with a ring.
//
// Guarantees. Buffers start at multiples of 4096, are powers of two long, from MinBuffer to MaxBuffer, and never overlap. Get and Put do
// not allocate and do not wait for more than a short lock. All methods may be called at once. A buffer that is put back twice, or that is not of
// the arena, ends the process: it would be two requests' payload.
//
// The mapping is cut into slabs of SlabSize. A slab belongs to one class, which is one length of buffers, while any of its buffers is
// out, and to nobody else. Options.Guarantee slabs are kept for each class, which no other class ever gets, so that none can
// starve another for ever: a request of a class waits for requests of its own class at most.
package arena
