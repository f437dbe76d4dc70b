package records

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/iouring/reactor"
)

// unixSockets are the two ends of a connection that uses up no port, however often one is made.
func unixSockets(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "")
		nc, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = nc.(*net.UnixConn)
		if err := nc.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
	}
	return ends[0], ends[1]
}

// taker takes what comes in ways that a script says: it waits for more, takes little, has buffers filled, pauses.
type taker struct {
	l      *reactor.Loop
	c      Conn
	script []byte
	step   int
	total  int // of bytes that were written
	got    []byte
	resume reactor.Task
	timer  reactor.Timer
	fault  string
	err    error
	full   chan struct{} // closed when all is there
	closed chan struct{}
}

// took notes what came.
func (d *taker) took(p []byte) {
	if d.got = append(d.got, p...); len(d.got) == d.total {
		close(d.full)
	}
}

// maxSteps bounds the script: some take a byte at a time, and pause after each.
const maxSteps = 600

func (d *taker) next() int {
	if len(d.script) == 0 {
		return 0
	}
	if d.step++; d.step == maxSteps {
		d.script = []byte{255} // all that there is, without a pause
	}
	return int(d.script[d.step%len(d.script)])
}

func (d *taker) say(fault string) {
	if d.fault == "" {
		d.fault = fault
	}
}

// maybePause pauses now and then, until the next turn or a little longer.
func (d *taker) maybePause() {
	if d.c.Paused() {
		return
	}
	switch d.next() % 5 {
	case 1:
		d.c.Pause()
		d.l.Post(&d.resume)
	case 2:
		d.c.Pause()
		d.l.SetTimer(&d.timer, 0)
	}
}

func (d *taker) OnData(_ *reactor.Conn, p []byte) int {
	left := d.total - len(d.got)
	switch {
	case d.c.Paused():
		d.say("called while it pauses")
	case len(p) == 0 || len(p) > left:
		d.say("nothing came, or more than was written")
		d.c.Close(errors.New("the test has failed"))
		return len(p)
	}
	x := d.next()
	if want := min(left, 1+x*x); x%4 == 0 && len(p) < want && want <= maxHeld/2 {
		d.c.Need(want)
		return 0
	}
	n := min(len(p), 1+x*d.next())
	d.took(p[:n])
	if left -= n; left > 0 && x%3 == 0 {
		d.c.Fill(make([]byte, min(left, 1+d.next()<<(x%11))))
	}
	d.maybePause()
	return n
}

func (d *taker) OnFilled(_ *reactor.Conn, p []byte) {
	if d.c.Paused() {
		d.say("filled while it pauses")
	}
	d.took(p)
	d.maybePause()
}

func (d *taker) OnDrain(*reactor.Conn) {}

func (d *taker) OnClose(_ *reactor.Conn, err error) {
	d.l.StopTimer(&d.timer)
	d.err = err
	close(d.closed)
}

// FuzzConn: a connection on a loop gives its handler, however that takes it, what the other end wrote up to where somebody has changed it, and then ends.
func FuzzConn(f *testing.F) {
	f.Add(uint32(100_000), []byte{200, 3, 16}, []byte{7, 200, 11, 90}, []byte{255}, uint32(0), byte(0), byte(0))
	f.Add(uint32(300_000), []byte{16, 15, 14, 1}, []byte{0, 3, 6, 250, 9}, []byte{9, 250, 1}, uint32(70_000), byte(1), byte(0))
	f.Add(uint32(70_000), []byte{16}, []byte{3, 255, 12, 255, 5}, []byte{255, 254}, uint32(65_550), byte(9), byte(1))
	f.Add(uint32(20_000), []byte{15, 2}, []byte{4, 44, 33}, []byte{100}, uint32(300), byte(250), byte(2))
	f.Add(uint32(5_000), []byte{3, 4, 5, 6}, []byte{}, []byte{1, 2, 3}, uint32(1000), byte(77), byte(3))
	f.Add(uint32(0), []byte{}, []byte{}, []byte{}, uint32(0), byte(3), byte(3))
	loops := []*reactor.Loop{newLoop(f, reactor.Poll)}
	if l, err := reactor.Start(reactor.Options{Kind: reactor.Ring, SendBytes: 1 << 30}); err == nil {
		loops = append(loops, l)
		f.Cleanup(func() { l.Close(context.Background()) })
	}
	count := 0
	f.Fuzz(func(t *testing.T, size uint32, lengths, script, pieces []byte, at uint32, with, how byte) {
		count++
		l := loops[count%len(loops)]
		p := pattern(int(size%400_000), int(size))
		pa, pb := pairs(t, 1)
		pa.out.each, pb.in.each = 5, 5
		var b []byte
		ends := map[int]bool{0: true} // where records end
		for i, rest := 0, p; len(rest) > 0; i++ {
			n := len(rest)
			if len(lengths) > 0 {
				x := lengths[i%len(lengths)]
				n = 1<<(x%17) + int(x>>4)
			}
			n = min(n, len(rest), MaxContent)
			b = append(b, seal(t, pa.out, rest[:n])...)
			ends[len(b)] = true
			rest = rest[n:]
		}
		whole := bytes.Clone(b)
		if len(b) > 0 {
			switch i := int(at) % len(b); how % 5 {
			case 0:
				b[i] ^= with
			case 1:
				b = b[:i]
			case 2:
				b = append(b[:i:i], b[min(len(b), i+int(with)):]...)
			case 3:
				b = append(b[:i:i], append(bytes.Clone(b[:min(i, int(with))]), b[i:]...)...)
			}
		}
		x, y := unixSockets(t)
		defer x.Close()
		var told atomic.Int32
		d := &taker{l: l, script: script, total: len(p), full: make(chan struct{}), closed: make(chan struct{})}
		d.resume.Run = func() { d.c.Resume() }
		d.timer.Fire = d.resume.Run
		taken, err := Take(NewStream(y, pb, func() { told.Add(1) }))
		if err != nil {
			t.Fatal(err)
		}
		y.Close()
		adopted := make(chan error, 1)
		l.Do(func() {
			var err error
			d.c, err = taken.Adopt(l, d, nil)
			adopted <- err
		})
		if err := <-adopted; err != nil {
			t.Fatal(err)
		}
		for i, rest := 0, b; len(rest) > 0; i++ {
			n := len(rest)
			if len(pieces) > 0 {
				n = min(n, 1+int(pieces[i%len(pieces)])*int(pieces[(i+1)%len(pieces)]))
			}
			if _, err := x.Write(rest[:n]); err != nil {
				break // it has ended already
			}
			rest = rest[n:]
		}
		if bytes.Equal(b, whole) && len(p) > 0 { // an end is not to overtake what a pause holds back
			select {
			case <-d.full:
			case <-d.closed:
			case <-time.After(patience):
				t.Fatal("not all that was written comes")
			}
		}
		_ = x.CloseWrite()
		select {
		case <-d.closed:
		case <-time.After(patience):
			t.Fatal("the connection does not end")
		}
		forged := errors.Is(d.err, ErrForged)
		switch same := bytes.Equal(b, whole); {
		case d.fault != "":
			t.Fatal(d.fault)
		case !bytes.HasPrefix(p, d.got):
			t.Fatal("other bytes came than were written")
		case forged != (told.Load() == 1) || told.Load() > 1:
			t.Fatalf("%v, told %d times", d.err, told.Load())
		case same && (d.err != io.EOF || len(d.got) != len(p)):
			t.Fatalf("%d of %d bytes came, %v", len(d.got), len(p), d.err)
		case !same && d.err == io.EOF && !(bytes.HasPrefix(whole, b) && ends[len(b)]):
			t.Fatalf("%d of %d bytes came of a stream that was changed, and then an orderly end", len(d.got), len(p))
		case !forged && d.err != io.EOF && !errors.Is(d.err, io.ErrUnexpectedEOF):
			t.Fatal(d.err)
		}
	})
}

// FuzzSend: messages of any lengths leave a loop as they are, in order, and each is given back once.
func FuzzSend(f *testing.F) {
	f.Add([]byte{0, 0, 1, 1, 3, 200, 0, 255, 255, 0}, byte(1))
	f.Add([]byte{8, 12, 8, 12, 8, 0, 8, 0, 8, 16}, byte(3))
	f.Add([]byte{17, 0, 0, 17, 17, 17}, byte(200))
	f.Add([]byte{16, 16, 0, 0, 16, 1, 0, 0}, byte(0))
	l := newLoop(f, reactor.Auto)
	f.Fuzz(func(t *testing.T, sizes []byte, turn byte) {
		if len(sizes) > 200 {
			return
		}
		length := func(x byte) int { // 0, or about a power of two
			if x%18 == 0 {
				return 0
			}
			return 1<<(x%18-1) + int(x/18) - 4*int(x%2)
		}
		var sends []*reactor.Send
		var want []byte
		var back []int // how often each was given back; the loop's until it has closed the connection
		for i := 0; i+1 < len(sizes) && len(want) < 1<<20; i += 2 {
			s := &reactor.Send{Head: pattern(max(0, length(sizes[i])), i), Body: pattern(max(0, length(sizes[i+1])), i+1)}
			n := len(back)
			back = append(back, 0)
			s.Done = func(error) { back[n]++ }
			want = append(append(want, s.Head...), s.Body...)
			sends = append(sends, s)
		}
		x, y := unixSockets(t)
		defer x.Close()
		pa, pb := pairs(t, 1)
		pa.in.each, pb.out.each = 3, 3
		d := &taker{l: l, closed: make(chan struct{})}
		taken, err := Take(NewStream(y, pb, nil))
		if err != nil {
			t.Fatal(err)
		}
		y.Close()
		adopted := make(chan error, 1)
		l.Do(func() {
			var err error
			d.c, err = taken.Adopt(l, d, nil)
			adopted <- err
		})
		if err := <-adopted; err != nil {
			t.Fatal(err)
		}
		for rest := sends; len(rest) > 0; { // some in each turn of the loop
			n := min(len(rest), 1+int(turn%8))
			some := rest[:n]
			rest = rest[n:]
			l.Do(func() {
				for _, s := range some {
					if err := d.c.Send(s); err != nil {
						t.Error(err)
					}
				}
			})
		}
		got := make([]byte, len(want))
		if _, err := io.ReadFull(NewStream(x, pa, nil), got); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%v, equal %v", err, bytes.Equal(got, want))
		}
		done := make(chan struct{})
		l.Do(func() { d.c.Close(nil); close(done) })
		<-done
		select {
		case <-d.closed:
		case <-time.After(patience):
			t.Fatal("the connection does not end")
		}
		for i, n := range back {
			if n != 1 {
				t.Errorf("message %d of %d was given back %d times", i, len(back), n)
			}
		}
	})
}
