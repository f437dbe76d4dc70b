package wire

import (
	"bufio"
	"context"
	"fmt"
	"hash/crc32"
	"net"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
)

// DialBare is Dial for who moves the connection's bytes himself: requests by AppendRequest, answers by DecodeAnswer. It returns the connection after
// the handshake, and what has come after the answer to the hello already.
func DialBare(ctx context.Context, addr string, hello *msg.Hello, o Options) (nc net.Conn, read []byte, reply *msg.HelloReply, err error) {
	var network Network = TCP{}
	if o.Network != nil {
		network = o.Network
	}
	if nc, err = connect(ctx, network, addr, o); err != nil {
		return nil, nil, nil, err
	}
	c := newConn(nc, bufio.NewReaderSize(nc, maxHello), o)
	defer c.cancel()
	if reply, err = c.sayHello(ctx, hello); err == nil {
		read, err = c.br.Peek(c.br.Buffered())
	}
	if err != nil {
		nc.Close()
		return nil, nil, nil, fmt.Errorf("handshake with %s: %w", addr, err)
	}
	return nc, read, reply, nil
}

// Answer is the header of an answer, for who reads them without a Conn.
type Answer struct {
	Type  Type
	Code  fserr.Code
	Epoch id.Epoch
	ID    uint64 // of the request
	Body  int    // bytes
	Data  int    // bytes

	bodyCRC uint32
}

// DecodeAnswer decodes the header that begins b, which has HeaderSize bytes at least, on a connection whose Keys.Receive is key. Errors wrap fserr.Protocol: the connection is to be
// ended. Requests are an error too.
func DecodeAnswer(b []byte, key uint32) (Answer, error) {
	h := header{key: key}
	if err := h.decode(b[:headerSize]); err != nil {
		return Answer{}, err
	}
	if !h.answer {
		return Answer{}, fmt.Errorf("request type %d where only answers are expected: %w", h.typ, fserr.Protocol)
	}
	return Answer{Type: h.typ, Code: h.code, Epoch: h.epoch, ID: h.id, Body: int(h.bodyLen), Data: int(h.dataLen), bodyCRC: h.bodyCRC}, nil
}

// CheckBody verifies the body of an answer.
func (a *Answer) CheckBody(body []byte) error {
	if got := crc32.Checksum(body, castagnoli); got != a.bodyCRC {
		return fmt.Errorf("answer type %d: body checksum %08x, want %08x: %w", a.Type, got, a.bodyCRC, fserr.Protocol)
	}
	return nil
}
