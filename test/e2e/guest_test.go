package e2e

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// guestInit is the first process of the guest. varve.stage on the kernel command line says what it does.
const guestInit = `#!/bin/bash
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev 2>/dev/null
read -r cmdline < /proc/cmdline
stage=${cmdline##*varve.stage=}; stage=${stage%% *}
say() { echo "VARVE $*" > /dev/console; }
mkdir -p /data
say "debian $(cat /etc/debian_version) stage $stage"
case $stage in
write)
	for i in 1 2 3 4 5 6 7 8; do dd if=/dev/urandom of=/data/file$i bs=256k count=8 conv=fsync status=none || say failed; done
	(cd /data && sha256sum file? > sums && sync -f sums) && say written
	;;
check)
	(cd /data && sha256sum -c --quiet sums) && say "sums ok" || say "sums differ"
	;;
loop)
	i=0
	while [ $i -lt 100000 ]; do
		i=$((i+1))
		echo "record $i" > /data/record.$((i % 50)).new
		sync /data/record.$((i % 50)).new
		mv /data/record.$((i % 50)).new /data/record.$((i % 50))
		sync /data
		say "acked $i"
	done
	;;
records)
	say "newest $(cat /data/record.* | sort -k2 -n | tail -n 1)"
	;;
esac
mount -o remount,ro / && say clean
echo o > /proc/sysrq-trigger
sleep 60
`

// guestImage builds the root filesystem of a Debian guest, once.
func guestImage(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	image := filepath.Join(dir, "root.img")
	begin := time.Now()
	sh(t, dir, 8*time.Minute, `debootstrap --variant=minbase --include=e2fsprogs bookworm root >debootstrap.log 2>&1 || { tail -20 debootstrap.log; exit 1; }
		rm -rf root/var/cache/apt/archives/*.deb root/usr/share/doc root/usr/share/locale root/var/lib/apt/lists/*`)
	if err := os.WriteFile(filepath.Join(dir, "root", "varve-init"), []byte(guestInit), 0o755); err != nil {
		t.Fatal(err)
	}
	sh(t, dir, 3*time.Minute, `mke2fs -q -t ext4 -d root root.img 700m && rm -rf root`)
	t.Logf("Debian root filesystem built in %v", time.Since(begin).Round(time.Second))
	return image
}

// guestKernel returns the newest packaged cloud kernel and its initrd.
func guestKernel(t *testing.T) (kernel, initrd string) {
	t.Helper()
	found, _ := filepath.Glob("/boot/vmlinuz-*-cloud-amd64")
	if len(found) == 0 {
		t.Skip("needs a kernel for the guest: apt-get install linux-image-cloud-amd64")
	}
	kernel = found[len(found)-1]
	initrd = strings.Replace(kernel, "vmlinuz", "initrd.img", 1)
	if _, err := os.Stat(initrd); err != nil {
		t.Skip("needs an initrd for the guest: ", err)
	}
	return kernel, initrd
}

// guest is a running qemu.
type guest struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines chan string
	seen  []string
}

func boot(t *testing.T, image, cache, stage string) *guest {
	t.Helper()
	return bootFrom(t, stage, "-drive", "file="+image+",format=raw,if=virtio,cache="+cache+",aio=threads")
}

// bootFrom boots a guest whose disk qemu is told of by these arguments.
func bootFrom(t *testing.T, stage string, disk ...string) *guest {
	t.Helper()
	kernel, initrd := guestKernel(t)
	return start(t, append([]string{"-accel", "tcg", "-m", "512", "-smp", "1", "-display", "none", "-serial", "stdio", "-monitor", "none",
		"-no-reboot", "-nic", "none", "-kernel", kernel, "-initrd", initrd,
		"-append", "root=/dev/vda rw console=ttyS0 quiet no_timer_check panic=-1 init=/varve-init varve.stage=" + stage}, disk...))
}

// start starts qemu.
func start(t *testing.T, args []string) *guest {
	t.Helper()
	cmd := exec.Command("qemu-system-x86_64", args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	g := &guest{t: t, cmd: cmd, lines: make(chan string, 1024)}
	t.Cleanup(func() { g.cmd.Process.Kill(); g.cmd.Wait() })
	go func() {
		defer close(g.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			g.lines <- strings.TrimSpace(s.Text())
		}
	}()
	return g
}

// until reads the console until a line of the guest's init begins with word, and returns the rest of it. ok is false
// when qemu ended first.
func (g *guest) until(limit time.Duration, word string) (rest string, ok bool) {
	g.t.Helper()
	timeout := time.After(limit)
	for {
		select {
		case line, open := <-g.lines:
			if !open {
				return "", false
			}
			g.seen = append(g.seen, line)
			if _, after, found := strings.Cut(line, "VARVE "+word); found {
				return strings.TrimSpace(after), true
			}
		case <-timeout:
			g.t.Fatalf("guest did not say %q within %v; its console:\n%s", word, limit, tail(strings.Join(g.seen, "\n"), 3000))
		}
	}
}

func (g *guest) expect(word string) string {
	g.t.Helper()
	rest, ok := g.until(8*time.Minute, word)
	if !ok {
		g.t.Fatalf("guest ended without saying %q; its console:\n%s", word, tail(strings.Join(g.seen, "\n"), 3000))
	}
	return rest
}

// off waits until the guest has powered off.
func (g *guest) off() {
	g.t.Helper()
	g.expect("clean")
	done := make(chan struct{})
	go func() {
		for range g.lines {
		}
		g.cmd.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(3 * time.Minute):
		g.t.Fatal("guest did not power off")
	}
}

// TestGuest boots a Debian guest from an image on the mount, with both cache modes; captures a boot and replays it on a second mount; kills qemu while the guest writes, and
// boots the image from a second mount.
func TestGuest(t *testing.T) {
	need(t, "qemu-system-x86_64", "qemu-img", "debootstrap", "mke2fs", "e2fsck")
	guestKernel(t)
	source := guestImage(t)
	c := up(t, 1, 3, 2, "3:2")
	image, second := filepath.Join(c.mounts[0], "vm.img"), filepath.Join(c.mounts[1], "vm.img")
	begin := time.Now()
	sh(t, "/", 5*time.Minute, "qemu-img convert -f raw -O raw "+source+" "+image+" && qemu-img compare -f raw -F raw "+source+" "+image)
	t.Logf("image copied with qemu-img and compared in %v", time.Since(begin).Round(time.Second))

	replayed := func() {} // waits for the replays of a boot that was captured
	for i, cache := range []string{"none", "writeback"} {
		begin := time.Now()
		g := boot(t, image, cache, "write")
		g.expect("written")
		g.off()
		t.Logf("cache=%s: guest booted, wrote with fsync and powered off in %v", cache, time.Since(begin).Round(time.Second))
		sh(t, "/", 2*time.Minute, "e2fsck -fn "+image)
		var stop func() string
		if i == 0 {
			stop = c.capture(c.mounts[0], "vm.img")
		}
		g = boot(t, image, cache, "check")
		g.expect("sums ok")
		g.off()
		if i == 0 {
			replayed = c.replayBoth(stop(), c.mounts[1])
		}
	}

	replayed()

	g := boot(t, image, "none", "loop")
	acked := 0
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end) && acked < 60; {
		n, err := strconv.Atoi(g.expect("acked"))
		if err != nil {
			t.Fatal(err)
		}
		acked = n
	}
	g.cmd.Process.Kill()
	for line := range g.lines { // what it had still said
		if _, n, found := strings.Cut(line, "VARVE acked "); found {
			acked, _ = strconv.Atoi(strings.TrimSpace(n))
		}
	}
	g.cmd.Wait()
	g = boot(t, second, "writeback", "records")
	var newest int
	if _, err := fmt.Sscanf(g.expect("newest"), "record %d", &newest); err != nil || newest < acked {
		t.Errorf("after qemu was killed the second mount shows record %d, %d was acknowledged (%v)", newest, acked, err)
	}
	g.off()
	sh(t, "/", 2*time.Minute, "e2fsck -fn "+second)
	t.Logf("qemu killed after record %d, second mount boots with record %d", acked, newest)
	c.checkReplicas(3)
}
