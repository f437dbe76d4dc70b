package main

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"time"

	"varve/internal/wire/msg"
	"varve/mds/history"
	"varve/mds/state"
)

// nodeJSON is one name of the tree as `journal replay --json` prints it.
type nodeJSON struct {
	Path   string `json:"path"`
	Ino    uint64 `json:"ino"`
	Type   string `json:"type"`
	Mode   string `json:"mode"` // octal
	Nlink  uint32 `json:"nlink"`
	UID    uint32 `json:"uid"`
	GID    uint32 `json:"gid"`
	Size   uint64 `json:"size"`
	Chunks uint32 `json:"chunks"`
	Mtime  string `json:"mtime"`
	Target string `json:"target,omitempty"`
}

func newNodeJSON(p string, n *state.Inode) nodeJSON {
	a := n.Attr()
	return nodeJSON{
		Path: p, Ino: uint64(n.Ino), Type: typeText(n.Type()), Mode: fmt.Sprintf("%04o", n.Perm()), Nlink: n.Nlink(), UID: n.UID, GID: n.GID,
		Size: a.Size, Chunks: chunksOf(n), Mtime: time.Unix(0, n.Mtime).UTC().Format(time.RFC3339Nano), Target: target(n),
	}
}

func chunksOf(n *state.Inode) uint32 {
	if n.IsRegular() {
		return n.Chunks()
	}
	return 0
}

func target(n *state.Inode) string {
	if n.Type() == msg.FileType_SYMLINK {
		return n.Target()
	}
	return ""
}

// printState prints the tree below p, counts and digest of s. at is the time of the last event, 0: not known.
func (a *app) printState(s *state.State, at int64, p string, countsOnly bool) error {
	root, err := history.Lookup(s, p)
	if err != nil {
		return err
	}
	p = cleanPath(p)
	w := bufio.NewWriterSize(a.out, 64<<10)
	if a.json {
		err = writeStateJSON(w, s, at, p, root, countsOnly)
	} else {
		err = a.writeState(w, s, at, p, root, countsOnly)
	}
	return errors.Join(err, w.Flush())
}

func (a *app) writeState(w io.Writer, s *state.State, at int64, p string, root *state.Inode, countsOnly bool) error {
	if !countsOnly {
		err := history.Walk(s, p, root, func(p string, n *state.Inode) error {
			name := p
			if !printable([]byte(name)) {
				name = fmt.Sprintf("%q", name)
			}
			if t := target(n); t != "" {
				name += " -> " + t
			}
			chunks := "-"
			if n.IsRegular() {
				chunks = count(uint64(n.Chunks()), "chunk")
			}
			_, err := fmt.Fprintf(w, "%-9s %04o %5d %5d %12s %11s  %s  %s\n", typeText(n.Type()), n.Perm(), n.UID, n.GID, a.size(n.Size), chunks,
				time.Unix(0, n.Mtime).Format("2006-01-02 15:04:05"), name)
			return err
		})
		if err != nil {
			return err
		}
		fmt.Fprintln(w)
	}
	c := s.Counts()
	d := s.Digest()
	when := "time not in this journal"
	if at != 0 {
		when = stamp(at)
	}
	fmt.Fprintf(w, "index     %d (%s)\n", s.Index(), when)
	fmt.Fprintf(w, "counts    %s, %s, %s: %d degraded, %d joining, %d to delete\n", count(uint64(c.Inodes), "inode"), count(uint64(c.Dentries), "name"),
		count(uint64(c.Chunks), "chunk"), c.Degraded, c.Joining, c.Garbage)
	fmt.Fprintf(w, "held      %s, %s, %s without a name\n", count(uint64(c.Sessions), "session"), count(uint64(c.Leases), "lease"), count(uint64(c.Orphans), "inode"))
	_, err := fmt.Fprintf(w, "digest    %s\n", hex.EncodeToString(d[:]))
	return err
}

// writeStateJSON writes one object; the tree is written as it is walked, so that a large one needs no memory.
func writeStateJSON(w io.Writer, s *state.State, at int64, p string, root *state.Inode, countsOnly bool) error {
	d := s.Digest()
	cluster, name := s.Cluster()
	head := struct {
		Cluster string         `json:"cluster"`
		Name    string         `json:"name"`
		Index   uint64         `json:"index"`
		Time    string         `json:"time,omitempty"`
		Digest  string         `json:"digest"`
		Counts  map[string]int `json:"counts"`
	}{cluster.String(), name, uint64(s.Index()), "", hex.EncodeToString(d[:]), countsMap(s.Counts())}
	if at != 0 {
		head.Time = time.Unix(0, at).UTC().Format(time.RFC3339Nano)
	}
	b, err := json.Marshal(head)
	if err != nil {
		return err
	}
	if countsOnly {
		_, err = fmt.Fprintf(w, "%s\n", b)
		return err
	}
	if _, err := fmt.Fprintf(w, "%s,\"tree\":[", b[:len(b)-1]); err != nil {
		return err
	}
	sep := "\n"
	err = history.Walk(s, p, root, func(p string, n *state.Inode) error {
		b, err := json.Marshal(newNodeJSON(p, n))
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(w, "%s%s", sep, b)
		sep = ",\n"
		return err
	})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(w, "\n]}")
	return err
}

func countsMap(c state.Counts) map[string]int {
	return map[string]int{
		"inodes": c.Inodes, "names": c.Dentries, "chunks": c.Chunks, "degraded": c.Degraded, "joining": c.Joining, "garbage": c.Garbage,
		"sessions": c.Sessions, "leases": c.Leases, "orphans": c.Orphans, "unsettled": c.Unsettled, "punching": c.Punching,
	}
}

// cleanPath returns an absolute path from the root of the filesystem.
func cleanPath(p string) string { return path.Clean("/" + p) }
