package trace

import (
	"bufio"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"varve/internal/capture"
)

// blkLine is a line of blkparse in its default format: device, CPU, number, seconds, pid, action, RWBS, and what the action has.
var blkLine = regexp.MustCompile(`^\s*(\d+),(\d+)\s+\d+\s+\d+\s+(\d+)\.(\d{9})\s+(\d+)\s+([A-Z]{1,2})\s+([A-Z]+)(?:\s+(.*))?$`)

func isBlkparse(head []byte) bool {
	line, _, _ := strings.Cut(string(head), "\n")
	w := strings.Fields(line)
	return len(w) >= 5 && regexp.MustCompile(`^\d+,\d+$`).MatchString(w[0]) && regexp.MustCompile(`^\d+\.\d{9}$`).MatchString(w[3])
}

// readBlkparse reads the text; lines of other forms, as those of the summary at its end, are passed over.
func (t *Trace) readBlkparse(in io.Reader) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxLine)
	var events []event
	for n := 1; lines.Scan(); n++ {
		m := blkLine.FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		e, ok, err := parseBlkLine(m[1:])
		if err != nil {
			return fmt.Errorf("line %d: %q: %w", n, lines.Text(), err)
		}
		if !ok {
			continue
		}
		if len(events) >= maxEvents {
			return fmt.Errorf("more than %d events", maxEvents)
		}
		events = append(events, e)
	}
	if err := lines.Err(); err != nil {
		return err
	}
	t.Format = Blkparse
	return t.blocks(events)
}

// parseBlkLine takes the fields of a line, false if it is of no action that counts.
func parseBlkLine(f []string) (e event, ok bool, err error) {
	number := func(s string, bits int) (v uint64) {
		if err == nil {
			v, err = strconv.ParseUint(s, 10, bits)
		}
		return v
	}
	e.device = uint32(number(f[0], 12)<<20 | number(f[1], 20))
	seconds := number(f[2], 32)
	e.at = time.Duration(seconds)*time.Second + time.Duration(number(f[3], 63))
	e.pid = uint32(number(f[4], 32))
	if err != nil || e.at > maxTime {
		return e, false, err
	}
	switch f[5] {
	case "Q", "D", "C":
		e.act = f[5][0]
	default:
		return e, false, nil
	}
	w := strings.Fields(f[7])
	if len(w) >= 3 && w[1] == "+" { // SECTOR + SECTORS [what it is of]
		e.sector = number(w[0], 63)
		e.bytes = uint32(number(w[2], 22) * sector)
	}
	if err == nil {
		err = checkSector(e.sector)
	}
	if e.act == actComplete && len(w) > 0 {
		if v, aerr := strconv.Atoi(strings.Trim(w[len(w)-1], "[]")); aerr == nil {
			e.errno = syscall.Errno(max(v, -v) & 0xffff)
		}
	}
	switch rwbs := f[6]; {
	case strings.Contains(rwbs, "D"):
		e.kind = capture.Trim
	case e.bytes == 0 && strings.HasPrefix(rwbs, "F"):
		e.kind = capture.Fsync
	case e.bytes == 0:
		return e, false, err
	case strings.Contains(rwbs, "W"):
		e.kind = capture.Write
	case strings.Contains(rwbs, "R"):
		e.kind = capture.Read
	default:
		return e, false, err
	}
	return e, err == nil, err
}
