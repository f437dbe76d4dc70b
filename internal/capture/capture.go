package capture

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"
)

// Wanted says which records of a stream are kept.
type Wanted struct {
	Glob string // of paths below the mount, as package path has it, or of their last part if it has no slash; "" for all
}

// Check returns an error if the pattern makes no sense.
func (w Wanted) Check() error {
	if _, err := path.Match(w.Glob, ""); err != nil {
		return fmt.Errorf("pattern %q: %w", w.Glob, err)
	}
	return nil
}

func (w Wanted) keeps(p string) bool {
	glob := strings.TrimPrefix(w.Glob, "/")
	if !strings.Contains(glob, "/") {
		p = path.Base(p)
	}
	ok, err := path.Match(glob, p)
	return ok && err == nil
}

// Copy writes what a stream brings to w until it ends, and closes w. Operations of this process itself, which looks for names, are left out without
// being counted. What has come is written before more is waited for, so a process that is killed loses little. If the stream breaks off, the file is closed in order all the same and the error is returned with what it has.
func Copy(w *Writer, s *Stream, n *Names, want Wanted) (Stats, error) {
	self := uint32(os.Getpid())
	var st Stats
	var failed error
	for {
		if !s.ready() {
			if err := w.Flush(); err != nil { // the disk is full: the rest of the stream is of no use
				return st, err
			}
		}
		r, err := s.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			failed = err
			break
		}
		if r.PID == self {
			continue
		}
		keep, err := noteFile(w, n, want, &r)
		if err == nil && keep {
			err = w.Add(&r)
		} else if err == nil {
			st.LeftOut++
		}
		if err != nil {
			return st, err
		}
	}
	st.Dropped, st.Length = s.Dropped, time.Since(s.Started)
	st, err := w.Close(st)
	return st, errors.Join(failed, err)
}

// noteFile notes the name of a record's file, and says whether the record is wanted.
func noteFile(w *Writer, n *Names, want Wanted, r *Record) (bool, error) {
	if r.Handle == 0 && r.Kind != Truncate || r.Kind == Opendir || r.Kind == Readdir || r.Kind == Releasedir {
		return want.Glob == "", nil // of no open file: nothing to find
	}
	f, isNew, ok := n.Find(r.Inode, r.PID)
	if !ok {
		return want.Glob == "", nil
	}
	if want.Glob != "" && !want.keeps(f.Path) {
		return false, nil
	}
	if isNew {
		return true, w.AddFile(f)
	}
	return true, nil
}
