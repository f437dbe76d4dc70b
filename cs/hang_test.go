package cs

import (
	"strings"
	"sync/atomic"

	"varve/internal/disk"
)

// hangFS is a disk on which writes to chunk files can be made to hang.
type hangFS struct {
	disk.FS
	gate atomic.Pointer[gate]
}

// gate holds what comes until open is closed.
type gate struct {
	open    chan struct{}
	arrived chan struct{}
}

type hangFile struct {
	disk.File
	fs *hangFS
}

// hang makes writes hang from now on.
func (h *hangFS) hang() *gate {
	g := &gate{open: make(chan struct{}), arrived: make(chan struct{}, 64)}
	h.gate.Store(g)
	return g
}

// release lets everything go on.
func (h *hangFS) release() { close(h.gate.Swap(nil).open) }

func (h *hangFS) Open(path string, flag disk.Flag) (disk.File, error) {
	f, err := h.FS.Open(path, flag)
	if err != nil || !strings.HasSuffix(path, ".chk") {
		return f, err
	}
	return &hangFile{f, h}, nil
}

func (f *hangFile) WriteAt(p []byte, off int64) (int, error) {
	if g := f.fs.gate.Load(); g != nil {
		g.arrived <- struct{}{}
		<-g.open
	}
	return f.File.WriteAt(p, off)
}
