package vhost

import (
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"
)

// message is one of the front end's.
type message struct {
	request request
	flags   uint32
	body    []byte
	fds     []int // the message's until they are taken
}

// channel reads and writes messages.
type channel struct {
	c   *net.UnixConn
	oob [256]byte
	buf [headSize + maxMessage]byte
}

// read returns the next message, which is good until the next call. io.EOF is the end between two of them.
func (h *channel) read() (m message, err error) {
	head := h.buf[:headSize]
	n, oobn, flags, _, err := h.c.ReadMsgUnix(head, h.oob[:])
	if err != nil && !errors.Is(err, io.EOF) {
		return m, err
	}
	if oobn > 0 {
		if m.fds, err = descriptors(h.oob[:oobn]); err != nil {
			return m, err
		}
	}
	if flags&unix.MSG_CTRUNC != 0 || len(m.fds) > maxFDs {
		m.drop()
		return m, fmt.Errorf("%w: more than %d descriptors beside a message", ErrProtocol, maxFDs)
	}
	if n == 0 {
		m.drop()
		return m, io.EOF
	}
	if _, err := io.ReadFull(h.c, head[n:]); err != nil {
		m.drop()
		return m, fmt.Errorf("the head of a message: %w", err)
	}
	m.request, m.flags = request(le.Uint32(head)), le.Uint32(head[4:])
	size := le.Uint32(head[8:])
	if m.flags&3 != flagVersion || size > maxMessage {
		m.drop()
		return m, fmt.Errorf("%w: request %d with flags %#x and %d bytes, at most %d are taken", ErrProtocol, m.request, m.flags, size, maxMessage)
	}
	m.body = h.buf[headSize:][:size]
	if _, err := io.ReadFull(h.c, m.body); err != nil {
		m.drop()
		return m, fmt.Errorf("the payload of request %d: %w", m.request, err)
	}
	return m, nil
}

// reply answers a message; fd, if it is not negative, goes with it.
func (h *channel) reply(to request, body []byte, fd int) error {
	b := le.AppendUint32(nil, uint32(to))
	b = le.AppendUint32(b, flagVersion|flagReply)
	b = append(le.AppendUint32(b, uint32(len(body))), body...)
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	_, _, err := h.c.WriteMsgUnix(b, rights, nil)
	return err
}

// descriptors takes what came beside a message.
func descriptors(oob []byte) (all []int, err error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			continue // credentials or the like
		}
		all = append(all, fds...)
	}
	return all, nil
}

// take returns the only descriptor of a message, -1 if there is none.
func (m *message) take() (int, error) {
	switch len(m.fds) {
	case 0:
		return -1, nil
	case 1:
		fd := m.fds[0]
		m.fds = nil
		return fd, nil
	}
	return -1, fmt.Errorf("%w: %d descriptors beside request %d, want one", ErrProtocol, len(m.fds), m.request)
}

// drop closes what nobody took.
func (m *message) drop() {
	for _, fd := range m.fds {
		_ = unix.Close(fd)
	}
	m.fds = nil
}
