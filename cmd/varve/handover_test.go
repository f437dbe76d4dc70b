package main

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"varve/fuse"
	"varve/internal/client"
	"varve/internal/fserr"
)

// TestHandoverFormat: what is written is read, and nothing else is.
func TestHandoverFormat(t *testing.T) {
	h := &handover{
		Version: "1.2", Times: 3, Paused: 5, Old: 9, Name: "/usr/bin/varve", Args: []string{"mount", "-f", "--", "/mnt"},
		Client: &client.Suspended{Session: 7}, Mount: &fuse.Saved{Dir: "/mnt", Devices: []int{4}},
	}
	fd, err := h.write()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	got, err := readHandover(fd)
	if err != nil {
		t.Fatal(err)
	}
	if got.Version != h.Version || got.Times != 3 || got.Client.Session != 7 || got.Mount.Dir != "/mnt" || strings.Join(got.Args, " ") != "mount -f -- /mnt" {
		t.Errorf("read %+v", got)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	for at := range st.Size { // one byte changed
		if _, err := unix.Pread(fd, b, at); err != nil {
			t.Fatal(err)
		}
		for _, v := range []byte{b[0] ^ 0x40, b[0]} {
			if _, err := unix.Pwrite(fd, []byte{v}, at); err != nil {
				t.Fatal(err)
			}
			if v == b[0] {
				continue
			}
			if _, err := readHandover(fd); !errors.Is(err, fserr.Invalid) {
				t.Errorf("byte %d changed: %v", at, err)
			}
		}
	}
	if _, err := readHandover(fd); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int64{st.Size - 1, st.Size + 1, handoverHeader, handoverHeader - 1, 0} {
		if err := unix.Ftruncate(fd, size); err != nil {
			t.Fatal(err)
		}
		if _, err := readHandover(fd); !errors.Is(err, fserr.Invalid) {
			t.Errorf("%d of %d bytes: %v", size, st.Size, err)
		}
	}
	for name, x := range map[string]*handover{
		"no client": {Times: 1, Old: 3, Mount: h.Mount}, "no mount": {Times: 1, Old: 3, Client: h.Client}, "no program": {Times: 1, Client: h.Client, Mount: h.Mount},
	} {
		bad, err := x.write()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := readHandover(bad); !errors.Is(err, fserr.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
		unix.Close(bad)
	}
	if _, err := readHandover(1 << 20); !errors.Is(err, fserr.Invalid) {
		t.Errorf("no descriptor: %v", err)
	}
}

// TestSameOptions: a restart by mount -o remount changes no option, and says so.
func TestSameOptions(t *testing.T) {
	o, err := parseMountOptions([]string{"ro,writeback=8,bg,retry=20"})
	if err != nil {
		t.Fatal(err)
	}
	m := newMountLife(mountSpec{mountOptions: o}, nil)
	for words, fine := range map[string]bool{"ro,writeback=8": true, "ro,writeback=8,retry=3,_netdev": true, "writeback=8": false, "ro": false, "ro,writeback=9": false, "ro,x-varve.shown": true, "x-varve.shown": false, "nonsense": false} {
		if err := m.sameOptions([]string{words}); (err == nil) != fine {
			t.Errorf("%s: %v", words, err)
		}
	}
	if err := m.sameOptions(nil); err != nil {
		t.Error(err)
	}
}
