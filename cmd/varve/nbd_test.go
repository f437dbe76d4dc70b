package main

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestNBDImages(t *testing.T) {
	f := nbdFlags{exports: []string{"disk=/images/x.img", "/b=c/../d"}}
	all, err := f.images([]string{"/images//vm.img", "a"})
	want := [][2]string{{"images/vm.img", "images/vm.img"}, {"a", "a"}, {"disk", "images/x.img"}, {"b", "d"}}
	if err != nil || !slices.Equal(all, want) {
		t.Errorf("%q, %v; want %q", all, err, want)
	}
	for _, f := range []nbdFlags{{}, {exports: []string{"x"}}, {exports: []string{"=x"}}, {exports: []string{"x=/"}}} {
		if all, err := f.images(nil); exitCode(err) != exitUsage {
			t.Errorf("%q: %q, %v", f.exports, all, err)
		}
	}
}

func TestNBDAddress(t *testing.T) {
	for _, tc := range []struct {
		listen   string
		insecure bool
		want     string
		code     int
	}{
		{"127.0.0.1:99", false, "127.0.0.1:99", 0},
		{"127.0.0.1", false, "127.0.0.1:10809", 0},
		{"[::1]:5", false, "[::1]:5", 0},
		{"::1", false, "[::1]:10809", 0},
		{"localhost:5", false, "127.0.0.1:5", 0},
		{"10.0.0.1:5", false, "", exitRefused},
		{"0.0.0.0", false, "", exitRefused},
		{"[::]:5", false, "", exitRefused},
		{"10.0.0.1:5", true, "10.0.0.1:5", 0},
		{"host:5", true, "", exitUsage},
		{":5", true, "", exitUsage},
	} {
		f := nbdFlags{listen: tc.listen, insecure: tc.insecure}
		if got, err := f.address(); got != tc.want || exitCode(err) != tc.code {
			t.Errorf("%s: %q, %v; want %q, exit code %d", tc.listen, got, err, tc.want, tc.code)
		}
	}
}

// TestListenUnix: a socket that nobody listens on is taken over, one in use and a file are not.
func TestListenUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, _, err := listenUnix(path, 0o640)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if _, _, err := listenUnix(path, 0o600); err == nil || !strings.Contains(err.Error(), "a server listens there") {
		t.Errorf("a socket in use: %v", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close() // as a kill leaves it
	if l, _, err = listenUnix(path, 0o600); err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := listenUnix(path, 0o600); err == nil {
		t.Error("a file was taken over")
	}
}

// TestOwnSocket: who ends removes his socket, but not that of who was started in his place meanwhile.
func TestOwnSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	ownSocket(path).remove() // there is none
	listen := func() (net.Listener, madeSocket) {
		t.Helper()
		l, _, err := listenUnix(path, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		return l, ownSocket(path)
	}
	l, made := listen()
	l.Close()
	time.Sleep(50 * time.Millisecond) // longer than the filesystem's clock stands
	next, other := listen()
	made.remove()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("the next one is out of reach: %v", err)
	}
	c.Close()
	next.Close()
	other.remove()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("its socket stays: %v", err)
	}
}
