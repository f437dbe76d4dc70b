package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// diskGuest is an initrd whose first process is test/e2e/diskguest, and the kernel for it. Such a guest is up in seconds.
type diskGuest struct{ kernel, initrd string }

func makeDiskGuest(t *testing.T) diskGuest {
	t.Helper()
	kernel, _ := guestKernel(t)
	modules := filepath.Join("/lib/modules", strings.TrimPrefix(filepath.Base(kernel), "vmlinuz-"), "kernel/drivers")
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	for _, m := range []string{"virtio/virtio", "virtio/virtio_ring", "virtio/virtio_pci_legacy_dev", "virtio/virtio_pci_modern_dev", "virtio/virtio_pci", "block/virtio_blk"} {
		b, err := os.ReadFile(filepath.Join(modules, m+".ko"))
		if err != nil {
			t.Skip("needs the modules of the guest's kernel: ", err)
		}
		to := filepath.Join(root, "modules", filepath.Base(m)+".ko")
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	build := exec.Command("go", "build", "-o", filepath.Join(root, "init"), "varve/test/e2e/diskguest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the guest's first process: %v\n%s", err, out)
	}
	sh(t, root, time.Minute, "mkdir -p dev proc sys && find . | cpio -o -H newc --quiet > ../initrd")
	return diskGuest{kernel, filepath.Join(dir, "initrd")}
}

// boot starts a guest with these disks; words say what it does with them.
func (d diskGuest) boot(t *testing.T, words string, disks ...string) *guest {
	t.Helper()
	args := []string{"-accel", "tcg", "-m", "192", "-smp", "1", "-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot", "-nic", "none", "-nodefaults",
		"-kernel", d.kernel, "-initrd", d.initrd, "-append", "console=ttyS0 quiet no_timer_check panic=-1 " + words,
		"-object", "memory-backend-memfd,id=mem,size=192M,share=on", "-numa", "node,memdev=mem"}
	return start(t, append(args, disks...))
}

// export is a running `varve nbd` or `varve vhost`.
type export struct {
	c    *cluster
	cmd  *exec.Cmd
	log  string
	what string
}

// readyLine is what a server of block devices prints when it is ready. What it logs before may have an "is" as well.
var readyLine = regexp.MustCompile(`(?m)^/\S+ is `)

// serve starts a server of block devices and waits until it is ready.
func (c *cluster) serve(name string, args ...string) *export {
	c.t.Helper()
	e := &export{c: c, log: filepath.Join(c.dir, "run", name+".log"), what: name}
	log, err := os.Create(e.log)
	if err != nil {
		c.t.Fatal(err)
	}
	defer log.Close()
	e.cmd = exec.Command(varveBinary, append([]string{"-c", c.name()}, args...)...)
	e.cmd.Stdout, e.cmd.Stderr = log, log
	if err := e.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { e.cmd.Process.Kill(); e.cmd.Wait() })
	c.wait(time.Minute, name+" to be ready", func() error {
		b, err := os.ReadFile(e.log)
		if err == nil && !readyLine.Match(b) {
			err = fmt.Errorf("it says %q", b)
		}
		return err
	})
	return e
}

// stop has it end in order.
func (e *export) stop() {
	e.c.t.Helper()
	if err := e.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		e.c.t.Fatal(err)
	}
	if err := e.cmd.Wait(); err != nil {
		b, _ := os.ReadFile(e.log)
		e.c.t.Errorf("%s: %v\n%s", e.what, err, b)
	}
}

// kill ends it at once.
func (e *export) kill() {
	e.cmd.Process.Kill()
	e.cmd.Wait()
}

// TestDisks: a guest with one disk by NBD and one by vhost-user, while a chunk server is killed and the server of vhost-user is killed and started again; what it
// wrote is there on the mount and by the next server, what it discarded is free.
func TestDisks(t *testing.T) {
	need(t, "qemu-system-x86_64", "qemu-img", "cpio")
	kernel := makeDiskGuest(t)
	c := up(t, 1, 3, 1, "3:2")
	a, b := filepath.Join(c.mounts[0], "a.img"), filepath.Join(c.mounts[0], "b.img")
	sh(t, "/", time.Minute, "truncate -s 64M "+a+" "+b)
	dir := t.TempDir()
	one, two := filepath.Join(dir, "nbd"), filepath.Join(dir, "vhost")
	uri := "nbd+unix:///a.img?socket=" + one

	nbd := c.serve("nbd", "nbd", "--socket", one, "a.img")
	vhost := c.serve("vhost", "vhost", "--socket", two, "b.img")
	begin := time.Now()
	g := kernel.boot(t, "diskguest.disks=vda,vdb diskguest.vda=write,check,zeros diskguest.vdb=write,loop,check,zeros,trim",
		"-drive", "file="+uri+",format=raw,if=none,id=a,cache=none,discard=unmap", "-device", "virtio-blk-pci,drive=a,addr=5",
		"-chardev", "socket,id=b,reconnect=1,path="+two, "-device", "vhost-user-blk-pci,chardev=b,addr=6")
	g.expect("begins")
	t.Logf("guest up after %v", time.Since(begin).Round(time.Millisecond))
	g.expect("done zeros vda")
	g.expect("acked")
	t.Logf("wrote and checked after %v", time.Since(begin).Round(time.Millisecond))
	vhost.kill()
	killed := time.Now()
	vhost = c.serve("vhost", "vhost", "--socket", two, "b.img")
	for range 5 {
		g.expect("acked")
	}
	t.Logf("vhost: killed, and in use again after %v", time.Since(killed).Round(time.Millisecond))
	old := c.kill("cs1")
	g.off()
	t.Logf("guest done after %v", time.Since(begin).Round(time.Millisecond))
	vhost.stop()
	nbd.stop()
	nbd = c.serve("nbd2", "nbd", "--socket", one, "a.img", "b.img")
	for _, name := range []string{"a.img", "b.img"} { // with the mount at once: the lease is shared
		sh(t, "/", time.Minute, fmt.Sprintf("qemu-img compare -f raw -F raw 'nbd+unix:///%s?socket=%s' %s", name, one, filepath.Join(c.mounts[0], name)))
	}
	nbd.stop()
	c.waitRestart("cs1", old)
	c.wait(3*time.Minute, "the cluster to be whole", c.healthy)
}

// TestGuestDisks installs a Debian guest by qemu-img over NBD, boots it from NBD, and from vhost-user, where it writes with fsync, and the server is stopped and started
// again under it.
func TestGuestDisks(t *testing.T) {
	need(t, "qemu-system-x86_64", "qemu-img", "debootstrap", "mke2fs", "e2fsck")
	if os.Getenv("VARVE_SOAK") == "" {
		t.Skip("TestDisks is the short form; this one takes minutes: VARVE_SOAK=1m (make soak)")
	}
	guestKernel(t)
	source := guestImage(t)
	c := up(t, 1, 3, 1, "3:2")
	image := filepath.Join(c.mounts[0], "vm.img")
	sh(t, "/", time.Minute, "truncate -r "+source+" "+image)
	socket := filepath.Join(t.TempDir(), "s")
	uri := "nbd+unix:///vm.img?socket=" + socket
	nbd := c.serve("nbd", "nbd", "--socket", socket, "vm.img")
	begin := time.Now()
	sh(t, "/", 5*time.Minute, fmt.Sprintf("qemu-img convert -n -f raw -O raw %s '%s' && qemu-img compare -f raw -F raw %s '%s'", source, uri, source, uri))
	t.Logf("image copied with qemu-img over NBD and compared in %v", time.Since(begin).Round(time.Second))
	disk := []string{"-drive", "file=" + uri + ",format=raw,if=virtio,cache=none,discard=unmap"}
	for _, stage := range []struct{ do, says string }{{"write", "written"}, {"check", "sums ok"}} {
		begin = time.Now()
		g := bootFrom(t, stage.do, disk...)
		g.expect(stage.says)
		g.off()
		t.Logf("NBD: guest booted for %s and powered off in %v", stage.do, time.Since(begin).Round(time.Second))
	}
	nbd.stop()
	disk = []string{"-object", "memory-backend-memfd,id=mem,size=512M,share=on", "-numa", "node,memdev=mem",
		"-chardev", "socket,id=d,reconnect=1,path=" + socket, "-device", "vhost-user-blk-pci,chardev=d"}
	vhost := c.serve("vhost", "vhost", "--socket", socket, "vm.img")
	begin = time.Now()
	g := bootFrom(t, "check", disk...)
	g.expect("sums ok")
	g.off()
	t.Logf("vhost-user: guest booted, checked and powered off in %v", time.Since(begin).Round(time.Second))
	g = bootFrom(t, "loop", disk...)
	for i := range 3 {
		for range 5 {
			g.expect("acked")
		}
		if i%2 == 0 {
			vhost.stop()
		} else {
			vhost.kill()
		}
		vhost = c.serve("vhost", "vhost", "--socket", socket, "vm.img")
	}
	for range 20 {
		g.expect("acked")
	}
	g.cmd.Process.Kill()
	for range g.lines {
	}
	g.cmd.Wait()
	vhost.stop()
	sh(t, "/", 2*time.Minute, "e2fsck -fy "+image+" || [ $? = 1 ]")
	c.checkReplicas(3)
}
