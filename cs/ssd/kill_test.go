package ssd

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"varve/internal/disk"
	"varve/internal/id"
)

const (
	killPages = 4096
	killFiles = 3
)

// killOptions are those of the process that is killed and of the test.
func killOptions(dir string) Options {
	o := Options{
		Dir: filepath.Join(dir, "fast"), Root: filepath.Join(dir, "slow"), Journal: UUID{1}, Server: UUID{2}, Cluster: id.Cluster{3},
		Bytes: 16 << 20, IdleAfter: time.Millisecond,
	}
	path := filepath.Join(dir, "generation")
	if b, err := os.ReadFile(path); err == nil {
		o.Generation = binary.LittleEndian.Uint64(b)
	}
	o.Commit = func(n uint64) error {
		if err := os.WriteFile(path+".new", binary.LittleEndian.AppendUint64(nil, n), 0o600); err != nil {
			return err
		}
		return os.Rename(path+".new", path)
	}
	return o
}

func killName(o Options, i int) string { return filepath.Join(o.Root, fmt.Sprintf("%d.chk", i)) }

// TestKillChild is the process that TestKill kills: it writes at random, and tells on its output what it has begun and what it has synced.
func TestKillChild(t *testing.T) {
	dir := os.Getenv("VARVE_SSD_KILL")
	if dir == "" {
		t.Skip("it is the process that TestKill kills")
	}
	o := killOptions(dir)
	f, err := Open(o)
	must(t, err)
	var files [killFiles]disk.File
	for i := range files {
		files[i], err = f.Open(killName(o, i), disk.ReadWrite|disk.Direct)
		must(t, err)
	}
	var version uint64
	_, err = fmt.Sscan(os.Getenv("VARVE_SSD_VERSION"), &version)
	must(t, err)
	rng := rand.New(rand.NewSource(int64(version)))
	b := disk.AlignedBuffer(4 * pageSize)
	var line [17]byte
	tell := func(kind byte, i, page int, v uint64) {
		line[0] = kind
		binary.LittleEndian.PutUint32(line[1:], uint32(i))
		binary.LittleEndian.PutUint32(line[5:], uint32(page))
		binary.LittleEndian.PutUint64(line[9:], v)
		if _, err := os.Stdout.Write(line[:]); err != nil {
			os.Exit(1)
		}
	}
	for {
		i, page, n := rng.Intn(killFiles), rng.Intn(killPages-4), rng.Intn(4)+1
		version++
		for k := range n {
			for s := 0; s < pageSize; s += 512 {
				stamp(b[k*pageSize+s:k*pageSize+s+512], uint64(i), uint64(page+k), version)
			}
			tell('w', i, page+k, version)
		}
		if _, err := files[i].WriteAt(b[:n*pageSize], int64(page)*pageSize); err != nil {
			t.Fatal(err)
		}
		if rng.Intn(3) == 0 {
			must(t, files[i].Sync())
		}
		for k := range n {
			tell('d', i, page+k, version) // what returned survives the process
		}
	}
}

// TestKill kills a real process with SIGKILL in the middle of its writes, again and again, on an ext4 of its own.
func TestKill(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to mount a filesystem on a loop device")
	}
	for _, tool := range []string{"mkfs.ext4", "mount", "umount"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s: %v", tool, err)
		}
	}
	dir := t.TempDir()
	for _, d := range []string{"fast", "slow"} {
		image, at := filepath.Join(dir, d+".img"), filepath.Join(dir, d)
		must(t, os.Mkdir(at, 0o700))
		must(t, os.WriteFile(image, nil, 0o600))
		must(t, os.Truncate(image, 128<<20))
		if out, err := exec.Command("mkfs.ext4", "-q", "-F", image).CombinedOutput(); err != nil {
			t.Skipf("mkfs.ext4: %v: %s", err, out)
		}
		if out, err := exec.Command("mount", "-o", "loop", image, at).CombinedOutput(); err != nil {
			t.Skipf("no loop mount here: %v: %s", err, out)
		}
		t.Cleanup(func() {
			if out, err := exec.Command("umount", at).CombinedOutput(); err != nil {
				t.Errorf("umount %s: %v: %s", at, err, out)
			}
		})
	}
	o := killOptions(dir)
	must(t, Create(o))
	var least, most [killFiles][killPages]uint64
	for i := range killFiles {
		f, err := disk.OS{}.Open(killName(o, i), disk.ReadWrite|disk.Create)
		must(t, err)
		must(t, f.Truncate(killPages*pageSize))
		must(t, f.Close())
	}
	rounds := 4
	if os.Getenv("VARVE_E2E") != "" {
		rounds = 200
	}
	rng := rand.New(rand.NewSource(testSeed()))
	version := uint64(0)
	writes, starts := 0, time.Duration(0)
	for round := range rounds {
		began := version
		cmd := exec.Command(os.Args[0], "-test.run", "^TestKillChild$", "-test.timeout", "5m")
		cmd.Env = append(os.Environ(), "VARVE_SSD_KILL="+dir, fmt.Sprintf("VARVE_SSD_VERSION=%d", version))
		out, err := cmd.StdoutPipe()
		must(t, err)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		must(t, cmd.Start())
		in := bufio.NewReader(out)
		kill := rng.Intn(4000) + 1
		var line [17]byte
		for n := 0; ; n++ {
			if n == kill {
				must(t, cmd.Process.Kill())
			}
			if _, err := io.ReadFull(in, line[:]); err != nil {
				break
			}
			i, page, v := binary.LittleEndian.Uint32(line[1:]), binary.LittleEndian.Uint32(line[5:]), binary.LittleEndian.Uint64(line[9:])
			if i >= killFiles || page >= killPages {
				t.Fatalf("round %d: the process says %q %s", round, line, stderr.String())
			}
			switch line[0] {
			case 'w':
				most[i][page], version = v, max(version, v)
			case 'd':
				least[i][page] = v
				writes++
			}
		}
		_ = cmd.Wait()
		if version == began && round > 0 {
			t.Fatalf("round %d: the process wrote nothing: %s", round, stderr.String())
		}
		start := time.Now()
		f, err := Open(killOptions(dir))
		must(t, err)
		starts = max(starts, time.Since(start))
		for i := range killFiles {
			h, err := f.Open(killName(o, i), disk.ReadWrite|disk.Direct)
			must(t, err)
			b := disk.AlignedBuffer(killPages * pageSize)
			_, err = h.ReadAt(b, 0)
			must(t, err)
			for p := range killPages {
				for s := 0; s < pageSize; s += 512 {
					sector := b[p*pageSize+s:]
					v := binary.LittleEndian.Uint64(sector[16:])
					// A sector is of the newest write that returned, or of one that was under way.
					if v != least[i][p] && v != most[i][p] || v != 0 && (binary.LittleEndian.Uint64(sector) != uint64(i) || binary.LittleEndian.Uint64(sector[8:]) != uint64(p)) {
						t.Fatalf("round %d: file %d page %d: version %d, want %d or %d", round, i, p, v, least[i][p], most[i][p])
					}
				}
				if v := binary.LittleEndian.Uint64(b[p*pageSize+16:]); v == most[i][p] {
					least[i][p] = v
				} else {
					most[i][p] = v
				}
			}
			must(t, h.Close())
		}
		must(t, f.Close())
	}
	t.Logf("%d kills, %d pages written, longest start %v", rounds, writes, starts)
}
