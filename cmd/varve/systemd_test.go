package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestUnitPath(t *testing.T) {
	// As systemd-escape --path answers.
	for path, want := range map[string]string{
		"/": "-", "/mnt/varve": "mnt-varve", "/mnt//varve/": "mnt-varve", "/srv/vm-1": `srv-vm\x2d1`, "/.hidden": `\x2ehidden`, "/a/.b": "a-.b",
		"/with space": `with\x20space`, "/ä": `\xc3\xa4`, "/x_y:z.d": "x_y:z.d",
	} {
		if got := unitPath(path); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
}

func TestSystemd(t *testing.T) {
	dir := t.TempDir()
	run := func(want int, args ...string) string {
		t.Helper()
		out, errs, code := varve(t, dir, append([]string{"systemd"}, args...)...)
		if code != want {
			t.Fatalf("%v: exit code %d, want %d: %s", args, code, want, errs)
		}
		return out + errs
	}
	text := run(0, "print", "cs", "/disk 1/100%", "--program", "/usr/bin/varve")
	for _, line := range []string{
		`# varve-cs-disk\x201-100\x25.service`, `ExecStart=/usr/bin/varve cs -r "/disk 1/100%%"`, `RequiresMountsFor="/disk 1/100%%"`,
		"Description=varve chunk server, /disk 1/100%%", "RestartPreventExitStatus=2 4", "After=network-online.target time-sync.target",
		"Wants=network-online.target remote-fs-pre.target", "Before=remote-fs-pre.target", "WantedBy=multi-user.target",
	} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("no line %s in\n%s", line, text)
		}
	}
	path := filepath.Join(dir, "varve-mds-srv-mds.service")
	if text := run(0, "install", "mds", "/srv/mds", "--to", dir); !strings.Contains(text, "systemctl enable --now varve-mds-srv-mds.service") {
		t.Error(text)
	}
	unit, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(unit), " mds -r /srv/mds\n") || !strings.Contains(string(unit), "metadata server") {
		t.Errorf("%v: %s", err, unit)
	}
	if text := run(0, "install", "mds", "/srv/mds", "--to", dir); !strings.Contains(text, "as it should be") {
		t.Error(text)
	}
	if err := os.WriteFile(path, []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	run(1, "install", "mds", "/srv/mds", "--to", dir) // and it stays
	if unit, err := os.ReadFile(path); err != nil || string(unit) != "mine" {
		t.Errorf("%v: %s", err, unit)
	}
	run(2, "print", "disk", "/x")
	run(2, "print", "cs")
	run(2, "print", "mount", "/x", "-o", "what=ever")
	run(2, "print", "mount", "/x") // of which cluster?
	c := filepath.Join(dir, "my 100%")
	if err := (&clusterDir{path: c, name: "gone", uuid: [16]byte{1}, mds: []string{"127.0.0.1:1"}}).write(); err != nil {
		t.Fatal(err)
	}
	text = run(0, "print", "mount", "/mnt/vm-1", "-c", c, "-o", "bg,guard")
	for _, line := range []string{
		`# mnt-vm\x2d1.mount`, "What=varve://" + strings.ReplaceAll(dir, "%", "%%") + "/my%%20100%%25", "Where=/mnt/vm-1", "Type=fuse.varve", "Options=_netdev,bg,guard", "After=remote-fs-pre.target",
		"Before=remote-fs.target libvirtd.service libvirt-guests.service",
	} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("no line %s in\n%s", line, text)
		}
	}
}
