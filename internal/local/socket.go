package local

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/fserr"
	"varve/internal/id"
)

// SendTimeout bounds the wait for a peer that does not read.
const SendTimeout = 2 * time.Second

// name is the socket of a server, in the abstract namespace: it goes with the process and belongs to the network namespace, as
// the address does on which the server listens. The address in it tells apart copies of one server's directory.
func name(cluster id.Cluster, server id.ServerID, addr string) *net.UnixAddr {
	return &net.UnixAddr{Net: "unixpacket", Name: fmt.Sprintf("@varve/%x/%d/%s", cluster[:], uint32(server), addr)}
}

// Listen listens for the clients of a server that listens on addr for others.
func Listen(cluster id.Cluster, server id.ServerID, addr string) (*net.UnixListener, error) {
	return net.ListenUnix("unixpacket", name(cluster, server, addr))
}

// Conn is one connection of a client. Packets may be sent by many at once, and received by one.
type Conn struct {
	nc  *net.UnixConn
	buf [packetSize + 1]byte
	oob []byte
}

// NewConn takes over a connection, if its peer is of our user or of root: else Access.
func NewConn(nc *net.UnixConn) (*Conn, error) {
	if err := checkPeer(nc); err != nil {
		return nil, errors.Join(err, nc.Close())
	}
	return &Conn{nc: nc, oob: make([]byte, unix.CmsgSpace(4*maxFiles))}, nil
}

func checkPeer(nc *net.UnixConn) error {
	rc, err := nc.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var cerr error
	if err := rc.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return err
	}
	if cerr != nil {
		return fmt.Errorf("credentials of the peer: %w", cerr)
	}
	return permit(cred.Uid, uint32(os.Geteuid()))
}

func permit(peer, own uint32) error {
	if peer != 0 && peer != own {
		return fmt.Errorf("peer has user id %d, want %d or 0: %w", peer, own, fserr.Access)
	}
	return nil
}

// Dial connects to a server on this host. Unavailable if it is not on this host, or has no socket.
func Dial(cluster id.Cluster, server id.ServerID, addr string) (*Conn, error) {
	nc, err := net.DialUnix("unixpacket", nil, name(cluster, server, addr))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", fserr.Unavailable, err)
	}
	return NewConn(nc)
}

// Close ends the connection.
func (c *Conn) Close() error { return c.nc.Close() }

// Deadline bounds the next Receive; zero for none.
func (c *Conn) Deadline(t time.Time) error { return c.nc.SetReadDeadline(t) }

// Send sends a packet with a descriptor, or none if fd is negative.
func (c *Conn) Send(p *Packet, fd int) error {
	var b [packetSize]byte
	p.encode(&b)
	var oob []byte
	if fd >= 0 {
		oob = unix.UnixRights(fd)
	}
	if err := c.nc.SetWriteDeadline(time.Now().Add(SendTimeout)); err != nil {
		return err
	}
	_, _, err := c.nc.WriteMsgUnix(b[:], oob, nil)
	return err
}

// maxFiles is how many descriptors a packet may carry before the kernel drops the rest; more than one is an error.
const maxFiles = 4

// Receive waits for a packet. file is nil if there came no descriptor with it.
func (c *Conn) Receive(p *Packet) (file *os.File, err error) {
	n, oobn, flags, _, err := c.nc.ReadMsgUnix(c.buf[:], c.oob)
	files, ferr := descriptors(c.oob[:max(oobn, 0)])
	if err == nil && ferr == nil && (len(files) > 1 || flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0) {
		err = fmt.Errorf("packet with %d descriptors, flags %#x: %w", len(files), flags, fserr.Protocol)
	}
	if err = errors.Join(err, ferr); err == nil {
		err = p.decode(c.buf[:n])
	}
	if err != nil {
		for _, f := range files {
			f.Close()
		}
		return nil, err
	}
	if len(files) == 1 {
		file = files[0]
	}
	return file, nil
}

// descriptors returns every descriptor in a control message, so that none is left open.
func descriptors(oob []byte) (files []*os.File, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	list, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("control message: %w: %w", fserr.Protocol, err)
	}
	for i := range list {
		fds, err := unix.ParseUnixRights(&list[i])
		if err != nil {
			continue // another kind of message carries no descriptors
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	return files, nil
}
