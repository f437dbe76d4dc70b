package readcache

import (
	"bytes"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"varve/internal/disk"
)

// TestLay: slots get room on the disk before they are used, and nothing that was written is written over.
func TestLay(t *testing.T) {
	dir := t.TempDir()
	s, err := openStore(disk.OS{}, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.release()
	const slots = (layJump + 16<<20) / slotBytes
	if err := s.data.Truncate(slots * slotBytes); err != nil {
		t.Fatal(err)
	}
	block := disk.AlignedBuffer(slotBytes)
	for i := range block {
		block[i] = 0xa5
	}
	last := slots - 1
	far := last - 40
	written := []int{0, 1, 2 * layAtOnce / slotBytes, far, far + 1, last} // far is a jump from the one before
	for _, n := range written {
		if err := s.lay(n); err != nil {
			t.Fatal(err)
		}
		if _, err := s.data.WriteAt(block, int64(n)*slotBytes); err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			if used := allocated(t, dir); used < layAtOnce {
				t.Errorf("%d bytes have room after the first slot, want %d", used, layAtOnce)
			}
		}
	}
	if used := allocated(t, dir); used > layJump/2 {
		t.Errorf("%d bytes were written for %d slots: the jump was not passed over", used, len(written))
	}
	got := disk.AlignedBuffer(slotBytes)
	for _, n := range written {
		if _, err := s.data.ReadAt(got, int64(n)*slotBytes); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, block) {
			t.Errorf("slot %d was written over", n)
		}
	}
	if size, err := s.data.Size(); err != nil || size != slots*slotBytes {
		t.Errorf("the file has %d bytes (%v), want %d", size, err, slots*slotBytes)
	}
}

func allocated(t *testing.T, dir string) int64 {
	info, err := os.Stat(filepath.Join(dir, dataName))
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}
