package main

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"varve/internal/disk"
)

// expectMount refuses a directory on a filesystem that /etc/fstab names and that is not mounted: a server made there would fill the disk of
// the system, and would be gone when the filesystem is mounted over it.
func expectMount(dir string) error {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	fstab, err := os.ReadFile("/etc/fstab")
	if err != nil {
		return nil // there is none, or it is not for us to read
	}
	mounted := func(point string) bool {
		at, err := disk.Identify(disk.OS{}, point)
		return err == nil && at.Mount
	}
	if point := missingMount(string(fstab), abs, mounted); point != "" {
		return refusedf("/etc/fstab names a filesystem for %s, which is not mounted, and %s would be on another disk; mount it first", point, dir)
	}
	return nil
}

// missingMount returns the mount point in a table of filesystems that a path is on, if that is not mounted, else "".
func missingMount(fstab, path string, mounted func(point string) bool) string {
	best := ""
	for line := range strings.Lines(fstab) {
		f := strings.Fields(line)
		if len(f) < 3 || strings.HasPrefix(f[0], "#") || !strings.HasPrefix(f[1], "/") {
			continue
		}
		point := filepath.Clean(unescapeMount(f[1]))
		if below := point == path || strings.HasPrefix(path, strings.TrimSuffix(point, "/")+"/"); below && len(point) > len(best) {
			best = point
		}
	}
	if best == "" || best == "/" || mounted(best) {
		return ""
	}
	return best
}

// unescapeMount turns the octal escapes of fstab (\040 is a space) into what they stand for.
func unescapeMount(s string) string {
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				out.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		out.WriteByte(s[i])
	}
	return out.String()
}
