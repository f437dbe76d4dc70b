package reactor_test

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/iouring"
	"varve/iouring/reactor"
)

// The benchmarks compare a server on a reactor with one on package net. Server and client are processes of their own: the client is the same
// for all, epoll on one thread, and the processor time of the server is its own.

// benchHead is what begins requests and answers: length of what follows, length of what the answer shall have, and a tag, as
// 4, 4 and 8 bytes.
const benchHead = 16

const serverEnv = "REACTOR_BENCH_SERVER"

func TestMain(m *testing.M) {
	if kind := os.Getenv(serverEnv); kind != "" {
		if err := benchServer(kind); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

var benchAnswer = make([]byte, 1<<20)

// benchServer serves until its standard input ends. For every line that it reads there, it prints the processor time that it
// has used, in nanoseconds.
func benchServer(kind string) error {
	nl, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	how := ""
	if kind == "net" {
		go netServer(nl)
	} else {
		o := reactor.Options{Kind: reactor.Ring}
		if kind == "poll" {
			o.Kind = reactor.Poll
		}
		l, err := reactor.Start(o)
		if err != nil {
			return err
		}
		how = l.Reason()
		fd, err := reactor.Descriptor(nl.(*net.TCPListener))
		if err != nil {
			return err
		}
		nl.Close()
		l.Do(func() {
			_, err := l.Listen(fd, func(fd int) {
				if _, err := l.Adopt(fd, newBenchConn()); err != nil {
					fmt.Fprintln(os.Stderr, err)
				}
			})
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		})
	}
	fmt.Printf("%s %s\n", nl.Addr(), how)
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			return err
		}
		fmt.Println(u.Utime.Nano() + u.Stime.Nano())
	}
	return nil
}

func netServer(nl net.Listener) {
	for {
		c, err := nl.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			br := bufio.NewReaderSize(c, 64<<10)
			head := make([]byte, benchHead)
			buf := make([]byte, benchHead+1<<20)
			for {
				if _, err := io.ReadFull(br, head); err != nil {
					return
				}
				if _, err := io.ReadFull(br, buf[benchHead:][:binary.LittleEndian.Uint32(head)]); err != nil {
					return
				}
				n := binary.LittleEndian.Uint32(head[4:])
				binary.LittleEndian.PutUint32(head, n)
				var err error
				if n <= 4096 {
					copy(buf, head)
					_, err = c.Write(buf[:benchHead+n])
				} else {
					_, err = (&net.Buffers{head, benchAnswer[:n]}).WriteTo(c)
				}
				if err != nil {
					return
				}
			}
		}()
	}
}

// benchConn is the same on a reactor.
type benchConn struct {
	buf  []byte
	head [benchHead]byte
	free *benchSend
}

type benchSend struct {
	reactor.Send
	head [benchHead]byte
	next *benchSend
}

func newBenchConn() *benchConn { return &benchConn{buf: make([]byte, 1<<20)} }

func (h *benchConn) OnData(c *reactor.Conn, p []byte) int {
	if len(p) < benchHead {
		return 0
	}
	n := int(binary.LittleEndian.Uint32(p))
	if n <= 4096 && len(p) < benchHead+n {
		c.Need(benchHead + n)
		return 0
	}
	copy(h.head[:], p)
	if n > 4096 {
		c.Fill(h.buf[:n])
		return benchHead
	}
	h.answer(c)
	return benchHead + n
}

func (h *benchConn) OnFilled(c *reactor.Conn, _ []byte) { h.answer(c) }
func (h *benchConn) OnDrain(*reactor.Conn)              {}
func (h *benchConn) OnClose(_ *reactor.Conn, err error) {
	if err != io.EOF && !errors.Is(err, unix.ECONNRESET) {
		fmt.Fprintln(os.Stderr, err)
	}
}

func (h *benchConn) answer(c *reactor.Conn) {
	s := h.free
	if s == nil {
		s = new(benchSend)
		s.Done = func(error) { s.next, h.free = h.free, s }
	} else {
		h.free = s.next
	}
	n := binary.LittleEndian.Uint32(h.head[4:])
	s.head = h.head
	binary.LittleEndian.PutUint32(s.head[:], n)
	s.Head, s.Body = s.head[:], benchAnswer[:n]
	if err := c.Send(&s.Send); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

// benchProcess is a server.
type benchProcess struct {
	addr string
	in   io.WriteCloser
	out  *bufio.Reader
}

func startServer(b *testing.B, kind string) *benchProcess {
	b.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), serverEnv+"="+kind)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		in.Close()
		_ = cmd.Wait()
	})
	p := &benchProcess{in: in, out: bufio.NewReader(out)}
	line, err := p.out.ReadString('\n')
	if err != nil {
		b.Skip("the server did not start: ", err)
	}
	p.addr, _, _ = strings.Cut(strings.TrimSpace(line), " ")
	return p
}

// used is the server's processor time.
func (p *benchProcess) used(b *testing.B) time.Duration {
	if _, err := fmt.Fprintln(p.in); err != nil {
		b.Fatal(err)
	}
	line, err := p.out.ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return time.Duration(n)
}

// benchClient has depth requests under way on each connection, until ops were answered.
func benchClient(addr string, conns, depth, payload, answer int) (run func(ops int) error, end func(), err error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, nil, err
	}
	type state struct{ toSend, toRecv int }
	states := map[int32]*state{}
	end = func() {
		for fd := range states {
			unix.Close(int(fd))
		}
		unix.Close(ep)
	}
	tcp, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		return nil, end, err
	}
	for range conns {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, end, err
		}
		states[int32(fd)] = new(state)
		err = unix.Connect(fd, &unix.SockaddrInet4{Port: tcp.Port, Addr: [4]byte(tcp.IP.To4())})
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1), unix.SetNonblock(fd, true),
			unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLET&(1<<32-1), Fd: int32(fd)}))
		if err != nil {
			return nil, end, err
		}
	}
	request := make([]byte, benchHead+payload)
	binary.LittleEndian.PutUint32(request, uint32(payload))
	binary.LittleEndian.PutUint32(request[4:], uint32(answer))
	sink := make([]byte, 1<<20)
	// step goes as far as it can on one connection, and starts a request for each that was answered.
	step := func(fd int, s *state, start func() bool) (done int, err error) {
		for {
			moved := false
			for s.toSend > 0 {
				at := (len(request) - s.toSend%len(request)) % len(request)
				n, err := unix.Write(fd, request[at:])
				if err == unix.EAGAIN {
					break
				} else if err != nil {
					return done, err
				}
				s.toSend -= n
				moved = true
			}
			if s.toRecv > 0 {
				n, err := unix.Read(fd, sink[:min(len(sink), s.toRecv)])
				if err != nil && err != unix.EAGAIN {
					return done, err
				} else if err == nil && n == 0 {
					return done, io.ErrUnexpectedEOF
				}
				if n > 0 {
					before := (s.toRecv + benchHead + answer - 1) / (benchHead + answer)
					s.toRecv -= n
					for range before - (s.toRecv+benchHead+answer-1)/(benchHead+answer) {
						done++
						if start() {
							s.toSend += len(request)
							s.toRecv += benchHead + answer
						}
					}
					moved = s.toSend > 0 || n == len(sink)
				}
			}
			if !moved {
				return done, nil
			}
		}
	}
	events := make([]unix.EpollEvent, 256)
	return func(ops int) error {
		left, under := ops, 0
		start := func() bool {
			if left == 0 {
				return false
			}
			left--
			under++
			return true
		}
		for range depth {
			for _, s := range states {
				if start() {
					s.toSend += len(request)
					s.toRecv += benchHead + answer
				}
			}
		}
		for fd, s := range states {
			n, err := step(int(fd), s, start)
			if under -= n; err != nil {
				return err
			}
		}
		for under > 0 {
			n, err := unix.EpollWait(ep, events, 10_000)
			if err != nil && err != unix.EINTR || n == 0 {
				return fmt.Errorf("%d requests are not answered: %w", under, err)
			}
			for _, e := range events[:max(n, 0)] {
				n, err := step(int(e.Fd), states[e.Fd], start)
				if under -= n; err != nil {
					return err
				}
			}
		}
		return nil
	}, end, nil
}

var benchLoads = []struct {
	name                          string
	conns, depth, payload, answer int
}{
	{"load=echo/size=64/conns=64", 64, 1, 64 - benchHead, 64 - benchHead},
	{"load=echo/size=64/conns=1", 1, 1, 64 - benchHead, 64 - benchHead},
	{"load=echo/size=64/conns=1/depth=32", 1, 32, 64 - benchHead, 64 - benchHead},
	{"load=up/size=1048576/conns=1/depth=4", 1, 4, 1 << 20, 16},
	{"load=down/size=1048576/conns=1/depth=4", 1, 4, 16, 1 << 20},
	{"load=up/size=1048576/conns=8", 8, 1, 1 << 20, 16},
	{"load=down/size=1048576/conns=8", 8, 1, 16, 1 << 20},
}

// BenchmarkServer measures rates and the server's processor time for each operation.
func BenchmarkServer(b *testing.B) {
	for _, load := range benchLoads {
		for _, kind := range []string{"net", "ring", "poll"} {
			b.Run("server="+kind+"/"+load.name, func(b *testing.B) {
				if kind == "ring" {
					if _, err := iouring.New(iouring.Options{}); errors.Is(err, iouring.ErrUnavailable) {
						b.Skip(err)
					}
				}
				p := startServer(b, kind)
				run, end, err := benchClient(p.addr, load.conns, load.depth, load.payload, load.answer)
				defer end()
				if err != nil {
					b.Fatal(err)
				}
				if err := run(10 * load.conns); err != nil {
					b.Fatal(err)
				}
				if size := max(load.payload, load.answer); size > 4096 {
					b.SetBytes(int64(size))
				}
				used, began := p.used(b), time.Now()
				b.ResetTimer()
				if err := run(b.N); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(b.N)/time.Since(began).Seconds(), "ops/s")
				b.ReportMetric(float64((p.used(b)-used).Nanoseconds())/float64(b.N), "server-ns/op")
			})
		}
	}
}
