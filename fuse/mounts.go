package fuse

import (
	"fmt"
	"os"
)

// MountInfo is one varve mount, of whichever process.
type MountInfo struct {
	Dir          string // where
	Source       string // what its Options.FSName was
	Major, Minor uint32 // the device number that stat(2) gives of every file on it
}

// Mounts returns the varve mounts that this process sees, oldest first. It asks only the kernel's table, never a
// filesystem, which may be dead.
func Mounts() ([]MountInfo, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []MountInfo
	err = parseMountinfo(f, func(e mountEntry) {
		if e.fsType == fsType {
			all = append(all, MountInfo{e.dir, e.source, e.major, e.minor})
		}
	})
	if err != nil {
		return nil, fmt.Errorf("/proc/self/mountinfo: %w", err)
	}
	return all, nil
}
