package trace

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/capture"
)

// maxLine bounds a line of a text.
const maxLine = 64 << 10

// fioKinds are the actions of an iolog that have an offset and a length.
var fioKinds = map[string]capture.Kind{
	"read": capture.Read, "write": capture.Write, "sync": capture.Fsync, "datasync": capture.Fsync, "trim": capture.Trim,
}

// fioLog is an iolog that is being read.
type fioLog struct {
	t       *Trace
	version int
	now     time.Duration
	inodes  map[string]uint64
	handles map[string]uint64 // of the files that are open
	last    uint64            // handle
}

// readFio reads what fio --write_iolog makes: version 3 since fio 3.31, version 2 before. Times are microseconds.
func (t *Trace) readFio(in io.Reader) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxLine)
	lines.Scan()
	l := fioLog{t: t, inodes: map[string]uint64{}, handles: map[string]uint64{}}
	switch strings.TrimSpace(lines.Text()) {
	case "fio version 2 iolog":
		l.version, t.Format = 2, Fio2
	case "fio version 3 iolog":
		l.version, t.Format = 3, Fio3
	default:
		return fmt.Errorf("line 1: %q: want an iolog of version 2 or 3", lines.Text())
	}
	for n := 2; lines.Scan(); n++ {
		if err := l.line(strings.Fields(lines.Text())); err != nil {
			return fmt.Errorf("line %d: %q: %w", n, lines.Text(), err)
		}
	}
	return lines.Err()
}

// line takes one line: [time] file action [offset length].
func (l *fioLog) line(w []string) error {
	if len(w) == 0 {
		return nil
	}
	if l.version == 3 {
		us, err := strconv.ParseInt(w[0], 10, 63)
		if err != nil || us > int64(maxTime/time.Microsecond) {
			return fmt.Errorf("time %q: want microseconds", w[0])
		}
		l.now, w = time.Duration(us)*time.Microsecond, w[1:]
	}
	if len(w) < 2 {
		return fmt.Errorf("%d words, want a file and an action", len(w))
	}
	file, action := w[0], w[1]
	var numbers [2]int64
	for i, s := range w[2:min(len(w), 4)] {
		v, err := strconv.ParseInt(s, 10, 63)
		if err != nil || v < 0 || v >= 1<<62 {
			return fmt.Errorf("%q: want a number of bytes", s)
		}
		numbers[i] = v
	}
	if action == "wait" && l.version == 2 {
		if numbers[0] > int64(maxTime/time.Microsecond) {
			return fmt.Errorf("a wait of %d microseconds", numbers[0])
		}
		if l.now += time.Duration(numbers[0]) * time.Microsecond; l.now > maxTime {
			return fmt.Errorf("the waits are more than %v", maxTime)
		}
		return nil
	}
	x := capture.Record{Begin: l.now, Inode: l.inode(file), Offset: numbers[0], Size: numbers[1]}
	switch action {
	case "add":
		return nil
	case "open":
		l.last++
		l.handles[file] = l.last
		x.Kind, x.Arg = capture.Open, unix.O_RDWR
	case "close":
		x.Kind = capture.Release
	default:
		kind, ok := fioKinds[action]
		if !ok {
			return fmt.Errorf("action %q is not known", action)
		}
		x.Kind = kind
		if kind == capture.Fsync {
			x.Offset, x.Size = 0, 0
			if action == "datasync" {
				x.Arg = 1
			}
		} else if len(w) != 4 {
			return fmt.Errorf("%d words, want an offset and a length", len(w))
		}
		x.Done = uint32(min(x.Size, 1<<32-1))
		l.grow(x)
	}
	x.Handle = l.handles[file]
	if x.Kind == capture.Release {
		delete(l.handles, file)
	}
	return l.t.add(x)
}

// maxTime bounds what a trace may say of time.
const maxTime = 10 * 365 * 24 * time.Hour

func (l *fioLog) inode(file string) uint64 {
	ino, ok := l.inodes[file]
	if !ok {
		ino = uint64(len(l.inodes) + 1)
		l.inodes[file] = ino
		name := strings.TrimPrefix(path.Clean("/"+file), "/")
		l.t.Files = append(l.t.Files, capture.File{Inode: ino, Path: cmp.Or(name, "file")})
	}
	return ino
}

// grow makes a file as large as what is read of it.
func (l *fioLog) grow(x capture.Record) {
	if x.Kind == capture.Read {
		f := &l.t.Files[x.Inode-1]
		f.Size = max(f.Size, x.Offset+x.Size)
	}
}

// WriteFio writes the operations on data as an iolog, of version 2 or 3, with dir before the names of files. What an iolog has no word for is left
// out, and counted.
func (t *Trace) WriteFio(to io.Writer, version int, dir string) (leftOut int, err error) {
	if version != 2 && version != 3 {
		return 0, fmt.Errorf("iolog of version %d: want 2 or 3", version)
	}
	w := bufio.NewWriter(to)
	fmt.Fprintf(w, "fio version %d iolog\n", version)
	names := map[uint64]string{}
	for _, f := range t.Files {
		names[f.Inode] = path.Join(dir, f.Path)
		if strings.ContainsAny(names[f.Inode], " \t\n") {
			return 0, fmt.Errorf("file %q: an iolog has no names with spaces", f.Path)
		}
	}
	start, waited := t.Ops[0].Begin, time.Duration(0)
	say := func(at time.Duration, format string, args ...any) {
		if version == 3 {
			fmt.Fprintf(w, "%d ", at.Microseconds())
		}
		fmt.Fprintf(w, format+"\n", args...)
	}
	open := map[uint64]bool{}
	begin := func(ino uint64, at time.Duration) {
		if _, seen := open[ino]; !seen {
			say(at, "%s add", names[ino])
		}
		if !open[ino] {
			say(at, "%s open", names[ino])
			open[ino] = true
		}
	}
	for i := range t.Ops {
		x := &t.Ops[i]
		if names[x.Inode] == "" && exported(x.Kind) {
			names[x.Inode] = path.Join(dir, fmt.Sprintf("inode-%d", x.Inode))
		}
		at := x.Begin - start
		if !exported(x.Kind) || x.Errno != 0 {
			leftOut++
			continue
		}
		begin(x.Inode, at)
		if gap := at - waited; version == 2 && gap >= 100*time.Microsecond { // fio passes over shorter ones
			say(at, "%s wait %d 0", names[x.Inode], gap.Microseconds())
			waited = at
		}
		action := x.Kind.String()
		if x.Kind == capture.Fsync {
			action = "sync"
			if x.Arg&1 != 0 {
				action = "datasync"
			}
		}
		say(at, "%s %s %d %d", names[x.Inode], action, x.Offset, x.Size)
	}
	end := t.Ops[len(t.Ops)-1].Begin - start
	for _, f := range t.Ops { // in the order of their first operation
		if open[f.Inode] {
			say(end, "%s close", names[f.Inode])
			open[f.Inode] = false
		}
	}
	return leftOut, w.Flush()
}

// exported reports whether an iolog has a word for such an operation. It opens and closes files of its own.
func exported(k capture.Kind) bool {
	return k == capture.Read || k == capture.Write || k == capture.Fsync || k == capture.Trim
}
