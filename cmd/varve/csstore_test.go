package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"varve/cs/store"
)

// TestChunkServerCommands: the commands that look after the chunks of a server, on a cluster in which a bit rots and a disk is retired.
func TestChunkServerCommands(t *testing.T) {
	needMounts(t)
	t.Parallel()
	dir := t.TempDir()
	devUp(t, dir)
	if err := os.WriteFile(filepath.Join(dir, "mnt", "f"), []byte(strings.Repeat("varve", 100000)), 0o644); err != nil {
		t.Fatal(err)
	}
	c := []string{"-c", "data/cluster"}
	out := must(t, dir, append(c, "cs", "scrub", "--rate", "1G", "--now")...)
	if !strings.Contains(out, "1.0 GiB/s") || strings.Count(out, "\n") != 4 {
		t.Errorf("cs scrub printed:\n%s", out)
	}
	var scrubs []scrubJSON
	waitFor(t, "the scrub to end on all servers", func() bool {
		out := must(t, dir, append(c, "cs", "scrub", "--json")...)
		if err := json.Unmarshal([]byte(out), &scrubs); err != nil {
			t.Fatal(err)
		}
		return len(scrubs) == 3 && scrubs[0].Passes > 0 && scrubs[1].Passes > 0 && scrubs[2].Passes > 0
	})
	out = must(t, dir, append(c, "cs", "stat", "cs2")...)
	for _, want := range []string{"cs2\n", "1 chunk, ", "kept free", "idle at 1.0 GiB/s", "0 bad blocks"} {
		if !strings.Contains(out, want) {
			t.Errorf("cs stat printed %q, want %q", out, want)
		}
	}
	if _, errs, code := varve(t, dir, append(c, "cs", "stat", "cs9")...); code != exitFailed || !strings.Contains(errs, "none of the chunk servers") {
		t.Errorf("cs stat of an unknown server: exit code %d, %q", code, errs)
	}
	if out := must(t, dir, append(c, "list-services")...); !strings.Contains(out, "USED") || !strings.Contains(out, "BAD") {
		t.Errorf("list-services printed:\n%s", out)
	}
	cs1 := filepath.Join("data", "cs1")
	if _, errs, code := varve(t, dir, "cs", "check", "-r", cs1); code != exitFailed || !strings.Contains(errs, "in use") {
		t.Errorf("cs check beside a running server: exit code %d, %q", code, errs)
	}
	must(t, dir, "dev", "down", "--dir", "data")

	out = must(t, dir, "cs", "check", "-r", cs1)
	if !strings.Contains(out, "all are right") || !strings.Contains(out, "1 chunk") {
		t.Errorf("cs check printed %q", out)
	}
	files, err := filepath.Glob(filepath.Join(dir, cs1, "chunks", "*", "*.chk"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	f, err := os.OpenFile(files[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("rot"), 1<<20+3*4096); err != nil {
		t.Fatal(err)
	}
	f.Close()
	out, errs, code := varve(t, dir, "cs", "check", "-r", cs1, "--json")
	var r store.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != exitFailed || r.Count != 1 || r.Faults[0].Block != 3 || !strings.Contains(errs, "1 fault") {
		t.Errorf("cs check of a rotten block: exit code %d, %q, %+v %v", code, errs, r, err)
	}
	chunk := strings.TrimSuffix(filepath.Base(files[0]), ".chk")
	out = must(t, dir, "cs", "dump", "-r", cs1, "--table", "--data", "12288:12320", chunk)
	for _, want := range []string{"state serving", "extent  0: 123 of 1024 blocks written, table page ok", "blocks 0 to 122: data", "block 3, bytes 12288 to 12319 of the chunk: checksum want",
		"00003000  72 6f 74"} {
		if !strings.Contains(out, want) {
			t.Errorf("cs dump does not say %q:\n%s", want, out)
		}
	}
	var d store.ChunkDump
	if err := json.Unmarshal([]byte(must(t, dir, "cs", "dump", "-r", cs1, "--json", chunk)), &d); err != nil || len(d.Extents) != 1 || d.Extents[0].Written != 123 {
		t.Errorf("cs dump --json: %+v %v", d, err)
	}
	for _, name := range []string{"label", "active.log", "quarantine"} {
		if out := must(t, dir, "cs", "dump", "-r", cs1, name); !strings.Contains(out, "cluster") {
			t.Errorf("dump of %s printed %q", name, out)
		}
	}
	if _, errs, code := varve(t, dir, "cs", "dump", "-r", cs1, "ff"); code != exitFailed || !strings.Contains(errs, "varve explain ff") {
		t.Errorf("dump of no chunk: exit code %d, %q", code, errs)
	}
	if _, _, code := varve(t, dir, "cs", "dump", "-r", cs1, "--data", "9:4", chunk); code != exitUsage {
		t.Errorf("dump of a range that ends before it begins: exit code %d", code)
	}

	// A copy is refused until it is said to be the server.
	if err := os.Rename(filepath.Join(dir, cs1), filepath.Join(dir, "original")); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(dir, cs1), os.DirFS(filepath.Join(dir, "original"))); err != nil {
		t.Fatal(err)
	}
	_, errs, code = varve(t, dir, "cs", "-r", cs1)
	if code != exitRefused || !strings.Contains(errs, "copy") {
		t.Skipf("the filesystem has no stable inodes: exit code %d, %q", code, errs)
	}
	if _, errs, code := varve(t, dir, "cs", "readmit", "-r", cs1); code != exitRefused || !strings.Contains(errs, "--force") {
		t.Errorf("readmit without --force: exit code %d, %q", code, errs)
	}
	if out := must(t, dir, "cs", "readmit", "-r", cs1, "--force"); !strings.Contains(out, "forgotten: moved") {
		t.Errorf("readmit printed %q", out)
	}
	if out := must(t, dir, "cs", "readmit", "-r", cs1); !strings.Contains(out, "nothing keeps cs1 out") {
		t.Errorf("readmit of a sound directory printed %q", out)
	}
	// The server starts, finds the bad block, and it is mended.
	devUp(t, dir)
	must(t, dir, append(c, "cs", "scrub", "cs1", "--now")...)
	waitFor(t, "the bad block to be found and mended", func() bool {
		var all []storeJSON
		if err := json.Unmarshal([]byte(must(t, dir, append(c, "cs", "stat", "cs1", "--json")...)), &all); err != nil {
			t.Fatal(err)
		}
		return all[0].Scrub.Found == 1 && all[0].Bad == 0
	})
	waitFor(t, "all replicas", func() bool { return wholeAgain(t, dir) })
	must(t, dir, "dev", "down", "--dir", "data")
	if out := must(t, dir, "cs", "check", "-r", cs1); !strings.Contains(out, "all are right") {
		t.Errorf("cs check of the mended server printed %q", out)
	}
}
