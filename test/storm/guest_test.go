package storm

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// machine is what a virtual machine is started from.
type machine struct {
	kernel, initrd string
}

// newMachine packs the guest's program and the modules of the newest packaged cloud kernel that a virtio disk needs; nil with the reason if
// something is missing here.
func newMachine(t *testing.T) (*machine, string) {
	t.Helper()
	for _, p := range []string{"qemu-system-x86_64", "modprobe", "cpio"} {
		if _, err := exec.LookPath(p); err != nil {
			return nil, fmt.Sprintf("%s is missing", p)
		}
	}
	found, _ := filepath.Glob("/boot/vmlinuz-*-cloud-amd64") // the pattern is sound
	if len(found) == 0 {
		return nil, "there is no kernel for it (linux-image-cloud-amd64)"
	}
	kernel := found[len(found)-1]
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	if err := os.MkdirAll(filepath.Join(root, "modules"), 0o755); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(root, "init"), "varve/test/storm/guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the guest: %v\n%s", err, out)
	}
	n, seen := 0, map[string]bool{}
	for _, module := range []string{"virtio_pci", "virtio_blk"} {
		version := strings.TrimPrefix(filepath.Base(kernel), "vmlinuz-")
		out, err := exec.Command("modprobe", "-S", version, "--show-depends", module).Output()
		if err != nil {
			t.Fatalf("modules that %s needs: %v", module, err)
		}
		for line := range strings.Lines(string(out)) {
			path, isFile := strings.CutPrefix(strings.TrimSpace(line), "insmod ")
			if !isFile || seen[path] {
				continue
			}
			seen[path] = true
			b, err := os.ReadFile(path)
			if err == nil {
				err = os.WriteFile(filepath.Join(root, "modules", fmt.Sprintf("%02d-%s", n, filepath.Base(path))), b, 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
	}
	m := &machine{kernel: kernel, initrd: filepath.Join(dir, "initrd")}
	pack := exec.Command("bash", "-euo", "pipefail", "-c", "find . | cpio -o -H newc --quiet > ../initrd")
	pack.Dir = root
	if out, err := pack.CombinedOutput(); err != nil {
		t.Fatalf("pack the guest: %v\n%s", err, out)
	}
	return m, ""
}

// run boots the machine on an image and returns what it says in the end, after it worked for d.
func (m *machine) run(ctx context.Context, image string, d time.Duration) (says string, err error) {
	ctx, cancel := context.WithTimeout(ctx, d+4*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "tcg", "-m", "256", "-smp", "1", "-display", "none", "-serial", "stdio", "-monitor", "none",
		"-no-reboot", "-nic", "none", "-kernel", m.kernel, "-initrd", m.initrd,
		"-append", fmt.Sprintf("console=ttyS0 quiet no_timer_check panic=-1 varve.seconds=%d", int(d.Seconds())),
		"-drive", "file="+image+",format=raw,if=virtio,cache=none,aio=io_uring")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		return "", err
	}
	var console []string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		console = append(console, strings.TrimSpace(lines.Text()))
		if _, s, ok := strings.Cut(lines.Text(), "VARVE "); ok {
			says = strings.TrimSpace(s)
		}
	}
	if err := cmd.Wait(); err != nil {
		return says, fmt.Errorf("qemu: %w: %s", err, strings.Join(console, "\n"))
	}
	if !strings.HasPrefix(says, "verified: ") {
		return says, fmt.Errorf("the guest said %q in the end; its console:\n%s", says, strings.Join(console[max(0, len(console)-30):], "\n"))
	}
	return says, nil
}
