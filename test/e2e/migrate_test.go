package e2e

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// migrateModules are what the guest needs for its disk, in the kernel's tree; those that it has built in are not there.
var migrateModules = []string{"drivers/virtio/virtio", "drivers/virtio/virtio_ring", "drivers/virtio/virtio_pci_legacy_dev",
	"drivers/virtio/virtio_pci_modern_dev", "drivers/virtio/virtio_pci", "drivers/block/virtio_blk"}

// smallGuest makes an initial RAM disk with guestinit as its first process, in well under a second, and returns it with the kernel.
func smallGuest(t *testing.T) (kernel, initrd string) {
	t.Helper()
	kernel, _ = guestKernel(t)
	dir := t.TempDir()
	program := filepath.Join(dir, "init")
	build := exec.Command("go", "build", "-o", program, "varve/test/e2e/guestinit")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build guestinit: %v\n%s", err, out)
	}
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	n := 0
	add := func(name string, mode, major, minor uint32, data []byte) { // the format newc of cpio(5)
		n++
		fmt.Fprintf(z, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", n, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name)+1, 0)
		z.Write(append([]byte(name), make([]byte, 1+(4-(110+len(name)+1)%4)%4)...))
		z.Write(append(data, make([]byte, (4-len(data)%4)%4)...))
	}
	read := func(path string) []byte {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	for _, d := range []string{"dev", "modules"} {
		add(d, 0o040755, 0, 0, nil)
	}
	add("dev/console", 0o020600, 5, 1, nil)
	add("init", 0o100755, 0, 0, read(program))
	modules := filepath.Join("/lib/modules", strings.TrimPrefix(filepath.Base(kernel), "vmlinuz-"), "kernel")
	for _, m := range migrateModules {
		path := filepath.Join(modules, m+".ko")
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		add("modules/"+filepath.Base(path), 0o100644, 0, 0, read(path))
	}
	add("TRAILER!!!", 0, 0, 0, nil)
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	initrd = filepath.Join(dir, "initrd.gz")
	if err := os.WriteFile(initrd, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return kernel, initrd
}

// qmp is a connection to qemu's monitor.
type qmp struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Scanner
}

// do runs a command and returns its answer.
func (q *qmp) do(command string, args map[string]any) json.RawMessage {
	q.t.Helper()
	req := map[string]any{"execute": command}
	if args != nil {
		req["arguments"] = args
	}
	b, err := json.Marshal(req)
	if err != nil {
		q.t.Fatal(err)
	}
	q.conn.SetDeadline(time.Now().Add(time.Minute))
	if _, err := q.conn.Write(append(b, '\n')); err != nil {
		q.t.Fatal(err)
	}
	for q.in.Scan() {
		var answer struct {
			Return json.RawMessage
			Error  *struct{ Desc string }
		}
		if err := json.Unmarshal(q.in.Bytes(), &answer); err != nil {
			q.t.Fatalf("%s: %v", q.in.Bytes(), err)
		}
		if answer.Error != nil {
			q.t.Fatalf("qemu: %s: %s", command, answer.Error.Desc)
		}
		if answer.Return != nil {
			return answer.Return
		}
	}
	q.t.Fatalf("qemu: %s: no answer: %v", command, q.in.Err())
	return nil
}

// moved is a qemu that a guest runs in for a while.
type moved struct {
	*guest
	*qmp
	incoming string
}

// host starts qemu with the image; incoming: it waits for the guest to be moved there.
func host(t *testing.T, kernel, initrd, image, cache string, incoming bool) *moved {
	t.Helper()
	return hostOf(t, kernel, initrd, incoming, "-drive", "file="+image+",format=raw,if=virtio,cache="+cache+",aio=threads")
}

// hostOf starts qemu with a disk that these arguments tell of.
func hostOf(t *testing.T, kernel, initrd string, incoming bool, disk ...string) *moved {
	t.Helper()
	dir := t.TempDir()
	m := &moved{incoming: "unix:" + filepath.Join(dir, "in")}
	monitor := filepath.Join(dir, "qmp")
	args := []string{"-accel", "tcg", "-m", "128", "-smp", "1", "-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot", "-nic", "none",
		"-nodefaults", "-qmp", "unix:" + monitor + ",server=on,wait=off", "-kernel", kernel, "-initrd", initrd, "-append", "console=ttyS0 quiet no_timer_check panic=-1"}
	args = append(args, disk...)
	if incoming {
		args = append(args, "-incoming", m.incoming)
	}
	m.guest = start(t, args)
	deadline := time.Now().Add(time.Minute)
	for {
		conn, err := net.Dial("unix", monitor)
		if err == nil {
			m.qmp = &qmp{t: t, conn: conn, in: bufio.NewScanner(conn)}
			t.Cleanup(func() { conn.Close() })
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("qemu's monitor: %v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	if !m.qmp.in.Scan() { // its greeting
		t.Fatal("qemu's monitor says nothing")
	}
	m.do("qmp_capabilities", nil)
	return m
}

// number waits until the guest says a number after word that is above n. It says so again and again, and its kernel may speak in between.
func (m *moved) number(word string, n int) int {
	m.guest.t.Helper()
	for {
		rest := m.guest.expectSound(word)
		if v, err := strconv.Atoi(rest); err == nil && v > n {
			return v
		}
	}
}

// expectSound is expect and fails at once if the guest says that something is bad.
func (g *guest) expectSound(word string) string {
	g.t.Helper()
	rest, ok := g.until(4*time.Minute, word)
	for _, line := range g.seen {
		if strings.Contains(line, "VARVE bad") {
			g.t.Fatalf("the guest says: %s", line)
		}
	}
	if !ok {
		g.t.Fatalf("qemu ended; its console:\n%s", tail(strings.Join(g.seen, "\n"), 3000))
	}
	return rest
}

// move moves the guest to another qemu and ends the first.
func (m *moved) move(to *moved) (took, down time.Duration) {
	t := m.guest.t
	t.Helper()
	begin := time.Now()
	m.do("migrate-set-parameters", map[string]any{"max-bandwidth": 4 << 30, "downtime-limit": 500})
	m.do("migrate", map[string]any{"uri": to.incoming})
	for deadline := begin.Add(4 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		var st struct {
			Status   string
			Downtime int
			Desc     string `json:"error-desc"`
		}
		if err := json.Unmarshal(m.do("query-migrate", nil), &st); err != nil {
			t.Fatal(err)
		}
		if st.Status == "completed" {
			down = time.Duration(st.Downtime) * time.Millisecond
			break
		}
		if st.Status == "failed" || time.Now().After(deadline) {
			t.Fatalf("migration: %s %s", st.Status, st.Desc)
		}
	}
	took = time.Since(begin)
	m.do("quit", nil)
	done := make(chan struct{})
	go func() { m.guest.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("the qemu that the guest has left does not end")
	}
	return took, down
}

// moves is how often the guest of TestMigration is moved.
func moves(t *testing.T) int {
	s := os.Getenv("VARVE_MOVES")
	if s == "" {
		return 2
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("VARVE_MOVES=%s: %v", s, err)
	}
	return n
}

// TestMigration moves a running guest there and back between two mounts of its image, with and without qemu's cache, while it writes and
// checks what it wrote. VARVE_MOVES says how often.
func TestMigration(t *testing.T) {
	need(t, "qemu-system-x86_64")
	kernel, initrd := smallGuest(t)
	c := up(t, 1, 3, 2, "3:2")
	name := "vm.img"
	f, err := os.Create(filepath.Join(c.mounts[0], name))
	if err == nil {
		err = errors.Join(f.Truncate(64<<20), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	caches := []string{"none", "writeback"}
	begin := time.Now()
	at := host(t, kernel, initrd, filepath.Join(c.mounts[0], name), caches[0], false)
	at.expectSound("up")
	t.Logf("guest runs after %v", time.Since(begin).Round(100*time.Millisecond))
	acked, checked := at.number("acked", 0), 0
	n := moves(t)
	for i := 1; i <= n; i++ {
		next := host(t, kernel, initrd, filepath.Join(c.mounts[i%2], name), caches[(i+i/2)%2], true)
		took, down := at.move(next)
		at = next
		acked = at.number("acked", acked+200)
		t.Logf("move %d to mount %d, cache=%s: %v, the guest stood still for %v, %d writes acknowledged", i, i%2+1, caches[(i+i/2)%2],
			took.Round(time.Millisecond), down, acked)
	}
	// Everything was read back on the last host.
	checked = at.number("checked", checked)
	at.number("checked", checked+4)
	at.guest.cmd.Process.Kill()
	at.guest.cmd.Wait()
	c.checkReplicas(3)
}
