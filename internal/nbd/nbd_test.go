package nbd_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"varve/internal/nbd"
	"varve/internal/nbd/nbdtest"
)

func dial(t *testing.T, u nbd.URI) *nbd.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c, err := nbd.Dial(ctx, u)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestParseURI(t *testing.T) {
	for s, want := range map[string]nbd.URI{
		"nbd://host":                             {Network: "tcp", Address: "host:10809"},
		"nbd://host:99/disk":                     {Network: "tcp", Address: "host:99", Export: "disk"},
		"nbd://[::1]/a%20b/c":                    {Network: "tcp", Address: "[::1]:10809", Export: "a b/c"},
		"nbd+unix:///disk?socket=/tmp/s":         {Network: "unix", Address: "/tmp/s", Export: "disk"},
		"nbd+unix:///?socket=/tmp/with%20blanks": {Network: "unix", Address: "/tmp/with blanks"},
	} {
		u, err := nbd.ParseURI(s)
		if err != nil || u != want {
			t.Errorf("%s: %+v, %v", s, u, err)
		}
		if again, err := nbd.ParseURI(u.String()); err != nil || again != u {
			t.Errorf("%s became %s: %+v, %v", s, u, again, err)
		}
	}
	for _, s := range []string{"", "nbd:", "http://x", "nbd:///x", "nbd://h?socket=/x", "nbd+unix:///x", "nbd+unix://h/x?socket=/y", "nbds://h", "nbd://u@h", "nbd://h?a=b", "nbd://h#f",
		"nbd://h/" + strings.Repeat("x", nbd.MaxName+1)} {
		if u, err := nbd.ParseURI(s); err == nil {
			t.Errorf("%.40q was taken for %+v", s, u)
		}
	}
}

// TestClient: what is written is read, under each way of replying, with many requests at once, and nothing is done that was not asked for.
func TestClient(t *testing.T) {
	for name, o := range map[string]nbdtest.Options{
		"structured": {Name: "disk", Least: 512}, "simple": {Name: "disk", Simple: true}, "old": {NoGo: true, Simple: true}, "old and structured": {NoGo: true, Name: "x"},
		"tcp": {TCP: true, Flags: nbd.CanMultiConn | nbd.CanFlush},
	} {
		t.Run(name, func(t *testing.T) {
			s := nbdtest.Start(t, o)
			c := dial(t, s.URI)
			if c.Export.Size != 1<<20 || c.Export.Structured == o.Simple || c.MultiConn() != (name == "tcp") || o.Least != 0 && c.Export.Least != o.Least {
				t.Fatalf("%+v", c.Export)
			}
			var wg sync.WaitGroup
			const part = 64 << 10
			for n := range 16 {
				wg.Go(func() {
					r := rand.New(rand.NewPCG(1, uint64(n)))
					want := make([]byte, part)
					for range 50 {
						off, size := r.IntN(part), 0
						size = 1 + r.IntN(part-off)
						p := want[off : off+size]
						at := uint64(n*part + off)
						var err error
						switch r.IntN(4) {
						case 0:
							for i := range p {
								p[i] = byte(r.Uint32())
							}
							err = c.Do(nbd.CmdWrite, 0, at, p, 0)
						case 1:
							clear(p)
							err = c.Do(nbd.CmdWriteZeroes, nbd.FlagNoHole, at, nil, uint32(size))
						default:
							got := bytes.Repeat([]byte{0xee}, size)
							if err = c.Do(nbd.CmdRead, 0, at, got, 0); err == nil && !bytes.Equal(got, p) {
								err = fmt.Errorf("wrong bytes")
							}
						}
						if err != nil {
							t.Errorf("%d bytes at %d: %v", size, at, err)
							return
						}
					}
				})
			}
			wg.Wait()
			before := s.Seen(nbd.CmdWrite)
			for _, err := range []error{
				c.Do(nbd.CmdFlush, 0, 0, nil, 0), c.Do(nbd.CmdTrim, 0, 4096, nil, 8192), c.Do(nbd.CmdWrite, nbd.FlagFUA, 0, []byte("x"), 0),
			} {
				if err != nil {
					t.Error(err)
				}
			}
			if s.Seen(nbd.CmdFlush) != 1 || s.Seen(nbd.CmdTrim) != 1 || s.FUA() != 1 || s.Seen(nbd.CmdWrite) != before+1 {
				t.Error("the server saw something else")
			}
			err := c.Do(nbd.CmdRead, 0, 1<<20, make([]byte, 1), 0)
			if !errors.Is(err, nbd.EINVAL) || !errors.Is(err, syscall.EINVAL) {
				t.Errorf("a read beyond the end: %v", err)
			}
			if err := c.Do(nbd.CmdRead, 0, 0, make([]byte, 10), 0); err != nil {
				t.Errorf("after an error: %v", err)
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
			if err := c.Do(nbd.CmdFlush, 0, 0, nil, 0); !errors.Is(err, nbd.ErrClosed) {
				t.Errorf("on a closed connection: %v", err)
			}
		})
	}
}

var be = binary.BigEndian

// TestGarbage: what breaks the protocol ends the connection, the request, and every other one, with what came.
func TestGarbage(t *testing.T) {
	chunk := func(flags uint16, is nbd.Chunk, q nbd.Request, p ...byte) []byte {
		return append(nbd.AppendChunk(nil, flags, is, q.Cookie, len(p)), p...)
	}
	at := func(off uint64, p ...byte) []byte { return append(be.AppendUint64(nil, off), p...) }
	for name, tc := range map[string]struct {
		simple bool
		reply  func(q nbd.Request) []byte
		want   string
		closed bool // is ErrClosed, not ErrProtocol
	}{
		"garbage":      {false, func(nbd.Request) []byte { return []byte("HTTP/1.1 400 Bad Request\r\n\r\n") }, "begins with 0x48545450", false},
		"wrong cookie": {true, func(q nbd.Request) []byte { return nbd.AppendSimple(nil, 0, q.Cookie+77) }, "not under way", false},
		"simple read":  {false, func(q nbd.Request) []byte { return nbd.AppendSimple(nil, 0, q.Cookie) }, "a simple reply to a read", false},
		"structured":   {true, func(q nbd.Request) []byte { return chunk(nbd.ReplyDone, nbd.ChunkNone, q) }, "simple ones were agreed on", false},
		"too little":   {false, func(q nbd.Request) []byte { return chunk(nbd.ReplyDone, nbd.ChunkNone, q) }, "answered with 0", false},
		"too much": {false, func(q nbd.Request) []byte {
			return chunk(1, nbd.ChunkData, q, at(q.Offset, make([]byte, q.Length+1)...)...)
		}, "a chunk with 4097 bytes", false},
		"elsewhere": {false, func(q nbd.Request) []byte {
			return chunk(1, nbd.ChunkData, q, at(q.Offset-1, make([]byte, q.Length)...)...)
		}, "a chunk with 4096 bytes at 8191", false},
		"no data":           {false, func(q nbd.Request) []byte { return chunk(1, nbd.ChunkData, q, at(0)...) }, "want more than 8", false},
		"huge hole":         {false, func(q nbd.Request) []byte { return chunk(1, nbd.ChunkHole, q, at(q.Offset, 255, 255, 255, 255)...) }, "4294967295 bytes", false},
		"odd hole":          {false, func(q nbd.Request) []byte { return chunk(1, nbd.ChunkHole, q, 1, 2, 3) }, "want 12", false},
		"unknown chunk":     {false, func(q nbd.Request) []byte { return chunk(1, 77, q) }, "type 77", false},
		"none with data":    {false, func(q nbd.Request) []byte { return chunk(1, nbd.ChunkNone, q, 1) }, "empty chunk of 1 bytes", false},
		"none and more":     {false, func(q nbd.Request) []byte { return chunk(0, nbd.ChunkNone, q) }, "last: false", false},
		"error too short":   {false, func(q nbd.Request) []byte { return chunk(1, nbd.ChunkError, q, 0, 0, 0, 5) }, "an error of 4 bytes", false},
		"error without one": {false, func(q nbd.Request) []byte { return chunk(1, nbd.ChunkError, q, 0, 0, 0, 0, 0, 0) }, "number 0", false},
		"message too long":  {false, func(q nbd.Request) []byte { return chunk(1, nbd.ChunkError, q, 0, 0, 0, 5, 1, 0) }, "message of 256", false},
		"twice": {false, func(q nbd.Request) []byte {
			one := chunk(0, nbd.ChunkData, q, at(q.Offset, 1, 2, 3)...)
			return append(one, one...)
		}, "came twice", false},
		"torn head":  {true, func(q nbd.Request) []byte { return nbd.AppendSimple(nil, 0, q.Cookie)[:7] }, "3 of 12 bytes", true},
		"torn magic": {true, func(q nbd.Request) []byte { return []byte{0x67} }, "first 4 bytes", true},
		"torn data":  {true, func(q nbd.Request) []byte { return append(nbd.AppendSimple(nil, 0, q.Cookie), make([]byte, 100)...) }, "100 of 4096 bytes", true},
		"torn chunk": {false, func(q nbd.Request) []byte {
			return chunk(1, nbd.ChunkData, q, at(q.Offset, make([]byte, q.Length)...)...)[:2000]
		}, "of 4096 bytes", true},
		"hangs up": {false, func(nbd.Request) []byte { return nil }, "the server hung up", true},
	} {
		t.Run(name, func(t *testing.T) {
			s := nbdtest.Start(t, nbdtest.Options{Simple: tc.simple, Answer: func(c net.Conn, q nbd.Request) bool {
				if q.Offset != 8192 {
					return true // waits for ever
				}
				_, _ = c.Write(tc.reply(q))
				if tc.closed {
					nbdtest.HangUp(c)
				}
				return true
			}})
			c := dial(t, s.URI)
			others := make(chan error, 4)
			for range cap(others) {
				go func() { others <- c.Do(nbd.CmdRead, 0, 0, make([]byte, 512), 0) }()
			}
			err := c.Do(nbd.CmdRead, 0, 8192, make([]byte, 4096), 0)
			is := nbd.ErrProtocol
			if tc.closed {
				is = nbd.ErrClosed
			}
			if !errors.Is(err, is) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want one with %q", err, tc.want)
			}
			for range cap(others) {
				if err := <-others; err == nil {
					t.Error("a request that was never answered ended well")
				}
			}
		})
	}
}

// TestErrors: an error with a message, one of a kind that nobody knows, and one that says where, end the request and not the connection.
func TestErrors(t *testing.T) {
	answers := map[uint64][]byte{}
	put := func(off uint64, is nbd.Chunk, p []byte) {
		answers[off] = append(be.AppendUint16(nil, uint16(is)), p...)
	}
	put(0, nbd.ChunkError, append([]byte{0, 0, 0, 28, 0, 4}, "full"...))
	put(1, 0x8055, []byte{0, 0, 0, 5, 0, 0})
	put(2, nbd.ChunkErrorOffset, be.AppendUint64([]byte{0, 0, 0, 5, 0, 0}, 42))
	s := nbdtest.Start(t, nbdtest.Options{Answer: func(c net.Conn, q nbd.Request) bool {
		a := answers[q.Offset]
		if a == nil || q.Command != nbd.CmdRead {
			return false
		}
		_, _ = c.Write(append(nbd.AppendChunk(nil, 0, nbd.Chunk(be.Uint16(a)), q.Cookie, len(a)-2), a[2:]...))
		_, _ = c.Write(nbd.AppendChunk(nil, nbd.ReplyDone, nbd.ChunkNone, q.Cookie, 0))
		return true
	}})
	c := dial(t, s.URI)
	for off, want := range map[uint64]struct {
		is    error
		words string
	}{0: {syscall.ENOSPC, `("full")`}, 1: {syscall.EIO, ""}, 2: {nbd.EIO, "at 42"}} {
		if err := c.Do(nbd.CmdRead, 0, off, make([]byte, 8), 0); !errors.Is(err, want.is) || !strings.Contains(err.Error(), want.words) {
			t.Errorf("%d: %v", off, err)
		}
	}
	if err := c.Do(nbd.CmdRead, 0, 99, make([]byte, 8), 0); err != nil {
		t.Error(err)
	}
}

// TestNegotiation: whatever a server says before the transmission is refused with what came, and at once.
func TestNegotiation(t *testing.T) {
	greeting := be.AppendUint16(be.AppendUint64(be.AppendUint64(nil, nbd.Magic), nbd.OptionMagic), nbd.FixedNewstyle)
	with := func(parts ...[]byte) []byte { return bytes.Join(append([][]byte{greeting}, parts...), nil) }
	no := nbd.AppendAnswer(nil, nbd.OptStructuredReply, nbd.AnsUnsupported, nil)
	export := be.AppendUint16(be.AppendUint64([]byte{0, 0}, 1<<20), uint16(nbd.HasFlags))
	sizes := func(a, b, c uint32) []byte {
		return be.AppendUint32(be.AppendUint32(be.AppendUint32([]byte{0, 3}, a), b), c)
	}
	goes := func(a nbd.Answer, p []byte) []byte { return nbd.AppendAnswer(nil, nbd.OptGo, a, p) }
	for want, said := range map[string][]byte{
		"0 of 18 bytes":               {},
		"begins with 0x5353482d322e3": []byte("SSH-2.0-OpenSSH_9.2p1\r\n"),
		"old style":                   be.AppendUint16(be.AppendUint64(be.AppendUint64(nil, nbd.Magic), nbd.OldMagic), 0),
		"fixed newstyle":              be.AppendUint16(be.AppendUint64(be.AppendUint64(nil, nbd.Magic), nbd.OptionMagic), 0),
		"goes on with 0x1":            be.AppendUint16(be.AppendUint64(be.AppendUint64(nil, nbd.Magic), 1), 1),
		"an answer to option 7":       with(goes(nbd.AnsAck, nil)),
		"an answer begins with 0x0":   with(make([]byte, 20)),
		"at most 12288":               with(nbd.AppendAnswer(nil, nbd.OptStructuredReply, nbd.AnsAck, make([]byte, 20000))[:20]),
		"with 3 bytes, want none":     with(nbd.AppendAnswer(nil, nbd.OptStructuredReply, nbd.AnsAck, make([]byte, 3))),
		"not its size":                with(no, goes(nbd.AnsAck, nil)),
		"type 0 with 1 bytes":         with(no, goes(nbd.AnsInfo, []byte{0, 0, 1})),
		"an information of 1 bytes":   with(no, goes(nbd.AnsInfo, []byte{0})),
		"TLS":                         with(no, goes(nbd.AnsTLSRequired, []byte("please"))),
		"please":                      with(no, goes(nbd.AnsTLSRequired, []byte("please"))),
		"no such export":              with(no, goes(nbd.AnsUnknown, nil)),
		"want an acknowledgement":     with(no, goes(nbd.AnsServer, nil)),
		"more than 64 answers":        with(no, bytes.Repeat(goes(nbd.AnsInfo, export), 70)),
		"without the bit":             with(no, goes(nbd.AnsInfo, make([]byte, 12)), goes(nbd.AnsAck, nil)),
		"an export of 18446744073709": nil,
		"block sizes of 3, 4096":      with(no, goes(nbd.AnsInfo, export), goes(nbd.AnsInfo, sizes(3, 4096, 8192)), goes(nbd.AnsAck, nil)),
		"hangs up":                    with(no, goes(nbd.AnsUnsupported, nil), []byte{1, 2}),
	} {
		if want == "an export of 18446744073709" {
			huge := append(append([]byte{0, 0}, bytes.Repeat([]byte{255}, 8)...), 0, 1)
			said = with(no, goes(nbd.AnsInfo, huge), goes(nbd.AnsAck, nil))
		}
		s := nbdtest.Start(t, nbdtest.Options{GreetingOnly: said})
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		_, err := nbd.Dial(ctx, s.URI)
		cancel()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want one with %q", err, want)
		}
	}
	s := nbdtest.Start(t, nbdtest.Options{Name: "disk", NoGo: true})
	s.URI.Export = "other"
	if _, err := nbd.Dial(t.Context(), s.URI); err == nil || !strings.Contains(err.Error(), "hangs up") {
		t.Errorf("an export that is not there: %v", err)
	}
}

// TestDialEnds: a server that says nothing is waited for as long as the context says.
func TestDialEnds(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := nbd.Dial(ctx, nbd.URI{Network: "tcp", Address: l.Addr().String()}); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// TestServerDies: everything under way ends, and closing does not wait for anybody.
func TestServerDies(t *testing.T) {
	waiting := make(chan struct{}, 100)
	s := nbdtest.Start(t, nbdtest.Options{Answer: func(net.Conn, nbd.Request) bool { waiting <- struct{}{}; return true }})
	c := dial(t, s.URI)
	ended := make(chan error, 8)
	for range cap(ended) {
		go func() { ended <- c.Do(nbd.CmdWrite, 0, 0, make([]byte, 4096), 0) }()
		<-waiting
	}
	s.Stop()
	for range cap(ended) {
		if err := <-ended; !errors.Is(err, nbd.ErrClosed) {
			t.Error(err)
		}
	}
	if c.Err() == nil {
		t.Error("the connection does not know")
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// TestQEMU: against qemu-nbd, where there is one.
func TestQEMU(t *testing.T) {
	program, err := exec.LookPath("qemu-nbd")
	if err != nil {
		t.Skip("no qemu-nbd (package qemu-utils)")
	}
	dir := t.TempDir()
	image, socket := filepath.Join(dir, "image"), filepath.Join(dir, "socket")
	if err := os.WriteFile(image, make([]byte, 4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-f", "raw", "-k", socket, "-x", "disk", "-e", "4", "-t", "--discard=unmap", image)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop := func() {
		if !stopped {
			stopped = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	defer stop()
	u := nbd.URI{Network: "unix", Address: socket, Export: "disk"}
	var c *nbd.Conn
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if c, err = nbd.Dial(t.Context(), u); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v\n%s", err, &out)
		}
	}
	defer c.Close()
	if c.Export.Size != 4<<20 || !c.Export.Structured || c.Export.Flags&(nbd.CanFlush|nbd.CanFUA|nbd.CanTrim|nbd.CanZero) != nbd.CanFlush|nbd.CanFUA|nbd.CanTrim|nbd.CanZero {
		t.Errorf("%+v", c.Export)
	}
	want := make([]byte, 1<<20)
	r := rand.NewPCG(3, 4)
	for i := 0; i < len(want); i += 8 {
		binary.LittleEndian.PutUint64(want[i:], r.Uint64())
	}
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			const n = 64 << 10
			if err := c.Do(nbd.CmdWrite, nbd.FlagFUA*uint16(i%2), uint64(i*n), want[i*n:(i+1)*n], 0); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	clear(want[8192:16384])
	clear(want[65536:131072])
	for _, err := range []error{
		c.Do(nbd.CmdFlush, 0, 0, nil, 0), c.Do(nbd.CmdWriteZeroes, nbd.FlagNoHole, 8192, nil, 8192), c.Do(nbd.CmdTrim, 0, 65536, nil, 65536),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	got := bytes.Repeat([]byte{1}, len(want)+4096)
	if err := c.Do(nbd.CmdRead, 0, 0, got, 0); err != nil || !bytes.Equal(got[:len(want)], want) || !bytes.Equal(got[len(want):], make([]byte, 4096)) {
		t.Errorf("%v, or other bytes", err)
	}
	if file, err := os.ReadFile(image); err != nil || !bytes.Equal(file[:len(want)], want) {
		t.Errorf("%v, or other bytes in the image", err)
	}
	if err := c.Do(nbd.CmdRead, 0, 4<<20, make([]byte, 512), 0); !errors.Is(err, nbd.EINVAL) {
		t.Errorf("beyond the end: %v", err)
	}
	u.Export = "none"
	if _, err := nbd.Dial(t.Context(), u); err == nil || !strings.Contains(err.Error(), "no such export") {
		t.Errorf("an export that is not there: %v", err)
	}
	stop()
	if err := c.Do(nbd.CmdRead, 0, 0, got, 0); !errors.Is(err, nbd.ErrClosed) || errors.Is(err, io.EOF) {
		t.Errorf("of a server that was killed: %v", err)
	}
}

// FuzzReplies: whatever comes in reply, the client neither hangs nor takes more memory than was asked for, and a read that ended well was filled.
func FuzzReplies(f *testing.F) {
	f.Add(true, nbd.AppendSimple(nil, 0, 1))
	f.Add(false, append(be.AppendUint64(nbd.AppendChunk(nil, 1, nbd.ChunkData, 1, 72), 0), make([]byte, 64)...))
	f.Add(false, nbd.AppendChunk(nil, 1, nbd.ChunkNone, 1, 0))
	f.Fuzz(func(t *testing.T, simple bool, reply []byte) {
		s := nbdtest.Start(t, nbdtest.Options{Simple: simple, Answer: func(c net.Conn, _ nbd.Request) bool {
			_, _ = c.Write(reply)
			nbdtest.HangUp(c)
			return true
		}})
		c := dial(t, s.URI)
		p := bytes.Repeat([]byte{0xaa}, 64)
		_ = c.Do(nbd.CmdRead, 0, 0, p, 0)
		c.Close()
	})
}
