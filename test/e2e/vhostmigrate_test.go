package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestVhostMigration moves a running guest there and back between two hosts, each with a `varve vhost` of its own for the same image, while it writes and checks what it
// wrote. VARVE_MOVES says how often.
func TestVhostMigration(t *testing.T) {
	need(t, "qemu-system-x86_64")
	kernel, initrd := smallGuest(t)
	c := up(t, 1, 3, 1, "3:2")
	f, err := os.Create(filepath.Join(c.mounts[0], "vm.img"))
	if err == nil {
		err = errors.Join(f.Truncate(64<<20), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var sockets [2]string
	var servers [2]*export
	serve := func(i int) {
		sockets[i] = filepath.Join(dir, []string{"one", "two"}[i])
		servers[i] = c.serve(filepath.Base(sockets[i]), "vhost", "--socket", sockets[i], "vm.img")
	}
	serve(0)
	serve(1)
	run := func(i int, incoming bool) *moved {
		return hostOf(t, kernel, initrd, incoming, "-object", "memory-backend-memfd,id=mem,size=128M,share=on", "-numa", "node,memdev=mem",
			"-chardev", "socket,id=d,reconnect=1,path="+sockets[i], "-device", "vhost-user-blk-pci,chardev=d")
	}
	begin := time.Now()
	at := run(0, false)
	at.expectSound("up")
	t.Logf("guest runs after %v", time.Since(begin).Round(100*time.Millisecond))
	acked := at.number("acked", 0)
	n := moves(t)
	for i := 1; i <= n; i++ {
		next := run(i%2, true)
		took, down := at.move(next)
		at = next
		acked = at.number("acked", acked+200)
		t.Logf("move %d to host %d: %v, the guest stood still for %v, %d writes acknowledged", i, i%2+1, took.Round(time.Millisecond), down, acked)
	}
	checked := at.number("checked", 0)
	at.number("checked", checked+4)
	at.guest.cmd.Process.Kill()
	at.guest.cmd.Wait()
	for _, s := range servers {
		s.stop()
	}
	c.checkReplicas(3)
}
