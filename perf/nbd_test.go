package perf

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"varve/internal/nbd"
	"varve/internal/nbd/nbdtest"
)

// TestNBD: every pattern, verified, on servers that reply in either way, with one connection and with several.
func TestNBD(t *testing.T) {
	all := nbd.CanFlush | nbd.CanFUA | nbd.CanTrim | nbd.CanZero
	for name, so := range map[string]nbdtest.Options{
		"structured": {Size: 4 << 20, Least: 512}, "simple": {Size: 4 << 20, Simple: true}, "several": {Size: 4 << 20, Flags: all | nbd.CanMultiConn, TCP: true, Name: "disk"},
	} {
		t.Run(name, func(t *testing.T) {
			s := nbdtest.Start(t, so)
			for i, rw := range patterns {
				target := s.URI.String()
				if i%2 == 0 {
					target = "nbd:" + target
				}
				before := s.Connections()
				o := Options{Target: target, RW: rw, Size: 256 << 10, QD: 8, Jobs: 3, FsyncEvery: 16, Verify: true}
				res := mustRun(t, o)
				if !res.OK() || res.Total.Count != 3*64 || res.Verify.Checked == 0 || rw.writes() != (res.Fsync != nil) {
					t.Errorf("%s: %d operations, %+v, %q, %+v", rw, res.Total.Count, res.Errors, res.Stopped, res.Verify)
				}
				want := 1
				if name == "several" {
					want = 3
				}
				if n := s.Connections() - before; n != want {
					t.Errorf("%s: %d connections, want %d", rw, n, want)
				}
			}
			if s.Seen(nbd.CmdFlush) == 0 {
				t.Error("nothing was flushed")
			}
		})
	}
}

// TestNBDFaults: what a server loses is found, and what it answers ends up in the result.
func TestNBDFaults(t *testing.T) {
	var writes atomic.Int64
	run := func(so nbdtest.Options, o Options) *Result {
		t.Helper()
		writes.Store(0)
		o.Target, o.BlockSize, o.Size = "nbd:"+nbdtest.Start(t, so).URI.String(), 4096, 1<<20
		if o.RW == "" {
			o.RW = Write
		}
		return mustRun(t, o)
	}
	reply := func(p func(nbd.Request) []byte) func(net.Conn, nbd.Request) bool {
		return func(c net.Conn, q nbd.Request) bool {
			if q.Command != nbd.CmdWrite || writes.Add(1) != 100 {
				return false
			}
			_, _ = c.Write(p(q))
			return true
		}
	}
	res := run(nbdtest.Options{Simple: true, Answer: reply(func(q nbd.Request) []byte { return nbd.AppendSimple(nil, 0, q.Cookie) })}, Options{Verify: true})
	if res.Verify.Lost != 1 || res.Verify.Faults() != 1 || res.Verify.First[0].Offset != 99*4096 {
		t.Errorf("a write that was acknowledged and not done: %+v", res.Verify)
	}
	res = run(nbdtest.Options{Fault: func(q nbd.Request) nbd.Errno {
		if q.Command == nbd.CmdWrite && writes.Add(1) > 100 {
			return nbd.ENOSPC
		}
		return 0
	}}, Options{Verify: true})
	if !strings.HasPrefix(res.Stopped, "disk full: write: ") || res.Total.Count != 100 || res.Verify.Faults() != 0 {
		t.Errorf("a full server: %q after %d, %+v", res.Stopped, res.Total.Count, res.Verify)
	}
	res = run(nbdtest.Options{Answer: reply(func(nbd.Request) []byte { return make([]byte, 64) })}, Options{QD: 4})
	if !strings.HasPrefix(res.Stopped, "target breaks the protocol: ") || !strings.Contains(res.Stopped, "begins with 0x0") {
		t.Errorf("garbage: %q", res.Stopped)
	}
	writes.Store(0)
	enough := make(chan struct{})
	s := nbdtest.Start(t, nbdtest.Options{Answer: func(_ net.Conn, q nbd.Request) bool {
		if q.Command == nbd.CmdRead && writes.Add(1) == 300 {
			close(enough)
		}
		return false
	}})
	go func() {
		select {
		case <-enough:
			s.Stop()
		case <-t.Context().Done():
		}
	}()
	res = mustRun(t, Options{Target: s.URI.String(), RW: RandRead, Size: 1 << 20, QD: 4, Duration: time.Minute})
	if !strings.HasPrefix(res.Stopped, "target gone: ") || res.Total.Count < 200 {
		t.Errorf("a server that died: %q after %d", res.Stopped, res.Total.Count)
	}
	for want, tc := range map[string]struct {
		so nbdtest.Options
		o  Options
	}{
		"has 1048576 bytes, and 2 jobs": {nbdtest.Options{}, Options{Jobs: 2, Size: 1 << 20}},
		"wants a multiple of 8192":      {nbdtest.Options{Least: 8192}, Options{Size: 1 << 20}},
		"read-only file system":         {nbdtest.Options{Flags: nbd.ReadOnly}, Options{RW: Write, Size: 1 << 20}},
		"which 2 hosts want":            {nbdtest.Options{}, Options{Size: 1 << 19, Share: Share{Hosts: 2}}},
		"does not flush":                {nbdtest.Options{Flags: nbd.CanTrim}, Options{RW: Write, Size: 1 << 20, FsyncEvery: 1}},
		"no such export":                {nbdtest.Options{Name: "other"}, Options{Size: 1 << 20, Label: "x"}},
		"reached by a client":           {nbdtest.Options{}, Options{Engine: URing}},
	} {
		u := nbdtest.Start(t, tc.so).URI
		if tc.o.Label != "" {
			u.Export = tc.o.Label
		}
		tc.o.Target = u.String()
		if _, err := Run(t.Context(), tc.o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want one with %q", err, want)
		}
	}
	for _, target := range []string{"nbd:", "nbd:x", "nbd://", "nbd+unix:///x", "nbds://h/x"} {
		if _, err := parseTarget(target); err == nil {
			t.Errorf("%s was taken", target)
		}
	}
}

// TestNBDQEMU: verified loads on qemu-nbd, over several connections, and a report when it is killed.
func TestNBDQEMU(t *testing.T) {
	program, err := exec.LookPath("qemu-nbd")
	if err != nil {
		t.Skip("no qemu-nbd (package qemu-utils)")
	}
	dir := t.TempDir()
	image, socket := filepath.Join(dir, "image"), filepath.Join(dir, "socket")
	if err := os.WriteFile(image, make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-f", "raw", "-k", socket, "-e", "8", "-t", image)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill := sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	defer kill()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	o := Options{Target: "nbd+unix:///?socket=" + socket, RW: RandRW, Size: 4 << 20, Jobs: 2, QD: 8, Verify: true, FsyncEvery: 50}
	for _, bs := range []int64{4096, 256 << 10} {
		o.BlockSize = bs
		if res := mustRun(t, o); !res.OK() || res.Verify.Checked == 0 || res.Fsync == nil && bs == 4096 {
			t.Errorf("%+v, %+v", res, res.Verify)
		}
	}
	o = Options{Target: o.Target, RW: RandRead, Size: 4 << 20, QD: 8, Duration: time.Minute}
	res, err := RunWith(t.Context(), o, func(Progress) { go kill() }) // when it has worked for a second
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(res.Stopped, "target gone: ") || res.Total.Count == 0 {
		t.Errorf("%q after %d operations", res.Stopped, res.Total.Count)
	}
}
