package raftlog

import "github.com/hashicorp/raft"

// ring keeps the newest entries in memory, one index after the other, up to recentBytes of them.
type ring struct {
	first uint64
	logs  []*raft.Log
	bytes int
}

func (r *ring) add(e *raft.Log) {
	if len(r.logs) > 0 && e.Index != r.first+uint64(len(r.logs)) {
		*r = ring{}
	}
	if len(r.logs) == 0 {
		r.first = e.Index
	}
	c := *e // the caller's may be reused
	r.logs = append(r.logs, &c)
	r.bytes += recordSize(e)
	if r.bytes <= recentBytes+recentBytes/4 {
		return
	}
	n, bytes := 0, r.bytes
	for n < len(r.logs)-1 && bytes > recentBytes {
		bytes -= recordSize(r.logs[n])
		n++
	}
	if n > 0 {
		r.drop(r.first + uint64(n) - 1)
	}
}

func (r *ring) get(index uint64) *raft.Log {
	if index < r.first || index-r.first >= uint64(len(r.logs)) {
		return nil
	}
	return r.logs[index-r.first]
}

// cut forgets the entries above index.
func (r *ring) cut(index uint64) {
	if len(r.logs) == 0 || index < r.first {
		*r = ring{}
		return
	}
	for uint64(len(r.logs)) > index-r.first+1 {
		last := len(r.logs) - 1
		r.bytes -= recordSize(r.logs[last])
		r.logs[last] = nil
		r.logs = r.logs[:last]
	}
}

// drop forgets the entries up to index.
func (r *ring) drop(index uint64) {
	if len(r.logs) == 0 || index < r.first {
		return
	}
	n := min(int(index-r.first)+1, len(r.logs))
	for _, e := range r.logs[:n] {
		r.bytes -= recordSize(e)
	}
	r.logs = append(make([]*raft.Log, 0, max(len(r.logs), 64)), r.logs[n:]...)
	r.first += uint64(n)
}
