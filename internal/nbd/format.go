package nbd

import (
	"encoding/binary"
	"fmt"
	"syscall"
)

// Everything on the wire is big-endian. Source: doc/proto.md of github.com/NetworkBlockDevice/nbd.
//
// Greeting of the server       0 8 "NBDMAGIC"   8 8 "IHAVEOPT"   16 2 handshake flags
// Client's flags               0 4
// Option of the client         0 8 "IHAVEOPT"   8 4 option   12 4 length   data
// Answer to an option          0 8 magic        8 4 option   12 4 type     16 4 length   data
// Request                      0 4 magic   4 2 flags   6 2 command   8 8 cookie   16 8 offset   24 4 length   data of a write
// Simple reply                 0 4 magic   4 4 error   8 8 cookie   data of a read without error
// Chunk of a structured reply  0 4 magic   4 2 flags   6 2 type     8 8 cookie    16 4 length   data
const (
	Magic           = 0x4e42444d41474943 // "NBDMAGIC"
	OptionMagic     = 0x49484156454F5054 // "IHAVEOPT"
	OldMagic        = 0x00420281861253   // in its place: a server from before newstyle
	AnswerMagic     = 0x0003e889045565a9
	RequestMagic    = 0x25609513
	SimpleMagic     = 0x67446698
	StructuredMagic = 0x668e33ef
)

// Sizes on the wire in bytes.
const (
	GreetingSize   = 18
	OptionSize     = 16
	AnswerSize     = 20
	RequestSize    = 28
	SimpleSize     = 16
	StructuredSize = 20
	// ZeroesSize is what follows the answer to ExportName unless NoZeroes was agreed on.
	ZeroesSize = 124
)

// Handshake flags, of both sides.
const (
	FixedNewstyle = 1 << 0
	NoZeroes      = 1 << 1
)

// Option is what a client asks for before the transmission begins.
type Option uint32

// Options.
const (
	OptExportName      Option = 1
	OptAbort           Option = 2
	OptList            Option = 3
	OptStartTLS        Option = 5
	OptInfo            Option = 6
	OptGo              Option = 7
	OptStructuredReply Option = 8
	OptListMetaContext Option = 9
	OptSetMetaContext  Option = 10
)

// Answer is the type of an answer to an option.
type Answer uint32

// Answers. Those with the highest bit set are errors.
const (
	AnsAck         Answer = 1
	AnsServer      Answer = 2
	AnsInfo        Answer = 3
	AnsMetaContext Answer = 4
	ansError       Answer = 1 << 31
	AnsUnsupported Answer = ansError + 1
	AnsPolicy      Answer = ansError + 2
	AnsInvalid     Answer = ansError + 3
	AnsPlatform    Answer = ansError + 4
	AnsTLSRequired Answer = ansError + 5
	AnsUnknown     Answer = ansError + 6
	AnsShutdown    Answer = ansError + 7
	AnsBlockSize   Answer = ansError + 8
	AnsTooBig      Answer = ansError + 9
)

// Failed says that the answer is an error.
func (a Answer) Failed() bool { return a&ansError != 0 }

var answerWords = map[Answer]string{
	AnsUnsupported: "the server does not know the option", AnsPolicy: "the server's policy forbids it", AnsInvalid: "the server takes the option for malformed",
	AnsPlatform: "the server's platform cannot do it", AnsTLSRequired: "the server wants TLS, which this client does not do",
	AnsUnknown: "the server has no such export", AnsShutdown: "the server is shutting down", AnsBlockSize: "the server wants to be asked for its block sizes",
	AnsTooBig: "the server finds the request too large",
}

func (a Answer) String() string {
	if w, ok := answerWords[a]; ok {
		return w
	}
	return fmt.Sprintf("answer %#x", uint32(a))
}

// Info is the type of what an AnsInfo tells.
type Info uint16

// Infos.
const (
	InfoExport    Info = 0 // 8 size, 2 transmission flags
	InfoName      Info = 1
	InfoDescribe  Info = 2
	InfoBlockSize Info = 3 // 4 least, 4 preferred, 4 most
)

// Flags are what an export can do.
type Flags uint16

// Transmission flags.
const (
	HasFlags     Flags = 1 << 0
	ReadOnly     Flags = 1 << 1
	CanFlush     Flags = 1 << 2
	CanFUA       Flags = 1 << 3
	Rotational   Flags = 1 << 4
	CanTrim      Flags = 1 << 5
	CanZero      Flags = 1 << 6
	CanDF        Flags = 1 << 7
	CanMultiConn Flags = 1 << 8 // a flush on one connection covers what the others were answered
	CanCache     Flags = 1 << 10
	CanFastZero  Flags = 1 << 11
)

// Command is what a request asks for.
type Command uint16

// Commands.
const (
	CmdRead        Command = 0
	CmdWrite       Command = 1
	CmdDisconnect  Command = 2
	CmdFlush       Command = 3
	CmdTrim        Command = 4
	CmdCache       Command = 5
	CmdWriteZeroes Command = 6
	CmdBlockStatus Command = 7
)

var commandWords = [...]string{"read", "write", "disconnect", "flush", "trim", "cache", "write zeroes", "block status"}

func (c Command) String() string {
	if int(c) < len(commandWords) {
		return commandWords[c]
	}
	return fmt.Sprintf("command %d", uint16(c))
}

// Flags of a command.
const (
	FlagFUA      uint16 = 1 << 0 // on stable media before the answer
	FlagNoHole   uint16 = 1 << 1 // of WriteZeroes: do not punch
	FlagDF       uint16 = 1 << 2 // of Read: in one chunk
	FlagReqOne   uint16 = 1 << 3
	FlagFastZero uint16 = 1 << 4 // of WriteZeroes: fail rather than be slow
)

// ReplyDone marks the last chunk of a structured reply.
const ReplyDone uint16 = 1 << 0

// Chunk is the type of a chunk of a structured reply.
type Chunk uint16

// Chunks. Those with the highest bit set are errors.
const (
	ChunkNone        Chunk = 0
	ChunkData        Chunk = 1 // 8 offset, data
	ChunkHole        Chunk = 2 // 8 offset, 4 length
	ChunkBlockStatus Chunk = 5
	chunkError       Chunk = 1 << 15
	ChunkError       Chunk = chunkError + 1 // 4 error, 2 length, message
	ChunkErrorOffset Chunk = chunkError + 2 // the same, 8 offset
)

// Errno is an error that a server answers. The numbers are Linux's.
type Errno uint32

// Errors of the protocol.
const (
	EPERM     Errno = 1
	EIO       Errno = 5
	ENOMEM    Errno = 12
	EINVAL    Errno = 22
	ENOSPC    Errno = 28
	EOVERFLOW Errno = 75
	ENOTSUP   Errno = 95
	ESHUTDOWN Errno = 108
)

func (e Errno) Error() string { return "the server answers: " + syscall.Errno(e).Error() }

// Unwrap makes errors.Is find the system's error of that number.
func (e Errno) Unwrap() error { return syscall.Errno(e) }

// Limits.
const (
	// MaxPayload is the largest request that every server takes, unless it says otherwise.
	MaxPayload = 32 << 20
	// MaxName is the longest name of an export, and the longest message.
	MaxName = 4096
	// maxAnswer bounds the data of an answer to an option.
	maxAnswer = 3 * MaxName
	// MaxOption bounds the data of an option that a server looks at.
	MaxOption = 32 << 10
	// maxItems bounds what one option lists: kinds of information, queries.
	maxItems = 256
)

// BaseAllocation is the context of block status that tells holes from data, with the flags of an Extent.
const BaseAllocation = "base:allocation"

// Flags of an extent in the context BaseAllocation.
const (
	ExtentHole uint32 = 1 << 0 // nothing is allocated
	ExtentZero uint32 = 1 << 1 // it reads as zeros
)

var be = binary.BigEndian

// Request is the head of a request.
type Request struct {
	Flags   uint16
	Command Command
	Cookie  uint64
	Offset  uint64
	Length  uint32
}

// Append adds the request as it is on the wire.
func (r *Request) Append(b []byte) []byte {
	b = be.AppendUint32(b, RequestMagic)
	b = be.AppendUint16(b, r.Flags)
	b = be.AppendUint16(b, uint16(r.Command))
	b = be.AppendUint64(b, r.Cookie)
	b = be.AppendUint64(b, r.Offset)
	return be.AppendUint32(b, r.Length)
}

// DecodeRequest reads the RequestSize bytes of p.
func DecodeRequest(p []byte) (Request, error) {
	if m := be.Uint32(p); m != RequestMagic {
		return Request{}, fmt.Errorf("%w: a request begins with %#x, want %#x", ErrProtocol, m, RequestMagic)
	}
	return Request{be.Uint16(p[4:]), Command(be.Uint16(p[6:])), be.Uint64(p[8:]), be.Uint64(p[16:]), be.Uint32(p[24:])}, nil
}

// AppendOption adds an option with its data.
func AppendOption(b []byte, o Option, data []byte) []byte {
	b = be.AppendUint64(b, OptionMagic)
	b = be.AppendUint32(b, uint32(o))
	b = be.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// AppendAnswer adds an answer to an option with its data.
func AppendAnswer(b []byte, o Option, a Answer, data []byte) []byte {
	b = be.AppendUint64(b, AnswerMagic)
	b = be.AppendUint32(b, uint32(o))
	b = be.AppendUint32(b, uint32(a))
	b = be.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// AppendSimple adds the head of a simple reply.
func AppendSimple(b []byte, e Errno, cookie uint64) []byte {
	b = be.AppendUint32(b, SimpleMagic)
	b = be.AppendUint32(b, uint32(e))
	return be.AppendUint64(b, cookie)
}

// AppendChunk adds the head of a chunk with a payload of n bytes.
func AppendChunk(b []byte, flags uint16, t Chunk, cookie uint64, n int) []byte {
	b = be.AppendUint32(b, StructuredMagic)
	b = be.AppendUint16(b, flags)
	b = be.AppendUint16(b, uint16(t))
	b = be.AppendUint64(b, cookie)
	return be.AppendUint32(b, uint32(n))
}
