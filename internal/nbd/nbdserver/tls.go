package nbdserver

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/block"
	"varve/internal/nbd"
)

// plainOptions bounds what a client may ask for before it begins TLS.
const plainOptions = 32

// front serves the listeners whose clients must begin TLS before anything else. It greets them, and hands what they say within TLS to the loops, each by a
// pair of sockets.
type front struct {
	s    *Server
	conf *tls.Config
	wg   sync.WaitGroup

	mu     sync.Mutex
	open   map[net.Conn]bool // value: it was handed over
	early  int               // that were not
	closed bool
}

// accept serves a listener until it is closed.
func (f *front) accept(l net.Listener) {
	defer f.wg.Done()
	for {
		nc, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			f.s.log.Warn("accept failed, going on", "err", err)
			time.Sleep(50 * time.Millisecond)
			continue
		}
		if !f.admit(nc) {
			nc.Close()
			continue
		}
		go f.serve(nc)
	}
}

func (f *front) admit(nc net.Conn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return false
	}
	if f.early >= f.s.o.Connections {
		f.s.log.Warn("a connection is refused: as many clients as may be connected have not begun TLS yet", "connections", f.s.o.Connections)
		return false
	}
	f.open[nc] = false
	f.early++
	f.wg.Add(1)
	return true
}

func (f *front) handOver(nc net.Conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open[nc] = true
	f.early--
}

func (f *front) forget(nc net.Conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.open[nc] {
		f.early--
	}
	delete(f.open, nc)
}

// close takes no more clients, and ends those that were not handed over, or all.
func (f *front) close(all bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for nc, handed := range f.open {
		if all || !handed {
			nc.Close()
		}
	}
}

// end waits until all that was answered has reached its clients, or they do not take it. Preconditions: the loops have closed their connections.
func (f *front) end() {
	late := time.AfterFunc(lastTimeout, func() { f.close(true) })
	defer late.Stop()
	f.wg.Wait()
}

func (f *front) serve(nc net.Conn) {
	defer f.wg.Done()
	defer nc.Close()
	defer f.forget(nc)
	peer := nc.RemoteAddr().String()
	if err := nc.SetDeadline(time.Now().Add(f.s.o.Negotiation)); err != nil {
		return
	}
	zeroes, err := greet(nc)
	if errors.Is(err, io.EOF) {
		return
	}
	tc := tls.Server(nc, f.conf)
	if err == nil {
		err = tc.Handshake()
	}
	if err != nil {
		f.s.log.Warn("an NBD client was hung up on before TLS was established", "peer", peer, "err", err)
		return
	}
	defer tc.Close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		f.s.log.Error("an NBD client is hung up on", "peer", peer, "err", err)
		return
	}
	file := os.NewFile(uintptr(pair[0]), "nbd")
	inner, err := net.FileConn(file)
	file.Close()
	if err != nil {
		unix.Close(pair[1])
		f.s.log.Error("an NBD client is hung up on", "peer", peer, "err", err)
		return
	}
	defer inner.Close()
	f.handOver(nc)
	if nc.SetDeadline(time.Time{}) != nil {
		unix.Close(pair[1])
		return
	}
	f.s.arrived(arrival{fd: pair[1], greeted: true, zeroes: zeroes})
	// When either direction ends, so does the other: what the loop closes is read to its end first, and it closes when it reads an end.
	f.wg.Go(func() {
		_, _ = io.Copy(inner, tc)
		_ = inner.(*net.UnixConn).CloseWrite()
	})
	_, _ = io.Copy(timely{tc}, inner)
}

// timely is a client that is given up when it takes nothing for too long.
type timely struct{ nc net.Conn }

func (w timely) Write(p []byte) (int, error) {
	if err := w.nc.SetWriteDeadline(time.Now().Add(block.IdleTimeout)); err != nil {
		return 0, err
	}
	return w.nc.Write(p)
}

// greet brings a client to where it begins TLS, refusing all else. zeroes: it wants what follows the answer to OptExportName.
func greet(nc net.Conn) (zeroes bool, err error) {
	if _, err := nc.Write(nbd.AppendGreeting(nil)); err != nil {
		return false, err
	}
	var head [nbd.OptionSize]byte
	if _, err := io.ReadFull(nc, head[:4]); err != nil {
		return false, err
	}
	flags := binary.BigEndian.Uint32(head[:])
	if flags&^(nbd.FixedNewstyle|nbd.NoZeroes) != 0 || flags&nbd.FixedNewstyle == 0 {
		return false, fmt.Errorf("%w: handshake flags %#x of a client, want the fixed newstyle", nbd.ErrProtocol, flags)
	}
	for range plainOptions {
		if _, err := io.ReadFull(nc, head[:]); err != nil {
			return false, err
		}
		h, err := nbd.DecodeOption(head[:])
		if err != nil {
			return false, err
		}
		if h.Length > nbd.MaxOption || h.Option == nbd.OptExportName {
			return false, fmt.Errorf("%w: option %d of %d bytes before TLS", nbd.ErrProtocol, h.Option, h.Length)
		}
		if _, err := io.CopyN(io.Discard, nc, int64(h.Length)); err != nil {
			return false, err
		}
		answer := nbd.AnsTLSRequired
		switch {
		case h.Option == nbd.OptStartTLS && h.Length > 0:
			answer = nbd.AnsInvalid
		case h.Option == nbd.OptStartTLS, h.Option == nbd.OptAbort:
			answer = nbd.AnsAck
		}
		if _, err := nc.Write(nbd.AppendAnswer(nil, h.Option, answer, nil)); err != nil {
			return false, err
		}
		if answer == nbd.AnsAck {
			if h.Option == nbd.OptAbort {
				return false, io.EOF
			}
			return flags&nbd.NoZeroes == 0, nil
		}
	}
	return false, fmt.Errorf("%w: more than %d options before TLS", nbd.ErrProtocol, plainOptions)
}
