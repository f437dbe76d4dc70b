package fuse

import (
	"os"
	"testing"
)

func TestExiting(t *testing.T) {
	for stat, want := range map[string]bool{
		"12 (a) b) S 1 2 3 4 5 4194560 0 0": false,
		"12 (qemu) D 1 2 3 4 5 4194564 0 0": true,
		"12 (qemu) D 1 2":                   false,
		"12 (qemu) D 1 2 3 4 5 x 0":         false,
		"":                                  false,
	} {
		if got := flaggedExiting([]byte(stat)); got != want {
			t.Errorf("%q: %t", stat, got)
		}
	}
	if exiting(uint32(os.Getpid())) {
		t.Error("this process is said to be ending")
	}
}
