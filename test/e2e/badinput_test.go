package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// refusal is one command line that must fail.
type refusal struct {
	code int
	want string // part of the line on standard error
	args string // words
}

// refuse runs command lines and checks that each ends soon, with its exit code and one line that says want.
func (c *cluster) refuse(dir string, all []refusal) {
	c.t.Helper()
	for _, r := range all {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		cmd := exec.CommandContext(ctx, varveBinary, strings.Fields(r.args)...)
		var stderr bytes.Buffer
		cmd.Dir, cmd.Stderr = dir, &stderr
		cmd.Env = append(os.Environ(), "VARVE_CLUSTER=")
		_ = cmd.Run()
		late := ctx.Err() != nil
		cancel()
		line := stderr.String()
		if code := cmd.ProcessState.ExitCode(); late || code != r.code || strings.Count(line, "\n") != 1 || !strings.Contains(line, r.want) {
			c.t.Errorf("varve %s: late %v, exit code %d, want %d and one line with %q:\n%s", r.args, late, code, r.code, r.want, line)
		}
	}
}

func TestBadInputFilesystem(t *testing.T) {
	need(t)
	c := up(t, 1, 3, 1, "3:2")
	m := c.mounts[0]
	path := func(name string) string { return filepath.Join(m, name) }
	content := bytes.Repeat([]byte("x"), 5000)
	if err := os.WriteFile(path("f"), content, 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path("f"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd := int(f.Fd())
	long := strings.Repeat("n", 256)
	pwrite := func(off int64) error { _, err := unix.Pwrite(fd, []byte("abc"), off); return err }
	set := func(name string, size, flags int) error {
		return unix.Setxattr(path("f"), name, make([]byte, size), flags)
	}
	rename := func(flags uint) error {
		return unix.Renameat2(unix.AT_FDCWD, path("f"), unix.AT_FDCWD, path("g"), flags)
	}
	for i := range 50 {
		if err := os.Symlink(fmt.Sprintf("l%d", i+1), path(fmt.Sprintf("l%d", i))); err != nil {
			t.Fatal(err)
		}
	}
	for name, x := range map[string]struct{ got, want error }{
		"create a name of 256":       {unix.Mknod(path(long), unix.S_IFREG, 0), unix.ENAMETOOLONG},
		"make a directory of 256":    {unix.Mkdir(path(long), 0o755), unix.ENAMETOOLONG},
		"link to a name of 256":      {unix.Link(path("f"), path(long)), unix.ENAMETOOLONG},
		"rename to a name of 256":    {unix.Rename(path("f"), path(long)), unix.ENAMETOOLONG},
		"name of 255":                {unix.Mknod(path(long[1:]), unix.S_IFREG, 0), nil},
		"name that is not UTF-8":     {unix.Mknod(path("\xff\x01\n"), unix.S_IFREG, 0), nil},
		"name with NUL":              {unix.Mknod(path("a\x00b"), unix.S_IFREG, 0), unix.EINVAL},
		"empty name":                 {unix.Mknod("", unix.S_IFREG, 0), unix.ENOENT},
		"path over PATH_MAX":         {unix.Mkdir(m+strings.Repeat("/x", 3000), 0o755), unix.ENAMETOOLONG},
		"empty symlink":              {unix.Symlink("", path("s")), unix.ENOENT},
		"symlink over PATH_MAX":      {unix.Symlink(strings.Repeat("y", 4096), path("s")), unix.ENAMETOOLONG},
		"too many symlinks":          {unix.Access(path("l0"), unix.F_OK), unix.ELOOP},
		"truncate to 2^51":           {unix.Ftruncate(fd, 1<<51), unix.EFBIG},
		"truncate to -1":             {unix.Ftruncate(fd, -1), unix.EINVAL},
		"write at 2^50":              {pwrite(1 << 50), unix.EFBIG},
		"write across 2^50":          {pwrite(1<<50 - 2), unix.EFBIG},
		"write at 2^62":              {pwrite(1 << 62), unix.EFBIG},
		"write at -1":                {pwrite(-1), unix.EINVAL},
		"fallocate over the limit":   {unix.Fallocate(fd, 0, 1<<50-4096, 8192), unix.EFBIG},
		"fallocate keep size":        {unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, 1<<50, 1), unix.EFBIG},
		"fallocate of nothing":       {unix.Fallocate(fd, 0, 0, 0), unix.EINVAL},
		"fallocate at -1":            {unix.Fallocate(fd, 0, -1, 5), unix.EINVAL},
		"fallocate to collapse":      {unix.Fallocate(fd, unix.FALLOC_FL_COLLAPSE_RANGE, 0, 4096), unix.EOPNOTSUPP},
		"fallocate unknown mode":     {unix.Fallocate(fd, 0x1000, 0, 4096), unix.EOPNOTSUPP},
		"xattr of another namespace": {set("foo.a", 1, 0), unix.EOPNOTSUPP},
		"xattr system.a":             {set("system.a", 1, 0), unix.EOPNOTSUPP},
		"xattr name of 255":          {set("user."+long[6:], 1, 0), nil},
		"xattr name of 256":          {set("user."+long[5:], 1, 0), unix.ERANGE},
		"xattr of 64 KiB":            {set("user.big", 65536, 0), nil},
		"xattr over 64 KiB":          {set("user.more", 65537, 0), unix.E2BIG},
		"xattr with both flags":      {set("user.x", 1, unix.XATTR_CREATE|unix.XATTR_REPLACE), unix.EINVAL},
		"xattr to replace none":      {set("user.x", 1, unix.XATTR_REPLACE), unix.ENODATA},
		"rename with flag 8":         {rename(8), unix.EINVAL},
		"rename with 1 and 2":        {rename(unix.RENAME_NOREPLACE | unix.RENAME_EXCHANGE), unix.EINVAL},
		"rename whiteout":            {rename(unix.RENAME_WHITEOUT), unix.EINVAL},
	} {
		if !errors.Is(x.got, x.want) {
			t.Errorf("%s: %v, want %v", name, x.got, x.want)
		}
	}
	if got, err := os.ReadFile(path("f")); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the file has changed: %d bytes, %v", len(got), err)
	}
}

func TestBadInputCommands(t *testing.T) {
	need(t)
	c := up(t, 1, 3, 1, "3:2", "--insecure")
	d := t.TempDir()
	put := func(name, content string) {
		t.Helper()
		p := filepath.Join(d, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	get := func(path string) string {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	identity, list := get(filepath.Join(c.name(), "cluster.json")), get(filepath.Join(c.name(), "bs.list"))
	var of struct{ UUID string }
	if err := json.Unmarshal([]byte(identity), &of); err != nil {
		t.Fatal(err)
	}
	put("full/file", "")
	put("nolist/cluster.json", identity)
	put("garbage/cluster.json", "{{{")
	put("badlist/cluster.json", identity)
	put("badlist/bs.list", "\x00\xff\x01 \n")
	put("nobody/cluster.json", identity)
	put("nobody/bs.list", "127.0.0.1:1\n")
	put("other/cluster.json", strings.Replace(identity, of.UUID, "01234567-89ab-cdef-0123-456789abcdef", 1))
	put("other/bs.list", list)
	for _, sub := range []string{"empty", "mnt"} {
		if err := os.Mkdir(filepath.Join(d, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	put("jc/journal/x", "")
	// Records that come after the journal was synced say so, and make what is before them more than a torn end.
	segments, err := filepath.Glob(filepath.Join(c.dir, "mds1", "journal", "*.seg"))
	if err != nil || len(segments) == 0 {
		t.Fatal(segments, err)
	}
	os.Remove(filepath.Join(d, "jc/journal/x"))
	early := 0
	c.wait(time.Minute, "records that come after the journal was synced", func() error {
		early++
		if err := os.WriteFile(filepath.Join(c.mounts[0], fmt.Sprint("early", early)), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		b := []byte(get(segments[0]))
		put("jc/journal/"+filepath.Base(segments[0]), string(b))
		b[600] ^= 1 // in one of the first records
		put("damaged/journal/"+filepath.Base(segments[0]), string(b))
		if out, err := c.varve(time.Minute, "journal", "verify", "-r", filepath.Join(d, "damaged")); err == nil {
			return fmt.Errorf("after %d files a torn end is all that there is: %s", early, out)
		}
		return nil
	})

	m, n, port := c.mounts[0], c.name(), c.metaAddrs()[0]
	if err := os.WriteFile(m+"/f", []byte("here"), 0o644); err != nil {
		t.Fatal(err)
	}
	c.must(time.Minute, "-c", filepath.Join(d, "taken"), "make-mds", "-I", "--insecure", "-a", port, "-r", filepath.Join(d, "takenmds"))
	c.refuse(d, []refusal{
		{2, "NORM", "set-attr " + m + "/f replicas=0"},
		{2, `"9"`, "set-attr " + m + "/f replicas=9"},
		{2, "NORM", "set-attr " + m + "/f replicas=2:3"},
		{2, "unknown", "set-attr " + m + "/f foo=1"},
		{4, "choose a lower MIN", "set-attr " + m + "/f replicas=4:4"},
		{2, "not on a varve mount", "set-attr /etc/passwd replicas=2"},
		{1, "findmnt", "set-attr " + m + "/missing replicas=2"},
		{2, "missing", "set-attr " + m + "/f"},
		{2, "0 to 3", "set-attr " + m + "/f tier=4"},
		{2, "rack", "set-attr " + m + "/f failure-domain=planet"},
		{2, "missing", "-c " + n + " whatif lose"},
		{2, "names nothing", "-c " + n + " whatif lose rack="},
		{1, "host elsewhere", "-c " + n + " whatif lose elsewhere"},
		{4, "would be lost", "-c " + n + " whatif lose cs1 cs2 cs3"},
		{2, "does not know", "nonsense"},
		{2, "--help", "stat --nonsense"},
		{2, "which cluster", "stat"},
		{2, "cluster name", "-c bad! stat"},
		{1, "make-mds -I", "-c no-such-cluster stat"},
		{1, "make-mds -I", "-c ./empty stat"},
		{3, "bs.list", "-c ./nolist stat"},
		{1, "copy it from another node", "-c ./garbage stat"},
		{3, "line 1", "-c ./badlist stat"},
		{3, "start a metadata server", "-c ./nobody stat"},
		{3, "start a metadata server", "-c ./nobody journal cat"},
		{3, "start the metadata servers", "-c ./nobody make-cs -r ./new -t 0"},
		{3, "correct its bs.list", "-c ./other stat"},
		{1, "another cluster", "-c ./other mount ./mnt"},
		{1, "another cluster", "-c ./other make-cs -r ./new2 -t 0"},
		{1, "another cluster", "-c ./other make-mds -r ./new3 -a 127.0.0.1:2999"},
		{2, "unknown", "-c " + n + " mount ./mnt -o foo"},
		{2, "unknown", "-c " + n + " mount ./mnt -o ="},
		{2, "cachesize=MB", "-c " + n + " mount ./mnt -o cache=/tmp"},
		{2, "later release", "-c " + n + " mount ./mnt -o at=5"},
		{2, "transport", "-c " + n + " mount ./mnt -o transport=x"},
		{1, "mkdir -p", "-c " + n + " mount ./missing"},
		{1, "choose a directory", "-c " + n + " mount ./full/file"},
		{1, "umount", "-c " + n + " mount " + m},
		{1, "findmnt", "umount ./mnt"},
		{1, "port is taken", "mds -r ./takenmds"},
		{4, "another -c", "-c " + n + " make-mds -I --insecure -a 127.0.0.1:2999 -r ./new4"},
		{4, "empty directory", "-c ./new5 make-mds -I --insecure -a 127.0.0.1:2999 -r ./full"},
		{4, "empty directory", "-c " + n + " make-cs -t 0 -r ./full"},
		{1, "stop that process", "-c " + n + " make-cs -t 0 -r " + c.dir + "/cs1"},
		{1, "65535", "-c " + n + " make-cs -t 0 -r ./new6 -a 127.0.0.1:99999"},
		{1, "stop that process", "cs -r " + c.dir + "/cs1"},
		{1, "stop", "mds -r " + c.dir + "/mds1"},
		{1, "varve cs -r", "mds -r " + c.dir + "/cs1"},
		{1, "varve mds -r", "cs -r " + c.dir + "/mds1"},
		{1, "make-cs", "cs -r ./empty"},
		{1, "no journal", "journal cat -r ./empty"},
		{1, "no journal", "journal verify -r " + c.dir + "/cs1"},
		{1, filepath.Base(segments[0]) + ": offset ", "journal verify -r ./damaged"},
		{2, "not in the journal", "journal replay -r ./jc --to 99999999"},
		{2, "not in the journal", "journal replay -r ./jc --to 0"},
		{2, "no index and no time", "journal cat -r ./jc --to nonsense"},
		{2, "further away", "journal cat -r ./jc --to 2999-01-01"},
		{2, "exchange", "journal cat -r ./jc --from 5 --to 2"},
		{2, "1, 3 or 5", "dev up --dir ./new7 --mds 2"},
		{2, "1 to 32", "dev up --dir ./new7 --cs 0"},
		{2, "NORM", "dev up --dir ./new7 --replicas 1:2"},
		{2, "at least 3", "dev up --dir ./new7 --replicas 3:3 --cs 2"},
		{2, "twice", "dev up --dir ./new7 --mount ./x,./x"},
		{2, "not a directory", "dev up --dir ./new7 --mount ./full/file"},
		{2, "not a directory", "dev up --dir ./full/file"},
		{4, "another --dir", "dev up --dir ./full"},
		{1, "dev down", "dev up -d --dir " + c.dir},
		{1, "--dir", "dev down --dir ./empty"},
	})
	for _, name := range []string{"new", "new7"} {
		if _, err := os.Stat(filepath.Join(d, name, "cs.json")); err == nil {
			t.Errorf("a refused command left %s", name)
		}
	}
	c.wait(time.Minute, "the cluster to be whole", c.healthy) // else a loss may mean more
	for _, args := range []string{"stat", "list-services", "whatif lose cs1", "get-attr " + m + "/f",
		"set-attr " + m + "/f replicas=2:1 tier=any failure-domain=disk prefer=none", "journal verify",
		"journal replay", "journal cat --from 1 --to 1", "version", "dev status --dir " + c.dir} {
		out, err := c.varve(time.Minute, append([]string{"--json", "-c", n}, strings.Fields(args)...)...)
		if err != nil || !json.Valid([]byte(out)) {
			t.Errorf("varve --json %s: %v, not JSON:\n%s", args, err, out)
		}
	}
	if got := get(m + "/f"); got != "here" {
		t.Errorf("the file holds %q", got)
	}
	c.wait(time.Minute, "all chunk servers to be live", c.allLive)
}

// frame returns a frame with a right header around body; dataLen is only announced.
func frame(t wire.Type, body []byte, bodyLen, dataLen uint32) []byte {
	le, table := binary.LittleEndian, crc32.MakeTable(crc32.Castagnoli)
	b := make([]byte, 48, 48+len(body))
	magic := wire.Preface()
	copy(b, magic[:])
	le.PutUint16(b[4:], uint16(t))
	le.PutUint64(b[8:], 1)
	le.PutUint32(b[28:], bodyLen)
	le.PutUint32(b[32:], dataLen)
	le.PutUint32(b[36:], crc32.Checksum(body, table))
	le.PutUint32(b[44:], crc32.Checksum(b[:44], table))
	return append(b, body...)
}

// rss returns the resident memory of a process in KiB.
func rss(pid int) (kib int) {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(b)) {
		if n, _ := fmt.Sscanf(line, "VmRSS: %d kB", &kib); n == 1 {
			return kib
		}
	}
	return 0
}

func TestBadInputSockets(t *testing.T) {
	need(t)
	c := up(t, 1, 3, 1, "3:2", "--insecure")
	w := newWriter(t, filepath.Join(c.mounts[0], "file"), 512)
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Add(1)
	go w.run(&stop, &wg)
	defer wg.Wait()
	defer stop.Store(true)

	st, err := c.status()
	if err != nil {
		t.Fatal(err)
	}
	names, addrs := []string{"mds1"}, []string{c.metaAddrs()[0]}
	for _, s := range st.Servers {
		names, addrs = append(names, fmt.Sprintf("cs%d", s.Server)), append(addrs, s.Addr)
	}
	pids, before := make([]int, len(names)), make([]int, len(names))
	for i, name := range names {
		if pids[i] = c.pid(name); pids[i] == 0 {
			t.Fatalf("%s does not run", name)
		}
	}
	var uuid struct{ UUID string }
	b, err := os.ReadFile(filepath.Join(c.name(), "cluster.json"))
	if err := errors.Join(err, json.Unmarshal(b, &uuid)); err != nil {
		t.Fatal(err)
	}
	own, err := id.ParseCluster(uuid.UUID)
	if err != nil {
		t.Fatal(err)
	}
	var held []net.Conn
	defer func() {
		for _, nc := range held {
			nc.Close()
		}
	}()
	rng := rand.New(rand.NewPCG(1, 2))
	send := func(addr string, b []byte, hold bool) {
		t.Helper()
		nc, err := net.DialTimeout("tcp", addr, 30*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = nc.Write(b) // the server may have closed it
		if hold {
			held = append(held, nc)
			return
		}
		nc.Close()
	}
	garbage := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	hello, err := (&msg.Hello{Role: msg.Hello_CLIENT, Cluster: own[:], Session: 1 << 40}).MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	greeting := frame(wire.Hello, hello, uint32(len(hello)), 0)
	magic := wire.Preface()
	attack := func(addr string, hold bool) {
		t.Helper()
		send(addr, garbage(1+rng.IntN(5000)), hold)
		send(addr, append(magic[:], garbage(200)...), hold)
		send(addr, append([]byte("VRFT"), garbage(200)...), hold)
		send(addr, append(append([]byte("VRFT"), own[:]...), garbage(2000)...), hold)
		send(addr, greeting[:20], hold)                                   // half a header
		send(addr, frame(wire.Hello, nil, 4000, 0), hold)                 // half a hello
		send(addr, frame(wire.Hello, hello, 1<<31, 1<<31), hold)          // lengths over every limit
		send(addr, frame(wire.Write, hello, uint32(len(hello)), 0), hold) // no hello
		send(addr, append(bytes.Clone(greeting), frame(wire.Write, nil, 64, 1<<20)...), hold)
		send(addr, append(bytes.Clone(greeting), frame(wire.Meta, garbage(100), 100, 0)...), hold)
	}
	types := func(addr string, role msg.Hello_Role, bodies ...[]byte) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
		defer cancel()
		conn, _, err := wire.Dial(ctx, addr, &msg.Hello{Role: role, Cluster: own[:], Server: 900}, nil, wire.Options{})
		if err != nil {
			t.Fatalf("hello of a %v: %v", role, err)
		}
		defer conn.Close()
		for typ := wire.Type(2); typ < 120; typ++ {
			if typ == wire.RegisterServer || typ == wire.JoinMeta || typ == wire.CloseSession && role == msg.Hello_ADMIN {
				continue // would be carried out
			}
			for _, body := range bodies {
				f, err := conn.Call(ctx, &wire.Frame{Type: typ, Class: wire.ClassMeta, Body: body, Epoch: 7})
				if err != nil {
					t.Fatalf("type %d of a %v to %s: %v", typ, role, addr, err)
				}
				f.Release()
			}
		}
	}
	round := func(connects int) {
		t.Helper()
		for i, addr := range addrs {
			for k := range 20 {
				attack(addr, k < 3)
			}
			for range connects {
				nc, err := net.DialTimeout("tcp", addr, 30*time.Second)
				if err != nil {
					t.Fatalf("connect to %s: %v", names[i], err)
				}
				nc.Close()
			}
			if _, _, err := wire.Dial(context.Background(), addr, &msg.Hello{Role: msg.Hello_CLIENT, Cluster: make([]byte, 16)}, nil, wire.Options{}); err == nil {
				t.Errorf("%s takes a client of another cluster", names[i])
			}
			types(addr, msg.Hello_CLIENT, nil, garbage(64), garbage(200))
			types(addr, msg.Hello_ADMIN, nil, garbage(64))
		}
	}
	round(200) // what servers allocate once
	for i := range pids {
		before[i] = rss(pids[i])
	}
	for range 3 {
		round(500)
	}
	for i, name := range names {
		if pid := c.pid(name); pid != pids[i] {
			t.Errorf("%s was process %d, is %d", name, pids[i], pid)
		}
		after := rss(pids[i])
		t.Logf("%s: VmRSS %d KiB, then %d KiB", name, before[i], after)
		const garbage = 64 << 10 // KiB that the collector lets gather (cmd/varve/gc.go)
		if after > before[i]+before[i]/2+garbage+(32<<10) {
			t.Errorf("%s grew from %d to %d KiB", name, before[i], after)
		}
	}
	stop.Store(true)
	wg.Wait()
	if w.err != nil {
		t.Error(w.err)
	}
	if w.stall > maxStall || w.writes == 0 {
		t.Errorf("%d writes, the longest took %v", w.writes, w.stall)
	}
	t.Logf("%d writes with fsync meanwhile, the longest took %v", w.writes, w.stall)
	if err := w.verify(w.path); err != nil {
		t.Error(err)
	}
	c.wait(time.Minute, "the cluster to be whole", c.healthy)
}

func TestFullDisk(t *testing.T) {
	need(t, "mkfs.ext4", "mount", "umount")
	dir := t.TempDir()
	image, disk := filepath.Join(dir, "image"), filepath.Join(dir, "disk")
	sh := func(name string, args ...string) error {
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s %v: %w: %s", name, args, err, out)
		}
		return nil
	}
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 320<<20), os.Mkdir(disk, 0o755), sh("mkfs.ext4", "-q", "-F", image)); err != nil {
		t.Fatal(err)
	}
	if err := sh("mount", "-o", "loop", image, disk); err != nil {
		t.Skip("needs loop devices: ", err)
	}
	t.Cleanup(func() {
		err := sh("umount", disk)
		for end := time.Now().Add(30 * time.Second); err != nil && time.Now().Before(end); err = sh("umount", disk) { // somebody may look at it
			time.Sleep(100 * time.Millisecond)
		}
		if err != nil {
			t.Error(err)
		}
	})
	c := &cluster{t: t, dir: filepath.Join(disk, "data"), mounts: []string{filepath.Join(dir, "mnt")}, mds: 1, cs: 2}
	c.args = []string{"dev", "up", "-d", "--procs", "--dir", c.dir, "--mount", c.mounts[0], "--cs", "2", "--replicas", "2:1"}
	t.Cleanup(func() {
		if t.Failed() {
			c.keepLogs()
		}
		c.varve(3*time.Minute, "dev", "down", "--dir", c.dir)
	})
	c.start()
	server := c.pid("mds1")

	rng := rand.New(rand.NewPCG(3, 4))
	block := make([]byte, 1<<18)
	for i := 0; i < len(block); i += 8 {
		binary.LittleEndian.PutUint64(block[i:], rng.Uint64())
	}
	f, err := os.Create(filepath.Join(c.mounts[0], "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sum := func(n int64) [32]byte {
		t.Helper()
		h := sha256.New()
		if _, err := io.Copy(h, io.NewSectionReader(f, 0, n)); err != nil {
			t.Fatal(err)
		}
		return [32]byte(h.Sum(nil))
	}
	store := func(off int64) error {
		binary.LittleEndian.PutUint64(block, uint64(off))
		_, err := f.WriteAt(block, off)
		return errors.Join(err, f.Sync())
	}
	var kept int64
	for ; kept < 4<<20; kept += int64(len(block)) {
		if err := store(kept); err != nil {
			t.Fatal(err)
		}
	}
	// Something else takes the disk, all but 32 MiB.
	other, err := os.Create(filepath.Join(disk, "other"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	var sp unix.Statfs_t
	if err := unix.Statfs(disk, &sp); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fallocate(int(other.Fd()), 0, 0, int64(sp.Bavail)*sp.Bsize-32<<20); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	for err == nil && kept < 60<<20 {
		if err = store(kept); err == nil {
			kept += int64(len(block))
		}
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("after %d MiB: %v, want ENOSPC", kept>>20, err)
	}
	t.Logf("full after %d MiB", kept>>20)
	want := sum(kept)
	for i := range 5 {
		if err := store(kept + int64(i)<<20); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("write to a full disk: %v, want ENOSPC", err)
		}
	}
	if err := os.WriteFile(filepath.Join(c.mounts[0], "empty"), nil, 0o644); err != nil {
		t.Error("a file without data needs no room on chunk servers: ", err)
	}
	if err := store(0); err != nil {
		t.Error("what is there can be written over: ", err)
	}
	if d := time.Since(begin); d > 5*time.Minute {
		t.Errorf("that took %v", d)
	}
	if err := unix.Statfs(disk, &sp); err != nil || int64(sp.Bavail)*sp.Bsize < 8<<20 {
		t.Errorf("%d bytes are left for the metadata server, %v", int64(sp.Bavail)*sp.Bsize, err)
	}
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		t.Log(err)
	}
	if got := sum(kept); got != want {
		t.Error("what was written has changed")
	}
	if err := other.Truncate(0); err != nil {
		t.Fatal(err)
	}
	c.wait(time.Minute, "writing to work again", func() error { return store(kept) })
	if got := sum(kept); got != want {
		t.Error("what was written has changed after space was freed")
	}
	if pid := c.pid("mds1"); pid != server {
		t.Errorf("the metadata server was process %d, is %d", server, pid)
	}
}
