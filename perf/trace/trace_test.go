package trace

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"varve/internal/capture"
)

func load(t *testing.T, path string) *Trace {
	t.Helper()
	tr, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func file(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// kinds counts the operations of each kind, and the bytes of reads and writes.
func counts(tr *Trace) map[string]int64 {
	out := map[string]int64{}
	for _, k := range tr.Summary().Kinds {
		out[k.Name] = k.Ops
		if k.Bytes > 0 {
			out[k.Name+" bytes"] = k.Bytes
		}
	}
	return out
}

// TestFio3 reads what fio 3.33 wrote of a run of its own.
func TestFio3(t *testing.T) {
	tr := load(t, filepath.Join("testdata", "fio3.log"))
	var names []string
	for _, f := range tr.Files {
		names = append(names, fmt.Sprintf("%s %d", f.Path, f.Size))
	}
	if got := strings.Join(names, ", "); got != "one.img 28672, two.img 32768" {
		t.Errorf("files %s", got)
	}
	c := counts(tr)
	text, err := os.ReadFile(filepath.Join("testdata", "fio3.log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{"read", "write"} {
		if want := int64(bytes.Count(text, []byte(" "+k+" "))); c[k] != want || c[k+" bytes"] != want*4096 {
			t.Errorf("%s: %d of %d bytes, want %d", k, c[k], c[k+" bytes"], want)
		}
	}
	if c["fsync"] != int64(bytes.Count(text, []byte(" sync "))) || c["open"] != 2 || c["release"] != 2 || tr.Timed || tr.Format != Fio3 {
		t.Errorf("%v, %+v", c, tr)
	}
	if l := tr.Length(); l < 20*time.Millisecond || l > 10*time.Second {
		t.Errorf("length %v", l)
	}
}

func TestFio2(t *testing.T) {
	tr := load(t, file(t, "x", "fio version 2 iolog\n/d/a add\n/d/a open\n/d/a read 0 4096\n/d/a wait 1500\n/d/a write 8192 512\n/d/a wait 500 0\n/d/a datasync 0 0\n/d/a trim 0 65536\n/d/a close\n"))
	want := []capture.Record{
		{Kind: capture.Open, Inode: 1, Handle: 1, Arg: 2},
		{Kind: capture.Read, Inode: 1, Handle: 1, Size: 4096, Done: 4096},
		{Kind: capture.Write, Inode: 1, Handle: 1, Offset: 8192, Size: 512, Done: 512, Begin: 1500 * time.Microsecond},
		{Kind: capture.Fsync, Inode: 1, Handle: 1, Arg: 1, Begin: 2 * time.Millisecond},
		{Kind: capture.Trim, Inode: 1, Handle: 1, Size: 65536, Done: 65536, Begin: 2 * time.Millisecond},
		{Kind: capture.Release, Inode: 1, Handle: 1, Begin: 2 * time.Millisecond},
	}
	if !reflect.DeepEqual(tr.Ops, want) || len(tr.Files) != 1 || tr.Files[0].Path != "d/a" || tr.Files[0].Size != 4096 {
		t.Errorf("%+v\n%+v", tr.Ops, tr.Files)
	}
	for _, bad := range []string{"fio version 9 iolog\nx add\n", "fio version 2 iolog\na read x 1\n", "fio version 2 iolog\na read 1\n", "fio version 2 iolog\na fly 1 1\n",
		"fio version 3 iolog\nx a read 1 1\n", "fio version 2 iolog\n", "fio version 2 iolog\na wait 99999999999999999\n", "nonsense", ""} {
		if _, err := Load(file(t, "bad", bad)); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

// TestWriteFio: what is written is read as the same, and by fio itself.
func TestWriteFio(t *testing.T) {
	tr := load(t, filepath.Join("testdata", "fio3.log"))
	tr.Ops = append(tr.Ops, capture.Record{Kind: capture.Getattr, Inode: 1, Begin: tr.Ops[len(tr.Ops)-1].Begin})
	for _, version := range []int{2, 3} {
		var b bytes.Buffer
		dir := t.TempDir()
		for _, f := range tr.Files {
			if err := os.WriteFile(filepath.Join(dir, f.Path), make([]byte, 64<<10), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		left, err := tr.WriteFio(&b, version, dir)
		if err != nil || left != 5 { // two files opened and closed, which the log says itself, and the Getattr
			t.Fatalf("version %d: %v, %d left out", version, err, left)
		}
		path := file(t, "log", b.String())
		again := load(t, path)
		x, y := counts(tr), counts(again)
		delete(x, "getattr")
		if !reflect.DeepEqual(x, y) {
			t.Errorf("version %d: %v, then %v", version, x, y)
		}
		if d := tr.Length() - again.Length(); d < 0 || d > 5*time.Millisecond {
			t.Errorf("version %d: length %v, then %v", version, tr.Length(), again.Length())
		}
		fio, err := exec.LookPath("fio")
		if err != nil {
			t.Log("fio is not installed: it was not asked to read the log")
			continue
		}
		out, err := exec.Command(fio, "--name=replay", "--read_iolog="+path, "--ioengine=psync", "--replay_no_stall=1", "--output-format=json").Output()
		if err != nil {
			t.Fatalf("version %d: fio: %v\n%s", version, err, out)
		}
		var res struct {
			Jobs []struct {
				Read, Write struct {
					Total int64 `json:"total_ios"`
				}
			}
		}
		out = out[max(bytes.IndexByte(out, '{'), 0):]
		if err := json.Unmarshal(out, &res); err != nil || len(res.Jobs) != 1 || res.Jobs[0].Read.Total != x["read"] || res.Jobs[0].Write.Total != x["write"] {
			t.Errorf("version %d: fio did %+v (%v), want %v", version, res, err, x)
		}
	}
}

// TestCapture: a trace of any format is written as a capture and read again.
func TestCapture(t *testing.T) {
	tr := load(t, filepath.Join("testdata", "fio3.log"))
	var b bytes.Buffer
	if err := tr.Write(&b); err != nil {
		t.Fatal(err)
	}
	again := load(t, file(t, "c", b.String()))
	if !reflect.DeepEqual(tr.Ops, again.Ops) || !reflect.DeepEqual(tr.Files, again.Files) || again.Timed || again.Format != Capture || !again.Ended {
		t.Errorf("%+v", again)
	}
	cut := load(t, file(t, "cut", b.String()[:b.Len()-10]))
	if cut.Ended || cut.Torn == 0 || len(cut.Ops) != len(tr.Ops) {
		t.Errorf("cut off: %d operations, %+v", len(cut.Ops), cut.Summary())
	}
	var text, dump bytes.Buffer
	if err := cut.Summary().WriteText(&text); err != nil || !strings.Contains(text.String(), "cut off") || !strings.Contains(text.String(), "two.img") {
		t.Errorf("%v\n%s", err, &text)
	}
	if err := cut.Dump(&dump); err != nil || bytes.Count(dump.Bytes(), []byte("\n")) != len(tr.Ops) {
		t.Errorf("%v\n%s", err, &dump)
	}
}

// blkEncode makes a record of blktrace.
func blkEncode(order binary.ByteOrder, cpu, seq uint32, e event, categories uint32) []byte {
	b := make([]byte, blkSize)
	order.PutUint32(b, blkMagic|blkVersion)
	order.PutUint32(b[4:], seq)
	order.PutUint64(b[8:], uint64(e.at))
	order.PutUint64(b[16:], e.sector)
	order.PutUint32(b[24:], e.bytes)
	act := map[byte]uint32{actQueue: blkTAQueue | 1<<20, actIssue: blkTAIssue | 1<<22, actComplete: blkTAComp | 1<<23}[e.act]
	order.PutUint32(b[28:], act|categories)
	order.PutUint32(b[32:], e.pid)
	order.PutUint32(b[36:], e.device)
	order.PutUint32(b[40:], cpu)
	order.PutUint16(b[44:], uint16(e.errno))
	return b
}

const (
	sda = 8 << 20
	sdb = 8<<20 | 16
)

// blkSample is a trace in which requests are merged, completed in parts, out of order, fail and do not end.
func blkSample() (events []event, categories []uint32, want []capture.Record) {
	add := func(us int, act byte, dev uint32, cat uint32, sect uint64, bytes uint32, errno syscall.Errno) {
		events = append(events, event{at: time.Duration(us) * time.Microsecond, device: dev, pid: 77, sector: sect, bytes: bytes, act: act, errno: errno})
		categories = append(categories, cat)
	}
	op := func(kind capture.Kind, dev uint64, begin, took int, off, size int64, errno syscall.Errno) {
		want = append(want, capture.Record{Kind: kind, PID: 77, Inode: dev + 1, Handle: dev + 1, Begin: time.Duration(begin) * time.Microsecond, Took: time.Duration(took) * time.Microsecond,
			Offset: off, Size: size, Done: uint32(size), Errno: errno})
	}
	add(5, actQueue, sda, blkReadBit, 100, 4096, 0) // sda issues: what is queued does not count
	add(10, actIssue, sda, blkReadBit, 100, 4096, 0)
	add(20, actIssue, sda, blkWriteBit|1<<19, 2000, 8192, 0)
	add(50, actComplete, sda, blkWriteBit|1<<19, 2000, 4096, 0) // half of it
	add(60, actComplete, sda, blkReadBit, 100, 4096, 0)
	add(70, actComplete, sda, blkWriteBit|1<<19, 2008, 4096, 0)
	add(80, actIssue, sda, blkWriteBit|blkFlushBit, 0, 0, 0)
	add(95, actComplete, sda, blkWriteBit|blkFlushBit, 0, 0, 0)
	add(100, actIssue, sda, blkWriteBit|blkDiscard, 4096, 1<<20, 0)
	add(130, actComplete, sda, blkWriteBit|blkDiscard, 4096, 1<<20, 0)
	add(200, actQueue, sdb, blkReadBit, 0, 4096, 0) // sdb issues nothing, and completes two at once
	add(210, actQueue, sdb, blkReadBit, 8, 4096, 0)
	add(300, actComplete, sdb, blkReadBit, 0, 8192, 5)
	add(400, actIssue, sda, blkReadBit, 500, 4096, 0) // under way at the end
	op(capture.Read, sda, 10, 50, 51200, 4096, 0)
	op(capture.Write, sda, 20, 50, 1024000, 8192, 0)
	op(capture.Fsync, sda, 80, 15, 0, 0, 0)
	op(capture.Trim, sda, 100, 30, 2097152, 1<<20, 0)
	op(capture.Read, sdb, 200, 100, 0, 4096, 5)
	op(capture.Read, sdb, 210, 90, 4096, 4096, 5)
	return events, categories, want
}

// writeBlktrace writes the sample as blktrace does: a file a CPU.
func writeBlktrace(t *testing.T, dir string, order binary.ByteOrder) (path string, want []capture.Record) {
	t.Helper()
	events, categories, want := blkSample()
	var cpus [2]bytes.Buffer
	notify := make([]byte, blkSize+3) // names the process: no operation, and has a tail
	order.PutUint32(notify, blkMagic|blkVersion)
	order.PutUint32(notify[28:], blkNotify)
	order.PutUint16(notify[46:], 3)
	cpus[0].Write(notify)
	for i, e := range events {
		cpus[i%2].Write(blkEncode(order, uint32(i%2), uint32(i/2+1), e, categories[i]))
	}
	cpus[1].Write(notify[:20]) // blktrace was killed
	for i := range cpus {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("sda.blktrace.%d", i)), cpus[i].Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "sda.blktrace.0"), want
}

func TestBlktrace(t *testing.T) {
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		path, want := writeBlktrace(t, t.TempDir(), order)
		tr := load(t, path)
		if !reflect.DeepEqual(tr.Ops, want) {
			t.Errorf("%v:\n%+v\nwant\n%+v", order, tr.Ops, want)
		}
		if len(tr.Files) != 2 || tr.Files[0].Path != "8,0" || tr.Files[1].Path != "8,16" || tr.Files[0].Size != 4096*512+1<<20 || !tr.Timed || tr.Stats.LeftOut != 1 || tr.Torn != 20 {
			t.Errorf("%v: %+v", order, tr)
		}
	}
}

// TestBlkparse reads what blkparse 1.2.0 printed of the sample above, and what blkparse prints now, if it is installed.
func TestBlkparse(t *testing.T) {
	path, want := writeBlktrace(t, t.TempDir(), binary.LittleEndian)
	texts := map[string]string{"recorded": filepath.Join("testdata", "blkparse.txt")}
	if program, err := exec.LookPath("blkparse"); err == nil {
		cmd := exec.Command(program, "-q", "-i", "sda")
		cmd.Dir = filepath.Dir(path)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("blkparse: %v", err)
		}
		texts["now"] = file(t, "now", string(out))
	}
	for name, text := range texts {
		tr := load(t, text)
		if tr.Format != Blkparse || len(tr.Ops) != len(want) {
			t.Fatalf("%s: %s with %d operations, want %d: %+v", name, tr.Format, len(tr.Ops), len(want), tr.Ops)
		}
		for i := range want {
			w := want[i]
			w.Begin -= want[0].Begin - tr.Ops[0].Begin // blkparse counts from the first event
			if tr.Ops[i] != w {
				t.Errorf("%s: %+v, want %+v", name, tr.Ops[i], w)
			}
		}
	}
}

func FuzzLoad(f *testing.F) {
	log, err := os.ReadFile(filepath.Join("testdata", "fio3.log"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(log)
	text, err := os.ReadFile(filepath.Join("testdata", "blkparse.txt"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	events, categories, _ := blkSample()
	var b []byte
	for i, e := range events {
		b = append(b, blkEncode(binary.LittleEndian, 0, uint32(i), e, categories[i])...)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "x")
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		tr, err := Load(path)
		if err != nil {
			return
		}
		if len(tr.Ops) == 0 || tr.Length() < 0 {
			t.Errorf("%d operations in %v", len(tr.Ops), tr.Length())
		}
		var out bytes.Buffer
		if err := tr.Write(&out); err != nil { // names too long for a capture
			return
		}
		if err := os.WriteFile(path, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		again, err := Load(path)
		if err != nil || len(again.Ops) != len(tr.Ops) {
			t.Errorf("written and read again: %v", err)
		}
	})
}
