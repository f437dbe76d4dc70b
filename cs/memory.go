package cs

import (
	"errors"
	"fmt"
	"os"

	"varve/cs/arena"
	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/wire"
)

// Data buffers must fit the arena.
const _ = uint(arena.MaxBuffer - wire.MaxData)

const (
	// DefaultMemory is Options.Memory if it is not given, MinMemory the least that a server can do with, in bytes.
	DefaultMemory = 768 << 20
	MinMemory     = 128 << 20

	// besides is what a process takes up besides the arenas, the board of package local, and the Go heap.
	besides = 24 << 20
	// maxOps is the number of requests under way: enough to keep any disk busy, few enough for those that come next.
	maxOps = 128
	// boardBytes is what a chunk on the board takes up.
	boardBytes = 128 << 10
	// indexBytes is what a block of a write journal takes up at most in its index (package ssd).
	indexBytes = 29
	// smallIndex is an index for which there is room in any case.
	smallIndex = 4 << 20
	// tableBytes is what an answer to ChunkTable holds.
	tableBytes = 4 * chunk.Blocks
)

// division is how a server's memory is divided.
type division struct {
	clients, peers int64 // arenas
	tables         int   // chunks with their table in memory (store.Options.MaxOpen)
	stages         int   // staging buffers of the store
	conns          int   // connections
	locals         int   // chunks on the board
}

// divide divides the memory of a server.
func divide(memory int64) division {
	payload := memory / 2
	peers := max(payload/3, arena.MinSize(1))
	mib := int(memory >> 20)
	return division{
		clients: payload - peers,
		peers:   peers,
		tables:  min(max(mib*4/3, 64), 4096),
		stages:  min(max(mib/24, 4), 64),
		conns:   min(max(mib, 128), 8192),
		locals:  min(max(mib/4, 16), 1024),
	}
}

// heapLimit returns how much of a server's memory is left for the Go heap by payload of so many bytes and a board of so many chunks.
func heapLimit(memory, payload int64, locals int) int64 {
	return memory - payload - int64(max(locals, 0))*boardBytes - besides
}

// HeapLimit returns how much of the server's memory is for the Go runtime (debug.SetMemoryLimit), so that a process that is nothing but
// this server stays within Memory.
func (s *Server) HeapLimit() int64 {
	return heapLimit(s.o.Memory, s.payload.size(), s.o.LocalChunks)
}

// ownMemory returns the part of a server's memory that the index of a write journal leaves it.
func ownMemory(memory, journal int64) (int64, error) {
	if memory == 0 {
		memory = DefaultMemory
	}
	index := max(0, journal/chunk.BlockSize*indexBytes-smallIndex)
	if memory-index < MinMemory {
		return 0, fmt.Errorf("chunk server with a write journal of %d bytes needs at least %d bytes of memory, not %d: give more with --memory, "+
			"or a smaller journal: %w", journal, index+MinMemory, memory, fserr.Invalid)
	}
	return memory - index, nil
}

// resident returns how much memory the process takes up, in bytes; 0 if the kernel does not tell.
func resident() int64 {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	var size, pages int64
	if _, err := fmt.Sscan(string(b), &size, &pages); err != nil {
		return 0
	}
	return pages * int64(os.Getpagesize())
}

// payload is the memory for data of requests and answers. That of clients and of peers is apart: a client's request may wait for a peer
// that waits here, and a peer's never waits.
type payload struct{ clients, peers *arena.Arena }

func newPayload(o *Options, d division) (p payload, err error) {
	ao := arena.Options{Size: d.clients, Populate: o.Populate, Trace: o.trace}
	if p.clients, err = arena.New(ao); err != nil {
		return p, err
	}
	ao.Size = d.peers
	if p.peers, err = arena.New(ao); err != nil {
		return p, errors.Join(err, p.clients.Close())
	}
	return p, nil
}

// used returns the bytes that are out.
func (p *payload) used() int64 { return p.clients.Used() + p.peers.Used() }

// size returns the bytes that there are.
func (p *payload) size() int64 { return p.clients.Size() + p.peers.Size() }

func (p *payload) close() error {
	if err := errors.Join(p.clients.Close(), p.peers.Close()); err != nil {
		return fmt.Errorf("payload memory: %w", err)
	}
	return nil
}
