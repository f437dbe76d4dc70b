//go:build gain

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"

	"github.com/pawelgaczynski/gain"
	"golang.org/x/sys/unix"

	"varve/iouring/reactor"
)

// uploadSize is what a client sends before it waits for ack.
const uploadSize = 1 << 20

var ack = []byte("received")

// kinds are the servers that are compared.
var kinds = []string{"net", "gain", "reactor", "reactor-epoll"}

// serve runs a server until its standard input ends. It prints its address, and for every line that it reads the CPU time that it has used,
// in nanoseconds. A server either echoes or answers every 1 MiB with ack.
func serve(kind string, upload bool) error {
	addr, err := listen(kind, upload)
	if err != nil {
		return err
	}
	fmt.Println(addr)
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			return err
		}
		fmt.Println(u.Utime.Nano() + u.Stime.Nano())
	}
	return nil
}

func listen(kind string, upload bool) (addr string, err error) {
	nl, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	addr = nl.Addr().String()
	switch kind {
	case "net":
		go serveNet(nl, upload)
	case "gain":
		nl.Close() // it wants to listen itself
		started := make(chan struct{})
		h := &gainHandler{upload: upload, started: started}
		failed := make(chan error, 1)
		go func() { failed <- gain.ListenAndServe("tcp://"+addr, h, gain.WithWorkers(runtime.NumCPU())) }()
		select {
		case <-started:
		case err = <-failed:
		}
	case "reactor", "reactor-epoll":
		err = serveReactor(nl.(*net.TCPListener), kind == "reactor-epoll", upload)
	default:
		err = fmt.Errorf("no server %q", kind)
	}
	return addr, err
}

func serveNet(nl net.Listener, upload bool) {
	for {
		c, err := nl.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			p := make([]byte, 64<<10)
			if upload {
				p = make([]byte, uploadSize)
			}
			for {
				n, err := c.Read(p)
				if upload && err == nil {
					_, err = io.ReadFull(c, p[n:])
					n = copy(p, ack)
				}
				if err == nil {
					_, err = c.Write(p[:n])
				}
				if err != nil {
					return // the client is gone
				}
			}
		}()
	}
}

// gainHandler serves with gain.
type gainHandler struct {
	gain.DefaultEventHandler
	upload  bool
	started chan struct{}
}

func (h *gainHandler) OnStart(gain.Server)  { close(h.started) }
func (h *gainHandler) OnAccept(c gain.Conn) { c.SetContext(new(int)) }

// OnRead finds more in the buffer than was read last, if more was there at once.
func (h *gainHandler) OnRead(c gain.Conn, _ int) {
	n := c.InboundBuffered()
	if !h.upload {
		if p, err := c.Next(n); err == nil {
			_, _ = c.Write(p) // it is asynchronous: what fails shows at the client
		}
		return
	}
	_, _ = c.Discard(n)
	have := c.Context().(*int)
	for *have += n; *have >= uploadSize; *have -= uploadSize {
		_, _ = c.Write(ack)
	}
}

func serveReactor(nl *net.TCPListener, epoll, upload bool) error {
	o := reactor.Options{Kind: reactor.Ring, Logger: slog.New(slog.DiscardHandler)}
	if epoll {
		o.Kind = reactor.Poll
	}
	l, err := reactor.Start(o)
	if err != nil {
		return err
	}
	fd, err := reactor.Descriptor(nl)
	if err != nil {
		return err
	}
	nl.Close() // fd is another descriptor of the same socket
	failed := make(chan error, 1)
	l.Do(func() {
		_, err := l.Listen(fd, func(fd int) {
			h := &reactorHandler{upload: upload}
			if upload {
				h.buf = make([]byte, uploadSize)
			}
			if _, err := l.Adopt(fd, h); err != nil {
				unix.Close(fd)
			}
		})
		failed <- err
	})
	return <-failed
}

// reactorHandler serves with varve's reactor.
type reactorHandler struct {
	upload bool
	buf    []byte
	free   *echo
}

// echo is an answer on its way.
type echo struct {
	reactor.Send
	p    []byte
	next *echo
}

func (h *reactorHandler) OnData(c *reactor.Conn, p []byte) int {
	if h.upload {
		c.Fill(h.buf)
		return 0
	}
	h.answer(c, p)
	return len(p)
}

func (h *reactorHandler) OnFilled(c *reactor.Conn, _ []byte) { h.answer(c, ack) }
func (h *reactorHandler) OnDrain(*reactor.Conn)              {}
func (h *reactorHandler) OnClose(_ *reactor.Conn, err error) {
	if !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
		fmt.Fprintln(os.Stderr, err)
	}
}

func (h *reactorHandler) answer(c *reactor.Conn, p []byte) {
	e := h.free
	if e == nil {
		e = new(echo)
		e.Done = func(error) { e.next, h.free = h.free, e }
	} else {
		h.free = e.next
	}
	e.p = append(e.p[:0], p...)
	e.Head = e.p
	if err := c.Send(&e.Send); err != nil {
		c.Close(err)
	}
}
