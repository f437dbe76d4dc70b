package nbd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

// ErrProtocol is wrapped by errors that say how the other side broke the protocol.
var ErrProtocol = errors.New("NBD protocol")

// Export is what a server says of one.
type Export struct {
	Size  uint64 // bytes
	Flags Flags
	// Least, Preferred and Most are the sizes of requests in bytes: Least divides every offset and length, Most bounds reads and writes. A
	// server that says nothing has 1, 4096 and MaxPayload.
	Least, Preferred, Most uint32
	Structured             bool // replies to reads come in chunks
}

// Dial connects to a server and begins the transmission of an export. ctx ends the attempt, not the connection.
func Dial(ctx context.Context, u URI) (*Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, u.Network, u.Address)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	e, err := negotiate(c, u.Export)
	if !stop() && err != nil {
		err = errors.Join(context.Cause(ctx), err)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", u, err), c.Close())
	}
	if err := c.SetDeadline(time.Time{}); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return newConn(c, *e), nil
}

// negotiation is the state before the transmission.
type negotiation struct {
	rw    io.ReadWriter
	b     []byte // what is read or written
	e     Export
	flags uint16
}

func negotiate(rw io.ReadWriter, export string) (*Export, error) {
	n := &negotiation{rw: rw, e: Export{Least: 1, Preferred: 4096, Most: MaxPayload}}
	if err := n.greet(); err != nil {
		return nil, err
	}
	answer, err := n.ask(OptStructuredReply, nil, nil)
	if err != nil {
		return nil, err
	}
	n.e.Structured = answer == AnsAck
	data := be.AppendUint32(nil, uint32(len(export)))
	data = append(data, export...)
	data = be.AppendUint16(data, 1) // one thing to tell beside what must be told
	data = be.AppendUint16(data, uint16(InfoBlockSize))
	told := false
	detail := ""
	answer, err = n.ask(OptGo, data, func(p []byte) error {
		is, err := n.info(p)
		told = told || is == InfoExport
		return err
	}, &detail)
	switch {
	case err != nil:
		return nil, err
	case answer == AnsUnsupported:
		err = n.exportName(export)
	case answer != AnsAck:
		if detail != "" {
			detail = ": " + strings.ToValidUTF8(detail, "?")
		}
		return nil, fmt.Errorf("export %q: %s%s", export, answer, detail)
	case !told:
		return nil, fmt.Errorf("%w: the export was acknowledged, but not its size", ErrProtocol)
	}
	if err != nil {
		return nil, err
	}
	return &n.e, n.check()
}

// read reads n bytes, which are good until the next read.
func (n *negotiation) read(size int, what string) ([]byte, error) {
	if cap(n.b) < size {
		n.b = make([]byte, size)
	}
	n.b = n.b[:size]
	if got, err := io.ReadFull(n.rw, n.b); err != nil {
		return nil, fmt.Errorf("%s: %d of %d bytes came: %w", what, got, size, err)
	}
	return n.b, nil
}

func (n *negotiation) greet() error {
	p, err := n.read(GreetingSize, "greeting")
	if err != nil {
		return err
	}
	magic, option := be.Uint64(p), be.Uint64(p[8:])
	n.flags = be.Uint16(p[16:])
	switch {
	case magic != Magic:
		return fmt.Errorf("%w: the greeting begins with %#x, want %#x: this is no NBD server", ErrProtocol, magic, uint64(Magic))
	case option == OldMagic:
		return fmt.Errorf("%w: the server speaks the old style, which has no exports by name", ErrProtocol)
	case option != OptionMagic:
		return fmt.Errorf("%w: the greeting goes on with %#x, want %#x", ErrProtocol, option, uint64(OptionMagic))
	case n.flags&FixedNewstyle == 0:
		return fmt.Errorf("%w: handshake flags %#x: the server does not do the fixed newstyle", ErrProtocol, n.flags)
	}
	n.flags &= FixedNewstyle | NoZeroes
	_, err = n.rw.Write(be.AppendUint32(nil, uint32(n.flags)))
	return err
}

// maxInfos bounds the answers to one option.
const maxInfos = 64

// ask sends an option and reads its answers, up to the last. info is told of each AnsInfo, detail gets what the server says of an error.
func (n *negotiation) ask(o Option, data []byte, info func([]byte) error, detail ...*string) (Answer, error) {
	if _, err := n.rw.Write(AppendOption(nil, o, data)); err != nil {
		return 0, fmt.Errorf("option %d: %w", o, err)
	}
	for range maxInfos {
		p, err := n.read(AnswerSize, fmt.Sprintf("answer to option %d", o))
		if err != nil {
			return 0, err
		}
		magic, to, answer, size := be.Uint64(p), Option(be.Uint32(p[8:])), Answer(be.Uint32(p[12:])), be.Uint32(p[16:])
		switch {
		case magic != AnswerMagic:
			return 0, fmt.Errorf("%w: an answer begins with %#x, want %#x", ErrProtocol, magic, uint64(AnswerMagic))
		case to != o:
			return 0, fmt.Errorf("%w: an answer to option %d, want %d", ErrProtocol, to, o)
		case size > maxAnswer:
			return 0, fmt.Errorf("%w: an answer of %d bytes to option %d, at most %d are taken", ErrProtocol, size, o, maxAnswer)
		}
		body, err := n.read(int(size), fmt.Sprintf("answer to option %d", o))
		if err != nil {
			return 0, err
		}
		switch {
		case answer == AnsInfo && info != nil:
			if err := info(body); err != nil {
				return 0, err
			}
		case answer&ansError != 0:
			if len(detail) > 0 {
				*detail[0] = string(body)
			}
			return answer, nil
		case answer == AnsAck:
			if size != 0 {
				return 0, fmt.Errorf("%w: an acknowledgement of option %d with %d bytes, want none", ErrProtocol, o, size)
			}
			return answer, nil
		default:
			return 0, fmt.Errorf("%w: %s to option %d, want an acknowledgement or an error", ErrProtocol, answer, o)
		}
	}
	return 0, fmt.Errorf("%w: more than %d answers to option %d", ErrProtocol, maxInfos, o)
}

func (n *negotiation) info(p []byte) (Info, error) {
	if len(p) < 2 {
		return 0, fmt.Errorf("%w: an information of %d bytes, want at least 2", ErrProtocol, len(p))
	}
	is, p := Info(be.Uint16(p)), p[2:]
	want := map[Info]int{InfoExport: 10, InfoBlockSize: 12}
	if size, known := want[is]; known && len(p) != size {
		return is, fmt.Errorf("%w: an information of type %d with %d bytes, want %d", ErrProtocol, is, len(p), size)
	}
	switch is {
	case InfoExport:
		n.e.Size, n.e.Flags = be.Uint64(p), Flags(be.Uint16(p[8:]))
	case InfoBlockSize:
		n.e.Least, n.e.Preferred, n.e.Most = be.Uint32(p), be.Uint32(p[4:]), be.Uint32(p[8:])
	}
	return is, nil
}

// exportName begins the transmission with servers that do not know OptGo. One that has no such export hangs up.
func (n *negotiation) exportName(export string) error {
	if _, err := n.rw.Write(AppendOption(nil, OptExportName, []byte(export))); err != nil {
		return err
	}
	size := 10
	if n.flags&NoZeroes == 0 {
		size += ZeroesSize
	}
	p, err := n.read(size, fmt.Sprintf("export %q (a server that has none of that name hangs up)", export))
	if err != nil {
		return err
	}
	n.e.Size, n.e.Flags = be.Uint64(p), Flags(be.Uint16(p[8:]))
	return nil
}

// check looks whether what the server says of the export makes sense.
func (n *negotiation) check() error {
	e := &n.e
	switch {
	case e.Flags&HasFlags == 0:
		return fmt.Errorf("%w: transmission flags %#x without the bit that says that they are some", ErrProtocol, uint16(e.Flags))
	case e.Size > 1<<63-1:
		return fmt.Errorf("%w: an export of %d bytes", ErrProtocol, e.Size)
	case e.Least == 0 || e.Least&(e.Least-1) != 0 || e.Least > 64<<10 || e.Preferred < e.Least || e.Most < e.Least:
		return fmt.Errorf("%w: block sizes of %d, %d and %d bytes: want a power of two up to 65536 that the others are not below", ErrProtocol, e.Least, e.Preferred, e.Most)
	}
	e.Most = min(e.Most, 1<<30)
	return nil
}
