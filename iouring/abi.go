package iouring

// What the kernel and the ring agree on: include/uapi/linux/io_uring.h. Only what this package uses.

// Opcode says what a submission does.
type Opcode uint8

// Operations. The comment is the kernel that brought it, where it is newer than 5.15.
const (
	OpNop            Opcode = 0
	OpReadv          Opcode = 1
	OpWritev         Opcode = 2
	OpFsync          Opcode = 3
	OpReadFixed      Opcode = 4
	OpWriteFixed     Opcode = 5
	OpPollAdd        Opcode = 6
	OpPollRemove     Opcode = 7
	OpSendmsg        Opcode = 9
	OpRecvmsg        Opcode = 10
	OpTimeout        Opcode = 11
	OpTimeoutRemove  Opcode = 12
	OpAccept         Opcode = 13
	OpAsyncCancel    Opcode = 14
	OpLinkTimeout    Opcode = 15
	OpConnect        Opcode = 16
	OpFallocate      Opcode = 17
	OpClose          Opcode = 19
	OpRead           Opcode = 22
	OpWrite          Opcode = 23
	OpSend           Opcode = 26
	OpRecv           Opcode = 27
	OpProvideBuffers Opcode = 31
	OpRemoveBuffers  Opcode = 32
	OpShutdown       Opcode = 34
	opLinkat         Opcode = 39 // the newest of 5.15
	OpMsgRing        Opcode = 40 // 5.18
	OpSocket         Opcode = 45 // 5.19
	OpUringCmd       Opcode = 46 // 5.19
	OpSendZC         Opcode = 47 // 6.0
	OpSendmsgZC      Opcode = 48 // 6.1
	opReadMultishot  Opcode = 49 // 6.7
	opFixedInstall   Opcode = 54 // 6.8
)

// Flags of a submission, SQE.Flags.
const (
	sqeFixedFile    = 1 << 0
	sqeDrain        = 1 << 1
	sqeLink         = 1 << 2
	sqeHardLink     = 1 << 3
	sqeAsync        = 1 << 4
	sqeBufferSelect = 1 << 5
	sqeSkipSuccess  = 1 << 6
)

// Set-up flags.
const (
	setupCQSize       = 1 << 3
	setupClamp        = 1 << 4
	setupDisabled     = 1 << 6
	setupSubmitAll    = 1 << 7
	setupCoopTaskrun  = 1 << 8
	setupTaskrunFlag  = 1 << 9
	setupSQE128       = 1 << 10
	setupCQE32        = 1 << 11
	setupSingleIssuer = 1 << 12
	setupDeferTaskrun = 1 << 13
	setupNoSQArray    = 1 << 16
)

const (
	enterGetEvents  = 1 << 0
	enterExtArg     = 1 << 3
	enterRegistered = 1 << 4
	enterNoIOWait   = 1 << 7

	sqOverflow = 1 << 1 // in the flags of the submission ring
	sqTaskrun  = 1 << 2

	featSingleMmap   = 1 << 0
	featNoDrop       = 1 << 1
	featSubmitStable = 1 << 2
	featFastPoll     = 1 << 5
	featExtArg       = 1 << 8
	featRsrcTags     = 1 << 10
	featRegRegRing   = 1 << 13
	featNoIOWait     = 1 << 17

	offSQRing = 0
	offSQEs   = 0x10000000
)

// Operations of io_uring_register.
const (
	regBuffers         = 0
	unregBuffers       = 1
	regFiles           = 2
	unregFiles         = 3
	regFilesUpdate     = 6
	regProbe           = 8
	regEnableRings     = 12
	regFiles2          = 13
	regBuffers2        = 15
	regBuffersUpdate   = 16
	regWorkers         = 19
	regRingFDs         = 20
	unregRingFDs       = 21
	regPbufRing        = 22
	unregPbufRing      = 23
	regFileAllocRange  = 25
	regSendMsgRing     = 31
	rsrcRegisterSparse = 1 << 0
	fileIndexAlloc     = ^uint32(0)
	opSupported        = 1 << 0
)

// Flags of single operations.
const (
	fsyncDatasync = 1 << 0

	timeoutUpdate       = 1 << 1
	timeoutBoottime     = 1 << 2
	timeoutETimeSuccess = 1 << 5
	timeoutMultishot    = 1 << 6

	pollAddMulti = 1 << 0

	cancelAll     = 1 << 0
	cancelFD      = 1 << 1
	cancelAny     = 1 << 2
	cancelFDFixed = 1 << 3

	recvMultishot    = 1 << 1 // in SQE.Ioprio
	recvsendFixedBuf = 1 << 2
	sendZCReport     = 1 << 3
	acceptMultishot  = 1 << 0

	notifCopied = 1 << 31
)

// SQE is struct io_uring_sqe, 64 bytes. Raw takes one; everything else has a method of its own. A field has several meanings:
// the comment names the other ones that the kernel's header knows it by.
type SQE struct {
	Opcode      Opcode
	Flags       uint8
	Ioprio      uint16
	FD          int32
	Off         uint64 // addr2, cmd_op
	Addr        uint64
	Len         uint32
	OpFlags     uint32 // rw_flags, msg_flags, uring_cmd_flags and so on
	UserData    uint64 // of the ring: what a caller puts here is overwritten
	BufIndex    uint16 // buf_group
	Personality uint16
	FileIndex   uint32 // splice_fd_in, addr_len
	Addr3       uint64 // here 16 bytes of command begin, 80 with SQE128
	Pad         uint64
}

// cqe is struct io_uring_cqe, 16 bytes; with CQE32 another 16 follow.
type cqe struct {
	userData uint64
	res      int32
	flags    uint32
}

type sqOffsets struct {
	head, tail, ringMask, ringEntries, flags, dropped, array, _ uint32
	_                                                           uint64
}

type cqOffsets struct {
	head, tail, ringMask, ringEntries, overflow, cqes, flags, _ uint32
	_                                                           uint64
}

// params is struct io_uring_params.
type params struct {
	sqEntries, cqEntries, flags, _, _, features, _ uint32
	_                                              [3]uint32
	sq                                             sqOffsets
	cq                                             cqOffsets
}

// eventsArg is struct io_uring_getevents_arg.
type eventsArg struct {
	sigmask   uint64
	sigmaskSz uint32
	_         uint32
	ts        uint64
}

// probe is struct io_uring_probe with room for every opcode.
type probe struct {
	lastOp, opsLen uint8
	_              uint16
	_              [3]uint32
	ops            [256]struct {
		op, _ uint8
		flags uint16
		_     uint32
	}
}

// rsrcRegister is struct io_uring_rsrc_register.
type rsrcRegister struct {
	nr, flags  uint32
	_          uint64
	data, tags uint64
}

// rsrcUpdate is struct io_uring_rsrc_update.
type rsrcUpdate struct {
	offset, _ uint32
	data      uint64
}

// rsrcUpdate2 is struct io_uring_rsrc_update2.
type rsrcUpdate2 struct {
	offset, _  uint32
	data, tags uint64
	nr, _      uint32
}

// bufReg is struct io_uring_buf_reg.
type bufReg struct {
	ringAddr    uint64
	ringEntries uint32
	bgid, flags uint16
	_           [3]uint64
}

// fileRange is struct io_uring_file_index_range.
type fileRange struct {
	off, len uint32
	_        uint64
}

// bufEntry is struct io_uring_buf. In the first one of a ring of buffers the last two bytes are the tail of the ring.
type bufEntry struct {
	addr     uint64
	len      uint32
	bid, end uint16
}
