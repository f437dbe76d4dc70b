package trace

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"varve/internal/capture"
)

// struct blk_io_trace of the kernel's include/uapi/linux/blktrace_api.h, in the byte order of the machine that wrote it:
//
//	 0  4  magic 0x65617400 | version 7
//	 4  4  number of the event on its CPU
//	 8  8  nanoseconds
//	16  8  sector
//	24  4  bytes
//	28  4  action in the lower half, categories in the upper
//	32  4  pid
//	36  4  device: major << 20 | minor
//	40  4  cpu
//	44  2  error
//	46  2  length of what follows for this event
const (
	blkMagic     = 0x65617400
	blkVersion   = 7
	blkSize      = 48
	blkReadBit   = 1 << 16
	blkWriteBit  = 1 << 17
	blkFlushBit  = 1 << 18
	blkDiscard   = 1 << 29
	blkNotify    = 1 << 26
	blkTAQueue   = 1
	blkTAIssue   = 7
	blkTAComp    = 8
	blkCgroupBit = 1 << 8 // of the action: an id of a cgroup is in what follows
)

// blkOrder returns the byte order of a blktrace file, nil if it is none.
func blkOrder(head []byte) binary.ByteOrder {
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		if len(head) >= blkSize && order.Uint32(head) == blkMagic|blkVersion {
			return order
		}
	}
	return nil
}

func isBlktrace(head []byte) bool { return blkOrder(head) != nil }

// cpuFile is the name of what blktrace writes of one CPU.
var cpuFile = regexp.MustCompile(`^(.*\.blktrace\.)[0-9]+$`)

// readBlktrace reads the file of one CPU and those of the others beside it.
func (t *Trace) readBlktrace(path string) error {
	paths := []string{path}
	if m := cpuFile.FindStringSubmatch(filepath.Base(path)); m != nil {
		entries, err := os.ReadDir(filepath.Dir(path))
		if err != nil {
			return err
		}
		paths = nil
		for _, e := range entries {
			if n := cpuFile.FindStringSubmatch(e.Name()); n != nil && n[1] == m[1] {
				paths = append(paths, filepath.Join(filepath.Dir(path), e.Name()))
			}
		}
	}
	var events []event
	for _, p := range paths {
		err := func() error {
			f, err := os.Open(p)
			if err != nil {
				return err
			}
			defer f.Close()
			events, err = t.blkEvents(bufio.NewReaderSize(f, 1<<20), events)
			return err
		}()
		if err != nil {
			return fmt.Errorf("%s: %w", filepath.Base(p), err)
		}
	}
	t.Format = Blktrace
	return t.blocks(events)
}

// blkEvents appends the events of one file. A file may end in the middle of one, when blktrace was killed.
func (t *Trace) blkEvents(in *bufio.Reader, events []event) ([]event, error) {
	head, _ := in.Peek(blkSize)
	if len(head) == 0 {
		return events, nil // a CPU that did nothing
	}
	order := blkOrder(head)
	if order == nil {
		return nil, errors.New("no blktrace of version 7")
	}
	var b [blkSize]byte
	for at := 0; ; at++ {
		n, err := io.ReadFull(in, b[:])
		if err == io.EOF {
			return events, nil
		}
		if err == io.ErrUnexpectedEOF {
			t.Torn += int64(n)
			return events, nil
		}
		if err != nil {
			return nil, err
		}
		if m := order.Uint32(b[:]); m != blkMagic|blkVersion {
			return nil, fmt.Errorf("event %d: magic %#x, want %#x", at, m, blkMagic|blkVersion)
		}
		if n, err := in.Discard(int(order.Uint16(b[46:]))); err == io.EOF {
			t.Torn += int64(blkSize + n)
			return events, nil
		} else if err != nil {
			return nil, err
		}
		e, ok := blkEvent(order, b[:])
		if !ok {
			continue
		}
		if err := checkSector(e.sector); err != nil {
			return nil, fmt.Errorf("event %d: %w", at, err)
		}
		if len(events) >= maxEvents {
			return nil, fmt.Errorf("more than %d events", maxEvents)
		}
		events = append(events, e)
	}
}

// blkEvent decodes an event, false if it is none that counts.
func blkEvent(order binary.ByteOrder, b []byte) (event, bool) {
	action := order.Uint32(b[28:])
	if action&blkNotify != 0 {
		return event{}, false
	}
	e := event{
		at: time.Duration(order.Uint64(b[8:]) &^ (1 << 63)), device: order.Uint32(b[36:]), pid: order.Uint32(b[32:]), sector: order.Uint64(b[16:]), bytes: order.Uint32(b[24:]),
		errno: syscall.Errno(order.Uint16(b[44:])),
	}
	if e.at > maxTime {
		return event{}, false
	}
	switch action & 0xffff &^ blkCgroupBit {
	case blkTAQueue:
		e.act = actQueue
	case blkTAIssue:
		e.act = actIssue
	case blkTAComp:
		e.act = actComplete
	default:
		return event{}, false
	}
	switch {
	case action&blkDiscard != 0:
		e.kind = capture.Trim
	case e.bytes == 0 && action&blkFlushBit != 0:
		e.kind = capture.Fsync
	case action&blkWriteBit != 0 && e.bytes > 0:
		e.kind = capture.Write
	case action&blkReadBit != 0 && e.bytes > 0:
		e.kind = capture.Read
	default:
		return event{}, false
	}
	return e, true
}
