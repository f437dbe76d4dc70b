package traffic

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"varve/internal/wire/msg"
)

// Snapshot is what is done on a host, and what was seen. Classify, Shape, Guard and Watch are "on", or "off: " and why; with more after it where only some
// interfaces have it.
type Snapshot struct {
	PID        int         `json:"pid,omitempty"` // the owner
	Since      time.Time   `json:"since"`         // when that became owner, and counting began
	At         time.Time   `json:"at"`
	Classify   string      `json:"classify"`
	Shape      string      `json:"shape"`
	Guard      string      `json:"guard"`
	Watch      string      `json:"watch"`
	Interfaces []Interface `json:"interfaces,omitempty"`
	Dropped    Traffic     `json:"dropped"`
	Strangers  []Stranger  `json:"strangers,omitempty"` // whom the guard has dropped
	Peers      []Peer      `json:"peers,omitempty"`
}

// Traffic is frames and their bytes, Ethernet headers included.
type Traffic struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Interface is one that something is done on.
type Interface struct {
	Name    string  `json:"name"`
	How     string  `json:"how,omitempty"`   // tcx or clsact, how frames are told apart
	Guard   string  `json:"guard,omitempty"` // driver or generic, where they are dropped
	LinkBit uint64  `json:"link_bits_per_second,omitempty"`
	Fault   string  `json:"fault,omitempty"`
	Counts  []Count `json:"counts,omitempty"`  // all frames
	ByPeer  []Count `json:"by_peer,omitempty"` // of and to varve's ports
	Queues  []Queue `json:"queues,omitempty"`
}

// Count is the traffic of a class in one direction.
type Count struct {
	Peer  string `json:"peer,omitempty"`
	Class string `json:"class"`
	Out   bool   `json:"out"`
	Traffic
}

// Queue is what a class has sent through the queues of an interface.
type Queue struct {
	Class string `json:"class"`
	Bytes uint64 `json:"bytes"`
	Drops uint64 `json:"drops"`
}

// Stranger is who was dropped.
type Stranger struct {
	Addr string `json:"addr"`
	Traffic
}

// Peer is how the connections with another host are.
type Peer struct {
	Addr        string `json:"addr"`
	Connections uint64 `json:"connections"`
	LastUS      int64  `json:"rtt_us"`
	MeanUS      int64  `json:"mean_rtt_us"`
	MinUS       int64  `json:"min_rtt_us"`
	Retransmits uint64 `json:"retransmits"`
}

// Off is a Snapshot in which nothing is done.
func Off(why string) *Snapshot {
	off := "off: " + why
	return &Snapshot{At: time.Now(), Classify: off, Shape: off, Guard: off, Watch: off}
}

// does reports whether anything is done.
func (s *Snapshot) does() bool {
	for _, word := range []string{s.Classify, s.Shape, s.Guard, s.Watch} {
		if strings.HasPrefix(word, "on") {
			return true
		}
	}
	return false
}

// stateFile is what the owner writes.
const stateFile = "stat.json"

// fresh is how old a Snapshot may be.
const fresh = 10 * time.Second

// Dir is the directory of the network namespace of this process.
func Dir() (string, error) {
	var st syscall.Stat_t
	if err := syscall.Stat("/proc/self/ns/net", &st); err != nil {
		return "", fmt.Errorf("network namespace: %w", err)
	}
	return filepath.Join("/run/varve/net", fmt.Sprint(st.Ino)), nil
}

// Read returns what the owner in a directory has written, or a Snapshot in which all is off if there is none.
func Read(dir string) *Snapshot {
	b, err := os.ReadFile(filepath.Join(dir, stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return Off("no daemon of this host does it")
	}
	s := new(Snapshot)
	if err == nil {
		err = json.Unmarshal(b, s)
	}
	if err != nil {
		return Off(err.Error())
	}
	if ownerless(dir) {
		return Off(fmt.Sprintf("the daemon that did it (process %d) has ended, and there is no other", s.PID))
	}
	if age := time.Since(s.At); age > fresh {
		return Off(fmt.Sprintf("the daemon that did it (process %d) has not been heard of for %v", s.PID, age.Round(time.Second)))
	}
	return s
}

// ownerless reports whether it is certain that no process owns what is done.
func ownerless(dir string) bool {
	f, err := os.Open(filepath.Join(dir, lockFile))
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	defer f.Close()
	return syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB) == nil // for a moment; who wants to own it tries again
}

// write puts it in place of the last one. The directory is a tmpfs, and nothing of it outlives the host.
func (s *Snapshot) write(dir string) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, "."+stateFile)
	if err := os.WriteFile(tmp, b, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, stateFile))
}

// Bounds of what servers tell the leader.
const (
	maxReportCounts = 256
	maxReportPeers  = 64
)

// Report is what a server tells the leader of it.
func (s *Snapshot) Report() *msg.NetReport {
	r := &msg.NetReport{Classify: s.Classify, Shape: s.Shape, Guard: s.Guard, Watch: s.Watch, DroppedPackets: s.Dropped.Packets, DroppedBytes: s.Dropped.Bytes}
	for _, i := range s.Interfaces {
		for _, c := range i.Counts {
			if len(r.Counts) < maxReportCounts {
				r.Counts = append(r.Counts, &msg.NetCount{Interface: i.Name, Class: c.Class, Out: c.Out, Packets: c.Packets, Bytes: c.Bytes})
			}
		}
	}
	for _, p := range s.Peers[:min(len(s.Peers), maxReportPeers)] {
		r.Peers = append(r.Peers, &msg.NetPeer{Peer: p.Addr, Connections: p.Connections, RttUs: uint32(p.LastUS), MinRttUs: uint32(p.MinUS), Retransmits: p.Retransmits})
	}
	return r
}

func sortCounts(c []Count) {
	rank := func(name string) int { return slices.Index(ClassNames, name) }
	slices.SortFunc(c, func(a, b Count) int {
		if n := strings.Compare(a.Peer, b.Peer); n != 0 {
			return n
		}
		if n := rank(a.Class) - rank(b.Class); n != 0 {
			return n
		}
		if a.Out != b.Out && b.Out {
			return -1
		}
		return 1
	})
}
