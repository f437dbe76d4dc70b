package cs

import (
	"strings"
	"sync/atomic"

	"varve/internal/disk"
)

// hangFS is a disk on which writes to chunk files can be made to hang.
type hangFS struct {
	disk.FS
	sluice atomic.Pointer[sluice]
}

// sluice holds what comes until open is closed.
type sluice struct {
	open    chan struct{}
	arrived chan struct{}
}

type hangFile struct {
	disk.File
	fs *hangFS
}

// hang makes writes hang from now on.
func (h *hangFS) hang() *sluice {
	g := &sluice{open: make(chan struct{}), arrived: make(chan struct{}, 64)}
	h.sluice.Store(g)
	return g
}

// release lets everything go on.
func (h *hangFS) release() { close(h.sluice.Swap(nil).open) }

func (h *hangFS) Open(path string, flag disk.Flag) (disk.File, error) {
	f, err := h.FS.Open(path, flag)
	if err != nil || !strings.HasSuffix(path, ".chk") {
		return f, err
	}
	return &hangFile{f, h}, nil
}

func (f *hangFile) WriteAt(p []byte, off int64) (int, error) {
	if g := f.fs.sluice.Load(); g != nil {
		g.arrived <- struct{}{}
		<-g.open
	}
	return f.File.WriteAt(p, off)
}
