package nbdserver_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"varve/internal/nbd"
	"varve/internal/nbd/nbdserver"
	"varve/iouring/reactor"
)

func wish(export string, infos ...nbd.Info) []byte {
	p := append(be.AppendUint32(nil, uint32(len(export))), export...)
	p = be.AppendUint16(p, uint16(len(infos)))
	for _, i := range infos {
		p = be.AppendUint16(p, uint16(i))
	}
	return p
}

func query(export string, all ...string) []byte {
	p := append(be.AppendUint32(nil, uint32(len(export))), export...)
	p = be.AppendUint32(p, uint32(len(all)))
	for _, s := range all {
		p = append(be.AppendUint32(p, uint32(len(s))), s...)
	}
	return p
}

// TestOptions walks through the negotiation, byte by byte, up to a block status.
func TestOptions(t *testing.T) {
	each(t, config{}, func(t *testing.T, s *server) {
		r := s.raw()
		for _, b := range be.AppendUint32(nil, nbd.FixedNewstyle|nbd.NoZeroes) {
			r.say(b)
			time.Sleep(time.Millisecond)
		}
		ask := func(o nbd.Option, data []byte, want ...nbd.Answer) (last []byte) {
			t.Helper()
			r.say(nbd.AppendOption(nil, o, data)...)
			for _, w := range want {
				a, p := r.answer(o)
				if a != w {
					t.Errorf("option %d: %v (%q), want %v", o, a, p, w)
				}
				last = p
			}
			return last
		}
		ask(nbd.OptList, nil, nbd.AnsServer, nbd.AnsServer, nbd.AnsAck)
		ask(nbd.OptList, []byte{1}, nbd.AnsInvalid)
		ask(nbd.OptStartTLS, nil, nbd.AnsUnsupported)
		ask(99, make([]byte, 1000), nbd.AnsUnsupported)
		ask(99, make([]byte, nbd.MaxOption+1), nbd.AnsTooBig)
		ask(nbd.OptSetMetaContext, query("disk", nbd.BaseAllocation), nbd.AnsInvalid) // before structured replies
		ask(nbd.OptStructuredReply, nil, nbd.AnsAck)
		ask(nbd.OptStructuredReply, []byte{0}, nbd.AnsInvalid)
		ask(nbd.OptListMetaContext, query("disk"), nbd.AnsMetaContext, nbd.AnsAck)
		ask(nbd.OptListMetaContext, query("disk", "base:"), nbd.AnsMetaContext, nbd.AnsAck)
		ask(nbd.OptListMetaContext, query("disk", "qemu:"), nbd.AnsAck)
		ask(nbd.OptListMetaContext, query("nope"), nbd.AnsUnknown)
		ask(nbd.OptSetMetaContext, query("disk", "base:"), nbd.AnsAck)
		ask(nbd.OptSetMetaContext, []byte{0, 0}, nbd.AnsInvalid)
		if p := ask(nbd.OptSetMetaContext, query("", "x", nbd.BaseAllocation), nbd.AnsMetaContext); !bytes.Equal(p, append([]byte{0, 0, 0, 1}, nbd.BaseAllocation...)) {
			t.Errorf("%q", p)
		}
		r.answer(nbd.OptSetMetaContext)
		ask(nbd.OptInfo, wish("nope"), nbd.AnsUnknown)
		ask(nbd.OptInfo, []byte{1}, nbd.AnsInvalid)
		ask(nbd.OptInfo, wish("disk", nbd.InfoName, nbd.InfoDescribe), nbd.AnsInfo, nbd.AnsInfo, nbd.AnsInfo, nbd.AnsInfo, nbd.AnsAck)
		if s.m.opened() != 0 {
			t.Error("information opened the image")
		}
		ask(nbd.OptGo, wish("disk"), nbd.AnsInfo, nbd.AnsInfo, nbd.AnsAck)

		q := nbd.Request{Command: nbd.CmdWrite, Cookie: 1, Offset: 8192, Length: 4096}
		r.say(append(q.Append(nil), make([]byte, 4096)...)...)
		if p := r.read(nbd.SimpleSize); !bytes.Equal(p, nbd.AppendSimple(nil, 0, 1)) {
			t.Errorf("write: %x", p)
		}
		size := uint32(4 * mib)
		for _, tc := range []struct {
			flags uint16
			want  []nbd.Extent
		}{
			{0, []nbd.Extent{{Length: 8192, Flags: 3}, {Length: 4096}, {Length: size - 12288, Flags: 3}}},
			{nbd.FlagReqOne, []nbd.Extent{{Length: 8192, Flags: 3}}},
		} {
			q = nbd.Request{Command: nbd.CmdBlockStatus, Cookie: 2, Length: size, Flags: tc.flags}
			want := nbd.AppendStatus(nil, 2, 1, tc.want)
			r.say(q.Append(nil)...)
			if p := r.read(len(want)); !bytes.Equal(p, want) {
				t.Errorf("block status %x, want %x", p, want)
			}
		}
		q = nbd.Request{Command: nbd.CmdDisconnect}
		r.say(q.Append(nil)...)
		r.ended()
	})
}

// TestExportName: the option of old clients, with the zeros that follow it, and simple replies.
func TestExportName(t *testing.T) {
	s := serve(t, config{})
	r := s.raw()
	r.say(be.AppendUint32(nil, nbd.FixedNewstyle)...)
	r.say(nbd.AppendOption(nil, nbd.OptExportName, []byte("disk"))...)
	if p := r.read(10 + nbd.ZeroesSize); be.Uint64(p) != 4*mib || nbd.Flags(be.Uint16(p[8:]))&nbd.CanDF != 0 {
		t.Errorf("%x", p)
	}
	s.m.f.Data(func(p []byte) { copy(p, "varve") })
	q := nbd.Request{Command: nbd.CmdRead, Cookie: 7, Length: 5}
	r.say(q.Append(nil)...)
	if p := r.read(nbd.SimpleSize + 5); !bytes.Equal(p, append(nbd.AppendSimple(nil, 0, 7), "varve"...)) {
		t.Errorf("%x", p)
	}
	q.Offset = 4 * mib
	r.say(q.Append(nil)...)
	if p := r.read(nbd.SimpleSize); !bytes.Equal(p, nbd.AppendSimple(nil, nbd.EINVAL, 7)) {
		t.Errorf("%x", p)
	}
	r = s.raw()
	r.say(be.AppendUint32(nil, nbd.FixedNewstyle)...)
	r.say(nbd.AppendOption(nil, nbd.OptExportName, []byte("nope"))...)
	r.ended()
	r = s.raw()
	r.say(be.AppendUint32(nil, nbd.FixedNewstyle)...)
	r.say(nbd.AppendOption(nil, nbd.OptAbort, nil)...)
	if a, _ := r.answer(nbd.OptAbort); a != nbd.AnsAck {
		t.Error(a)
	}
	r.ended()
}

// enter goes as far as the transmission.
func (r raw) enter() {
	r.t.Helper()
	r.say(be.AppendUint32(nil, nbd.FixedNewstyle|nbd.NoZeroes)...)
	r.say(nbd.AppendOption(nil, nbd.OptExportName, []byte("disk"))...)
	r.read(10)
}

// TestHostile: garbage, lengths, and clients that go in the middle end their own connection, harm no other, and leave no memory and no open behind.
func TestHostile(t *testing.T) {
	each(t, config{}, func(t *testing.T, s *server) {
		good := s.dial("disk")
		check := func(what string) {
			t.Helper()
			if err := good.Do(nbd.CmdRead, 0, 0, make([]byte, 4096), 0); err != nil {
				t.Fatalf("after %s another client fails: %v", what, err)
			}
		}
		flags := be.AppendUint32(nil, nbd.FixedNewstyle|nbd.NoZeroes)
		for what, p := range map[string][]byte{
			"unknown flags":    be.AppendUint32(nil, 0x80000001),
			"no newstyle":      be.AppendUint32(nil, 0),
			"a wrong magic":    append(bytes.Clone(flags), make([]byte, 16)...),
			"a long name":      append(bytes.Clone(flags), nbd.AppendOption(nil, nbd.OptExportName, make([]byte, nbd.MaxOption+1))...),
			"options for ever": append(bytes.Clone(flags), bytes.Repeat(nbd.AppendOption(nil, nbd.OptStructuredReply, nil), 300)...),
		} {
			r := s.raw()
			r.say(p...)
			r.ended()
			check(what)
		}
		long := nbd.Request{Command: nbd.CmdWrite, Length: 1<<32 - 1}
		for what, p := range map[string][]byte{"a request's magic": make([]byte, nbd.RequestSize), "a long write": long.Append(nil)} {
			r := s.raw()
			r.enter()
			r.say(p...)
			r.ended()
			check(what)
		}
		r := s.raw() // a long read is refused
		r.enter()
		q := nbd.Request{Command: nbd.CmdRead, Cookie: 3, Length: 1<<32 - 1}
		r.say(q.Append(nil)...)
		if p := r.read(nbd.SimpleSize); !bytes.Equal(p, nbd.AppendSimple(nil, nbd.EINVAL, 3)) {
			t.Errorf("%x", p)
		}
		// One that goes in the middle of a write: none of it is written.
		s.m.f.Data(func(p []byte) { clear(p) })
		before := s.m.f.Count("write") + s.m.f.Count("hotwrite")
		for _, n := range []int{0, 1, 4096, 200000} {
			r := s.raw()
			r.enter()
			w := nbd.Request{Command: nbd.CmdWrite, Length: 300000}
			r.say(w.Append(nil)...)
			r.say(bytes.Repeat([]byte{0xff}, n)...)
			r.Close()
			check("half a write")
		}
		// One that asks and never takes the answers: it is not read for ever, and others go on.
		r = s.raw()
		r.enter()
		q = nbd.Request{Command: nbd.CmdRead, Length: mib}
		_ = r.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		for range 100000 {
			if _, err := r.Write(q.Append(nil)); err != nil {
				break
			}
		}
		check("a client that takes nothing")
		if err := good.Do(nbd.CmdWrite, 0, 0, make([]byte, 1<<20), 0); err != nil {
			t.Error(err)
		}
		r.Close()
		rnd := rand.New(rand.NewPCG(1, 2))
		for i := range 60 {
			r := s.raw()
			if i%2 == 0 {
				r.enter()
			} else {
				r.say(flags...)
			}
			p := make([]byte, rnd.IntN(200))
			for j := range p {
				p[j] = byte(rnd.Uint32())
			}
			if i%3 == 0 {
				x := nbd.Request{Flags: uint16(rnd.Uint32()), Command: nbd.Command(rnd.IntN(9)), Offset: rnd.Uint64() >> rnd.IntN(64), Length: rnd.Uint32() >> rnd.IntN(32)}
				if x.Command != nbd.CmdWrite && x.Command != nbd.CmdTrim && x.Command != nbd.CmdWriteZeroes {
					p = append(x.Append(nil), p...)
				}
			}
			r.say(p...)
			r.Close()
		}
		check("noise")
		for deadline := time.Now().Add(time.Minute); s.Connections() > 1; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d connections are left", s.Connections())
			}
		}
		if n := s.m.f.Count("write") + s.m.f.Count("hotwrite") - before; n != 1 {
			t.Errorf("%d writes were begun, want that of the good client alone", n)
		}
		// All memory is there again: the largest write still goes through.
		if err := good.Do(nbd.CmdRead, 0, 0, make([]byte, 4*mib), 0); err != nil {
			t.Error(err)
		}
	})
}

// TestMemory: more large requests than there is memory for are served one after the other, of several clients.
func TestMemory(t *testing.T) {
	s := serve(t, config{size: 32 * mib, hot: true})
	done := make(chan error)
	const clients, requests = 3, 2 // two clients are on one thread, which has memory for two requests
	for range clients {
		c := s.dial("disk")
		for i := range requests {
			go func() {
				cmd := nbd.CmdRead
				if i%2 == 0 {
					cmd = nbd.CmdWrite
				}
				done <- c.Do(cmd, 0, 0, make([]byte, 32*mib), 0)
			}()
		}
	}
	for range clients * requests {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

// TestSlow: who does not get on with the negotiation is hung up on, and there are no more connections than there may be.
func TestSlow(t *testing.T) {
	s := serve(t, config{change: func(o *nbdserver.Options) { o.Negotiation, o.Connections = 50*time.Millisecond, 2 }})
	r := s.raw()
	r.say(0, 0)
	r.ended()
	for s.Connections() > 0 {
		time.Sleep(time.Millisecond)
	}
	var good []*nbd.Conn
	for deadline := time.Now().Add(time.Minute); len(good) < 2; {
		c, err := nbd.Dial(t.Context(), nbd.URI{Network: "unix", Address: s.path}) // may be too slow itself
		if err == nil {
			defer c.Close()
			good = append(good, c)
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	c, err := net.Dial("unix", s.path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if n, err := c.Read(make([]byte, 1)); n != 0 || !isReset(err) {
		t.Errorf("a third connection: %d, %v", n, err)
	}
	time.Sleep(100 * time.Millisecond) // the negotiation is over, its limit with it
	for _, c := range good {
		if err := c.Do(nbd.CmdFlush, 0, 0, nil, 0); err != nil {
			t.Error(err)
		}
	}
}

// TestHalfWrite: who leaves a write unfinished is hung up on, however much of it came.
func TestHalfWrite(t *testing.T) {
	for _, kind := range []reactor.Kind{reactor.Auto, reactor.Poll} {
		s := serve(t, config{kind: kind, change: func(o *nbdserver.Options) { o.Payload = 50 * time.Millisecond }})
		for _, n := range []int{0, 10, 100000} {
			r := s.raw()
			r.enter()
			w := nbd.Request{Command: nbd.CmdWrite, Length: 200000}
			r.say(w.Append(nil)...)
			r.say(make([]byte, n)...)
			r.ended()
		}
		if s.m.f.Count("write") != 0 {
			t.Error("half a write was begun")
		}
	}
}

// TestSilent: the kernel looks whether the host of a client that says nothing is still there.
func TestSilent(t *testing.T) {
	var port int
	s := serve(t, config{change: func(o *nbdserver.Options) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port, o.Listeners = l.Addr().(*net.TCPAddr).Port, append(o.Listeners, l)
	}})
	c, err := nbd.Dial(t.Context(), nbd.URI{Network: "tcp", Address: fmt.Sprintf("127.0.0.1:%d", port), Export: "disk"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if s.Connections() != 1 {
		t.Errorf("%d connections", s.Connections())
	}
	// Of an idle connection of the server's the timer is that of keep-alives: 2.
	looked := func() bool {
		b, err := os.ReadFile("/proc/net/tcp")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) > 5 && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", port)) && f[3] == "01" && strings.HasPrefix(f[5], "02:") {
				return true
			}
		}
		return false
	}
	for deadline := time.Now().Add(time.Minute); !looked(); time.Sleep(time.Millisecond) { // what was sent may not be acknowledged yet
		if time.Now().After(deadline) {
			t.Fatal("nobody looks")
		}
	}
}

func TestStartFaults(t *testing.T) {
	if _, err := nbdserver.Start(nbdserver.Options{Exports: []nbdserver.Export{{Name: "a"}, {Name: "/a"}}}); err == nil {
		t.Error("nothing to serve on, and two of a name, were taken")
	}
}

// TestPrograms: the programs of libnbd and qemu get on with the server.
func TestPrograms(t *testing.T) {
	s := serve(t, config{size: 8 * mib, hot: true})
	uri := nbd.URI{Network: "unix", Address: s.path, Export: "disk"}.String()
	for _, args := range [][]string{
		{"nbdinfo", "--list", "nbd+unix:///?socket=" + s.path},
		{"qemu-io", "-f", "raw", "-c", "write -P 7 0 1M", "-c", "write -f -P 8 4k 512", "-c", "read -P 8 4k 512", "-c", "discard 64k 64k", "-c", "write -z 1M 3M", "-c", "read -P 0 1M 3M", "-c", "flush", uri},
		{"qemu-img", "map", "-f", "raw", uri},
		{"nbdinfo", "--map", uri},
		{"nbdcopy", uri, "null:"},
		{"qemu-img", "compare", "-f", "raw", "-F", "raw", uri, uri},
	} {
		path, err := exec.LookPath(args[0])
		if err != nil {
			t.Logf("no %s (packages qemu-utils, libnbd-bin)", args[0])
			continue
		}
		if out, err := exec.CommandContext(t.Context(), path, args[1:]...).CombinedOutput(); err != nil || bytes.Contains(out, []byte("verification failed")) {
			t.Errorf("%q: %v\n%s", args, err, out)
		}
	}
	if s.m.f.Count("seek") == 0 {
		t.Log("nobody asked for the block status")
	}
}
