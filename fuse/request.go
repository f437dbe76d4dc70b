package fuse

import (
	"encoding/binary"
	"sync"
	"syscall"
	"time"

	"varve/internal/id"
	"varve/internal/wire/msg"
)

var le = binary.LittleEndian

// replier is the way back to the kernel of the transport that a request came by.
type replier interface {
	// room returns n bytes in which the body of the answer is built, contents undefined. It is called
	// at most once a request.
	room(r *request, n int) []byte
	// send answers r with the first n bytes of room, or with e and no body, and says whether the kernel
	// took it. It is called exactly once a request.
	send(r *request, e syscall.Errno, n int) error
}

// request is one request of the kernel, however it arrived. It is pooled: whoever answers it calls free,
// after which neither it nor its slices may be used.
type request struct {
	header
	fixed []byte // fixed arguments, as many bytes as ops says
	rest  []byte // names and data after them
	via   replier

	began  time.Time // when it arrived; zero: it is no operation, but something the kernel lets us know
	flight *flight   // also the context of the operation; nil for what no goroutine serves

	body []byte // of the answer, as room gave it
	keep kept   // what of the answer the kernel may keep

	lost func() // called if the kernel did not take a successful answer: undoes what only the kernel could undo
	cost int    // what it holds of the budget, in bytes

	hot hotState // of a request that goes on without a goroutine

	// The rest belongs to the transport.
	frame  []byte             // out header and room of the answer
	in     *buffer            // holds fixed and rest, or nil if they are in small
	out    *buffer            // holds frame, or nil if it is in answer
	source *descriptor        // where it was read
	entry  *ringEntry         // or where the ring put it
	write  func(uintptr)      // writes frame; bound to this request once, so that answering does not allocate
	result error              // of write
	small  [smallRequest]byte // requests without much data
	answer [smallAnswer]byte  // answers without much data
}

const (
	smallRequest = 768
	smallAnswer  = outHeaderSize + 320
)

// header is the in header without what only the transport needs.
type header struct {
	op     opcode
	unique uint64
	ino    id.Ino
	uid    uint32
	gid    uint32
	pid    uint32
}

var requestPool = sync.Pool{New: func() any {
	r := new(request)
	r.write = r.writeFrame
	return r
}}

func newRequest() *request { return requestPool.Get().(*request) }

// free gives r and its buffers back.
func (r *request) free() {
	if r.in != nil {
		r.in.put()
	}
	if r.out != nil {
		r.out.put()
	}
	r.fixed, r.rest, r.via, r.flight, r.lost, r.cost = nil, nil, nil, nil, nil, 0
	r.keep, r.body, r.began, r.hot = kept{}, nil, time.Time{}, hotState{}
	r.frame, r.in, r.out, r.source, r.entry, r.result = nil, nil, nil, nil, nil, nil
	requestPool.Put(r)
}

// room returns n bytes for the body of the answer.
func (r *request) room(n int) []byte {
	r.body = r.via.room(r, n)
	return r.body
}

// zeroed returns n zero bytes for the body of the answer.
func (r *request) zeroed(n int) []byte {
	clear(r.room(n))
	return r.body
}

// cred is who asks. The kernel has checked what it may do, since the mount has default_permissions.
func (r *request) cred() *msg.Cred { return &msg.Cred{Uid: r.uid, Gid: r.gid, Checked: true} }

func (r *request) u32(at int) uint32 { return le.Uint32(r.fixed[at:]) }
func (r *request) u64(at int) uint64 { return le.Uint64(r.fixed[at:]) }
