// Package nbdtest is an NBD server in memory for tests, which also does wrong what it is told to.
//
// Use: Start, then URI. A Server may be asked at once by as many clients as its test wants; it ends with the test.
package nbdtest

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"varve/internal/nbd"
)

// Options of a server. The zero value is one with an export of a mebibyte that does all that the client knows.
type Options struct {
	Size         int       // of the export; default 1 MiB
	Flags        nbd.Flags // default: all but ReadOnly and CanMultiConn
	Name         string    // of the only export
	Least        uint32    // block size that is told; 0: none is
	Simple       bool      // does not know structured replies
	NoGo         bool      // does not know OptGo
	TCP          bool      // instead of a socket in the filesystem
	GreetingOnly []byte    // is sent in place of everything, and then the server hangs up
	// Answer, unless it is nil, is asked before each request; if it returns true it has answered, or has said something else.
	Answer func(c net.Conn, r nbd.Request) bool
	// Fault, unless it is nil, may return an error to answer.
	Fault func(r nbd.Request) nbd.Errno
}

// Server is one export.
type Server struct {
	URI nbd.URI

	o     Options
	l     net.Listener
	wg    sync.WaitGroup
	mu    sync.Mutex
	data  []byte
	seen  map[nbd.Command]int
	fua   int
	conns map[net.Conn]struct{}
	total int
}

// Start begins to serve until the test ends.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	if o.Size == 0 {
		o.Size = 1 << 20
	}
	if o.Flags == 0 {
		o.Flags = nbd.CanFlush | nbd.CanFUA | nbd.CanTrim | nbd.CanZero
	}
	o.Flags |= nbd.HasFlags
	s := &Server{o: o, data: make([]byte, o.Size), seen: map[nbd.Command]int{}, conns: map[net.Conn]struct{}{}}
	s.URI = nbd.URI{Network: "unix", Address: filepath.Join(t.TempDir(), "nbd"), Export: o.Name}
	if o.TCP {
		s.URI.Network, s.URI.Address = "tcp", "127.0.0.1:0"
	}
	var err error
	if s.l, err = net.Listen(s.URI.Network, s.URI.Address); err != nil {
		t.Fatal(err)
	}
	s.URI.Address = s.l.Addr().String()
	s.wg.Go(s.accept)
	t.Cleanup(s.Stop)
	return s
}

// Stop ends the server and its connections, as a kill would.
func (s *Server) Stop() {
	s.l.Close()
	s.mu.Lock()
	for c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// Seen returns how many requests of a command came.
func (s *Server) Seen(c nbd.Command) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen[c]
}

// FUA returns how many writes had to be on stable media at once.
func (s *Server) FUA() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fua
}

// Connections returns how many there have been.
func (s *Server) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}

// Change gives f the contents to change.
func (s *Server) Change(f func(data []byte)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s.data)
}

// HangUp ends what the server sends on a connection; what was sent before arrives.
func HangUp(c net.Conn) { _ = c.(interface{ CloseWrite() error }).CloseWrite() }

func (s *Server) accept() {
	for {
		c, err := s.l.Accept()
		if err != nil {
			return // stopped
		}
		s.mu.Lock()
		s.conns[c] = struct{}{}
		s.total++
		s.mu.Unlock()
		s.wg.Go(func() {
			s.serve(c)
			c.Close()
			s.mu.Lock()
			delete(s.conns, c)
			s.mu.Unlock()
		})
	}
}

// serve works until the client goes; a client that goes at any moment is what tests do.
func (s *Server) serve(c net.Conn) {
	if s.o.GreetingOnly != nil {
		_, _ = c.Write(s.o.GreetingOnly)
		HangUp(c)
		_, _ = io.Copy(io.Discard, c)
		return
	}
	r := bufio.NewReader(c)
	structured, ok := s.negotiate(c, r)
	if !ok {
		return
	}
	head := make([]byte, nbd.RequestSize)
	for {
		if _, err := io.ReadFull(r, head); err != nil {
			return
		}
		q, err := nbd.DecodeRequest(head)
		if err != nil || q.Length > nbd.MaxPayload || q.Command == nbd.CmdDisconnect {
			return
		}
		var p []byte
		if q.Command == nbd.CmdWrite {
			p = make([]byte, q.Length)
			if _, err := io.ReadFull(r, p); err != nil {
				return
			}
		}
		if s.o.Answer != nil && s.o.Answer(c, q) {
			continue
		}
		if _, err := c.Write(s.do(q, p, structured)); err != nil {
			return
		}
	}
}

var be = binary.BigEndian

// negotiate returns whether replies to reads are structured.
func (s *Server) negotiate(c net.Conn, r io.Reader) (structured, ok bool) {
	b := be.AppendUint64(nil, nbd.Magic)
	b = be.AppendUint64(b, nbd.OptionMagic)
	b = be.AppendUint16(b, nbd.FixedNewstyle|nbd.NoZeroes)
	if _, err := c.Write(b); err != nil {
		return false, false
	}
	if _, err := io.ReadFull(r, make([]byte, 4)); err != nil {
		return false, false
	}
	for {
		head := make([]byte, nbd.OptionSize)
		if _, err := io.ReadFull(r, head); err != nil || be.Uint64(head) != nbd.OptionMagic || be.Uint32(head[12:]) > 1<<16 {
			return false, false
		}
		o, data := nbd.Option(be.Uint32(head[8:])), make([]byte, be.Uint32(head[12:]))
		if _, err := io.ReadFull(r, data); err != nil {
			return false, false
		}
		export := be.AppendUint16(be.AppendUint64(nil, uint64(s.o.Size)), uint16(s.o.Flags))
		var out []byte
		switch {
		case o == nbd.OptStructuredReply && !s.o.Simple:
			structured = true
			out = nbd.AppendAnswer(nil, o, nbd.AnsAck, nil)
		case o == nbd.OptExportName && string(data) != s.o.Name:
			return false, false
		case o == nbd.OptExportName:
			_, err := c.Write(export)
			return structured, err == nil
		case o == nbd.OptGo && !s.o.NoGo && (len(data) < 4 || !bytes.HasPrefix(data[4:], []byte(s.o.Name)) || int(be.Uint32(data)) != len(s.o.Name)):
			out = nbd.AppendAnswer(nil, o, nbd.AnsUnknown, []byte("no such export"))
		case o == nbd.OptGo && !s.o.NoGo:
			out = nbd.AppendAnswer(nil, o, nbd.AnsInfo, append(be.AppendUint16(nil, uint16(nbd.InfoExport)), export...))
			if s.o.Least > 0 {
				sizes := be.AppendUint16(nil, uint16(nbd.InfoBlockSize))
				for _, n := range []uint32{s.o.Least, max(s.o.Least, 4096), nbd.MaxPayload} {
					sizes = be.AppendUint32(sizes, n)
				}
				out = nbd.AppendAnswer(out, o, nbd.AnsInfo, sizes)
			}
			out = nbd.AppendAnswer(out, o, nbd.AnsAck, nil)
			_, err := c.Write(out)
			return structured, err == nil
		default:
			out = nbd.AppendAnswer(nil, o, nbd.AnsUnsupported, nil)
		}
		if _, err := c.Write(out); err != nil {
			return false, false
		}
	}
}

// do carries a request out and returns the reply.
func (s *Server) do(q nbd.Request, p []byte, structured bool) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen[q.Command]++
	if q.Flags&nbd.FlagFUA != 0 {
		s.fua++
	}
	fault := nbd.Errno(0)
	if s.o.Fault != nil {
		fault = s.o.Fault(q)
	}
	end := q.Offset + uint64(q.Length)
	if fault == 0 && (end > uint64(len(s.data)) || end < q.Offset) {
		fault = nbd.EINVAL
	}
	if fault == 0 {
		switch q.Command {
		case nbd.CmdRead:
			return s.read(q, structured)
		case nbd.CmdWrite:
			copy(s.data[q.Offset:], p)
		case nbd.CmdTrim, nbd.CmdWriteZeroes:
			clear(s.data[q.Offset:end])
		case nbd.CmdFlush, nbd.CmdCache:
		default:
			fault = nbd.EINVAL
		}
	}
	if fault != 0 && structured {
		const words = "as the test wants"
		out := nbd.AppendChunk(nil, nbd.ReplyDone, nbd.ChunkError, q.Cookie, 6+len(words))
		out = be.AppendUint16(be.AppendUint32(out, uint32(fault)), uint16(len(words)))
		return append(out, words...)
	}
	return nbd.AppendSimple(nil, fault, q.Cookie)
}

// read answers in pieces, the last of them first, with holes where there are zeros.
func (s *Server) read(q nbd.Request, structured bool) []byte {
	data := s.data[q.Offset:][:q.Length]
	if !structured {
		return append(nbd.AppendSimple(nil, 0, q.Cookie), data...)
	}
	const piece = 4096
	var out []byte
	for at := (max(len(data), 1) - 1) / piece * piece; at >= 0 && len(data) > 0; at -= piece {
		p, off := data[at:min(at+piece, len(data))], q.Offset+uint64(at)
		if bytes.Count(p, []byte{0}) == len(p) {
			out = be.AppendUint64(nbd.AppendChunk(out, 0, nbd.ChunkHole, q.Cookie, 12), off)
			out = be.AppendUint32(out, uint32(len(p)))
			continue
		}
		out = append(be.AppendUint64(nbd.AppendChunk(out, 0, nbd.ChunkData, q.Cookie, 8+len(p)), off), p...)
	}
	return nbd.AppendChunk(out, nbd.ReplyDone, nbd.ChunkNone, q.Cookie, 0)
}
