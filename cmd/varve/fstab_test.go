package main

import "testing"

func TestMissingMount(t *testing.T) {
	const fstab = `# <file system> <mount point> <type>
UUID=1 / ext4 defaults 0 1
UUID=2 none swap sw 0 0
UUID=3 /disk1 xfs noatime 0 0
UUID=4 /srv ext4 defaults 0 0
UUID=5 /srv/fast\040disk/ xfs noauto 0 0
#UUID=6 /off xfs defaults 0 0
`
	for path, want := range map[string]string{
		"/disk1":            "/disk1",
		"/disk1/varve":      "/disk1",
		"/disk10/varve":     "",
		"/home":             "",
		"/srv/a":            "", // it is mounted
		"/srv/fast disk/cs": "/srv/fast disk",
		"/off/cs":           "",
	} {
		mounted := func(point string) bool { return point == "/srv" || point == "/" }
		if got := missingMount(fstab, path, mounted); got != want {
			t.Errorf("%s is on %q, which is not mounted; want %q", path, got, want)
		}
	}
}
