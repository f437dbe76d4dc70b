package fuse

// FUSE over io_uring, from the kernel's include/uapi/linux/fuse.h (7.42, Linux 6.14). A connection has a queue for each possible processor, a queue has
// entries, and an entry is memory of ours that the kernel was told of once: a header and a payload.
//
//	header:  0 the in header of a request, or the out header of its answer (128 bytes are kept for it)
//	  128 the fixed arguments of the operation (128 bytes)
//	  256 flags u64 | 264 commit id u64, the unique of the request | 272 length of the payload u32 | 276 padding | 280 reserved u64
//	payload: of a request names and data, of an answer everything after the out header
//
// The command of a submission, behind its byte 48: 0 flags u64 | 8 commit id u64 | 16 number of the queue u16 | 18 padding, 6 bytes.
const (
	ringHeaderSize   = 288
	ringOpIn         = 128
	ringCommitID     = 264
	ringPayloadSize  = 272
	ringHeaderStride = 512 // from one header to the next

	ringCommandSize = 24
	ringRegister    = 1 // FUSE_IO_URING_CMD_REGISTER: SQE.addr is a vector of header and payload
	ringCommit      = 2 // FUSE_IO_URING_CMD_COMMIT_AND_FETCH: takes the answer and completes with the next request

	initOverIOUring uint64 = 1 << 41
)
