package main

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"

	"varve/internal/id"
	"varve/internal/readcache"
	"varve/internal/traffic"
	"varve/internal/wire/msg"

	"github.com/spf13/cobra"
)

// statusJSON is what `stat --json` prints.
type statusJSON struct {
	Name         string         `json:"name"`
	UUID         string         `json:"uuid"`
	Health       string         `json:"health"` // HEALTHY, DEGRADED, UNDER-MIN or NO-LEADER
	Reasons      []string       `json:"reasons,omitempty"`
	Auth         string         `json:"auth"` // tls, or none
	Leader       string         `json:"leader"`
	LeadingMS    int64          `json:"leading_ms"` // since when the leader leads, if it has answered
	Answering    string         `json:"answering"`
	Term         uint64         `json:"term"`
	Index        uint64         `json:"index"`
	Checkpoint   uint64         `json:"checkpoint"`
	Digest       string         `json:"digest,omitempty"`
	JournalBytes uint64         `json:"journal_bytes"`
	Total        uint64         `json:"total_bytes"`
	Free         uint64         `json:"free_bytes"`
	Inodes       uint64         `json:"inodes"`
	Chunks       uint64         `json:"chunks"`
	Degraded     uint64         `json:"degraded"`
	UnderMin     uint64         `json:"under_min"`
	Joining      uint64         `json:"joining"`
	Garbage      uint64         `json:"garbage"`
	Metas        []metaJSON     `json:"mds"`
	Servers      []serverJSON   `json:"cs"`
	Sessions     []*sessionJSON `json:"sessions"`
	Repair       *repairJSON    `json:"repair,omitempty"` // as the leader has it
	// ReadCaches are those of mounts of the cluster on this host, by mount point.
	ReadCaches map[string]*readcache.Stats `json:"read_caches,omitempty"`
	// Network is what is done about the traffic of this host, see varve net.
	Network *traffic.Snapshot `json:"network,omitempty"`

	ledBy bool // the leader itself has answered; only it knows how chunk servers and sessions are
}

type metaJSON struct {
	ID      uint32 `json:"id"`
	Addr    string `json:"addr"`
	State   string `json:"state"`
	Applied uint64 `json:"applied"`
	Voter   bool   `json:"voter"`
	Disk    string `json:"disk,omitempty"` // low or full
	Free    uint64 `json:"disk_free_bytes,omitempty"`
}

type serverJSON struct {
	ID        uint32 `json:"id"`
	Addr      string `json:"addr"`
	Host      string `json:"host"`
	Tier      uint32 `json:"tier"`
	State     string `json:"state"`
	Total     uint64 `json:"total_bytes"`
	Free      uint64 `json:"free_bytes"`
	Chunks    uint64 `json:"chunks"`
	HeardMS   int64  `json:"heard_ms"`
	LatencyUS uint32 `json:"latency_us"`
	Memory    uint64 `json:"memory_bytes"`
	Resident  uint64 `json:"resident_bytes"`
	DataPath  string `json:"data_path,omitempty"`
	Allocated uint64 `json:"allocated_bytes"` // of the chunks
	Reserved  uint64 `json:"reserved_bytes"`  // kept free
	BadBlocks uint64 `json:"bad_blocks"`      // in quarantine
	Scrubbed  string `json:"scrubbed,omitempty"`
	Scrub     uint32 `json:"scrub_permille"`
	Reason    string `json:"reason,omitempty"` // why its disk failed
	Mode      string `json:"mode,omitempty"`   // draining, standby, removing or drained; none: it takes new data
	Slow      string `json:"slow,omitempty"`   // why it gets no new data and few reads
	ModeSince string `json:"mode_since,omitempty"`
	ModeUntil string `json:"mode_until,omitempty"` // when standby ends
	Left      uint64 `json:"left_bytes,omitempty"` // to be moved away, of one that is drained or removed
	LeftOf    uint64 `json:"left_of_bytes,omitempty"`
	LeftChunk uint64 `json:"left_chunks,omitempty"`
	Going     uint64 `json:"going_bytes"` // of chunks that it is still to delete
	GuestP99  uint32 `json:"guest_p99_us"`
	Waiting   uint32 `json:"guests_waiting"`
	Rack      string `json:"rack,omitempty"`

	Journal *msg.SSDJournal `json:"journal,omitempty"` // the write journal on an SSD
	Planes  string          `json:"planes,omitempty"`  // its addresses by kind of traffic, if it has several
	Net     *netJSON        `json:"net,omitempty"`     // what is done about the traffic of its host, and was counted
}

type sessionJSON struct {
	ID        uint64     `json:"id"`
	Host      string     `json:"host"`
	Mount     string     `json:"mount"`
	Files     uint64     `json:"files"`
	RenewedMS int64      `json:"renewed_ms"`
	Connected bool       `json:"connected"`
	Local     *localJSON `json:"local,omitempty"` // what was read around the network
}

type localJSON struct {
	Servers   uint32 `json:"servers"` // chunk servers on the mount's host that let it
	Chunks    uint32 `json:"chunks"`
	Reads     uint64 `json:"reads"`
	Bytes     uint64 `json:"bytes"`
	Fallbacks uint64 `json:"fallbacks"`
	Damaged   uint64 `json:"damaged"`
}

// States of servers as the metadata servers name them.
const (
	stateLive        = "live"
	stateUnreachable = "unreachable"
	stateUnheard     = "unheard" // by a new leader, so far
	stateRetired     = "retired"
	stateFailed      = "failed" // its disk is out of service
)

func newStatusJSON(st *msg.StatusReply) *statusJSON {
	s := &statusJSON{
		Name: st.Name, UUID: clusterString(st.Cluster), Auth: "none", Leader: st.Leader, LeadingMS: st.LeadingMs,
		Term: st.Term, Index: st.Index, Checkpoint: st.Checkpoint, Digest: hex.EncodeToString(st.Digest), JournalBytes: st.JournalBytes,
		Total: st.Total, Free: st.Free, Inodes: st.Inodes, Chunks: st.Chunks, Degraded: st.Degraded, UnderMin: st.UnderMin,
		Joining: st.Joining, Garbage: st.Garbage, Answering: id.MetaID(st.Answering).String(),
		Metas: []metaJSON{}, Servers: []serverJSON{}, Sessions: []*sessionJSON{},
	}
	s.ledBy = serves(st)
	for _, m := range st.Metas {
		s.Metas = append(s.Metas, metaJSON{m.Server, m.Addr, m.State, m.Applied, m.Voter, m.Disk, m.DiskFree})
	}
	for _, c := range st.Servers {
		s.Servers = append(s.Servers, serverJSON{c.Server, c.Addr, c.Host, c.Tier, c.State, c.Total, c.Free, c.Chunks, c.HeardMs, c.LatencyUs,
			c.Memory, c.Resident, c.DataPath, c.Allocated, c.Reserved, c.BadBlocks, isoTime(c.Scrubbed), c.ScrubPermille, c.Reason,
			c.Mode, c.Slow, isoTime(c.ModeSince), isoTime(c.ModeUntil), c.Left, c.LeftMost, c.LeftChunks, c.Going, c.GuestP99Us, c.Waiting, c.Rack, c.Journal, c.Planes, newNetJSON(c.Net)})
	}
	for _, c := range st.Sessions {
		one := &sessionJSON{c.Session, c.Host, c.Mount, c.Files, c.RenewedMs, c.Connected, nil}
		if n := c.Local; n != nil {
			one.Local = &localJSON{n.Servers, n.Chunks, n.Reads, n.Bytes, n.Fallbacks, n.Damaged}
		}
		s.Sessions = append(s.Sessions, one)
	}
	s.Repair = newRepairJSON(st.Repair)
	s.Health, s.Reasons = health(s)
	return s
}

func clusterString(b []byte) string {
	var c id.Cluster
	if len(b) != len(c) {
		return ""
	}
	copy(c[:], b)
	return c.String()
}

// health says in one word how the cluster is, and why.
func health(s *statusJSON) (word string, reasons []string) {
	word = "HEALTHY"
	worse := func(w, format string, args ...any) {
		reasons = append(reasons, fmt.Sprintf(format, args...))
		if word == "HEALTHY" || w != "DEGRADED" {
			word = w
		}
	}
	unheard := 0
	for _, m := range s.Metas {
		switch {
		case m.State == stateUnreachable:
			worse("DEGRADED", "metadata server %s (%s) is unreachable", id.MetaID(m.ID), m.Addr)
		case m.State == stateUnheard:
			unheard++
		}
		if m.Disk == "full" {
			worse("DEGRADED", "the disk of metadata server %s (%s) is full: it takes no more changes; make room there", id.MetaID(m.ID), m.Addr)
		} else if m.Disk != "" {
			worse("DEGRADED", "the disk of metadata server %s (%s) is nearly full; make room there", id.MetaID(m.ID), m.Addr)
		}
	}
	for _, c := range s.Servers {
		switch {
		case !s.ledBy, c.State == stateLive, c.State == stateRetired:
		case c.State == stateUnheard:
			unheard++
		case c.State == stateFailed:
			worse("DEGRADED", "the disk of chunk server %s (%s) failed and is out of service: make a new server on another disk and remove this one (%s)",
				id.ServerID(c.ID), c.Addr, c.Reason)
		case c.Mode == "standby":
			end := ""
			if c.ModeUntil != "" {
				end = " until " + c.ModeUntil
			}
			reasons = append(reasons, fmt.Sprintf("chunk server %s (%s) is %s, on standby%s: repair waits for it; varve active ends that", id.ServerID(c.ID), c.Addr, c.State, end))
		default:
			worse("DEGRADED", "chunk server %s (%s) is %s", id.ServerID(c.ID), c.Addr, c.State)
		}
		if s.ledBy && c.Slow != "" && c.State == stateLive {
			worse("DEGRADED", "chunk server %s (%s) is slow, and gets no new data and few reads: %s", id.ServerID(c.ID), c.Addr, c.Slow)
		}
		if s.ledBy && c.BadBlocks > 0 && c.State != stateRetired {
			worse("DEGRADED", "the disk of chunk server %s (%s) has %s, in quarantine until they are mended: varve cs stat cs%d", id.ServerID(c.ID), c.Addr,
				count(c.BadBlocks, "bad block"), c.ID)
		}
	}
	if unheard > 0 { // no reason to call it degraded
		reasons = append(reasons, fmt.Sprintf("%s not heard yet by the leader, which leads for %v", count(uint64(unheard), "server"),
			(time.Duration(s.LeadingMS)*time.Millisecond).Round(100*time.Millisecond)))
	}
	if s.Degraded > 0 || s.Joining > 0 {
		worse("DEGRADED", "%s short of replicas, %s being rebuilt", count(s.Degraded, "chunk"), count(s.Joining, "replica"))
	}
	if s.UnderMin > 0 {
		worse("UNDER-MIN", "%s below the minimum of replicas: writes to them wait", count(s.UnderMin, "chunk"))
	}
	switch {
	case s.Leader == "":
		worse("NO-LEADER", "no leader among the metadata servers: changes wait")
	case !s.ledBy:
		worse("NO-LEADER", "the leader %s does not answer: changes wait, and how the chunk servers are is not known", s.Leader)
	}
	return word, reasons
}

func (a *app) statCommand() *cobra.Command {
	return &cobra.Command{
		Use: "stat", Short: "Show the state of the cluster", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := a.readCluster()
			if err != nil {
				return err
			}
			st, err := d.leaderStatus(cmd.Context())
			if err != nil {
				return err
			}
			s := newStatusJSON(st)
			s.Auth = d.auth()
			if a.json {
				s.ReadCaches = readCaches(cmd.Context(), d.path)
				if s.Network, err = hostTraffic(); err != nil {
					return err
				}
				return a.printJSON(s)
			}
			return a.printStatus(s)
		},
	}
}

func (a *app) printStatus(s *statusJSON) error {
	leader := s.Leader
	for _, m := range s.Metas {
		if m.Addr == s.Leader {
			leader = fmt.Sprintf("%s at %s", id.MetaID(m.ID), m.Addr)
		}
	}
	if leader == "" {
		leader = "none"
	}
	fmt.Fprintf(a.out, "cluster   %s (%s)\n", s.Name, s.UUID)
	fmt.Fprintf(a.out, "health    %s\n", strings.Join(append([]string{s.Health}, s.Reasons...), "\n          "))
	if s.Auth == "none" {
		fmt.Fprintf(a.out, "access    open: the cluster was made without security, whoever reaches the ports may read and write\n")
	}
	fmt.Fprintf(a.out, "leader    %s, term %d, index %d, checkpoint %d, journal %s\n", leader, s.Term, s.Index, s.Checkpoint, a.size(s.JournalBytes))
	fmt.Fprintf(a.out, "space     %s free of %s\n", a.size(s.Free), a.size(s.Total))
	fmt.Fprintf(a.out, "files     %s, %s: %d degraded, %d below minimum, %s joining, %d to delete\n", count(s.Inodes, "inode"),
		count(s.Chunks, "chunk"), s.Degraded, s.UnderMin, count(s.Joining, "replica"), s.Garbage)
	a.printRepair(s.Repair)
	fmt.Fprintln(a.out)
	if err := a.printServers(s); err != nil {
		return err
	}
	if err := a.printNetwork(s); err != nil {
		return err
	}
	if err := a.printJobs(s.Repair); err != nil {
		return err
	}
	rows := [][]string{{"SESSION", "HOST", "MOUNT", "FILES", "RENEWED", "CONNECTED", "LOCAL READS"}}
	for _, c := range s.Sessions {
		local := "-"
		if c.Local != nil {
			local = count(c.Local.Reads, "read")
		}
		rows = append(rows, []string{strconv.FormatUint(c.ID, 10), c.Host, c.Mount, strconv.FormatUint(c.Files, 10),
			a.age(time.Duration(c.RenewedMS) * time.Millisecond), yesNo(c.Connected), local})
	}
	fmt.Fprintln(a.out)
	return a.table(rows)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// stateWords is a server's state for people.
func stateWords(state string) string {
	if state == stateUnheard {
		return "not heard yet"
	}
	return state
}

func diskWords(m metaJSON) string {
	switch m.Disk {
	case "":
		return "ok"
	case "low":
		return "nearly full"
	}
	return m.Disk
}

// printServers prints the tables of metadata and chunk servers.
func (a *app) printServers(s *statusJSON) error {
	rows := [][]string{{"MDS", "ADDRESS", "STATE", "APPLIED", "VOTER", "DISK"}}
	for _, m := range s.Metas {
		applied := strconv.FormatUint(m.Applied, 10)
		if m.Applied == 0 {
			applied = "-"
		}
		rows = append(rows, []string{id.MetaID(m.ID).String(), m.Addr, stateWords(m.State), applied, yesNo(m.Voter), diskWords(m)})
	}
	if err := a.table(rows); err != nil {
		return err
	}
	fmt.Fprintln(a.out)
	rows = [][]string{{"CS", "ADDRESS", "STATE", "HOST", "TIER", "CHUNKS", "USED", "FREE", "TOTAL", "BAD", "MEMORY", "DATA PATH", "HEARD"}}
	for _, c := range s.Servers {
		heard := "-"
		if c.HeardMS >= 0 && c.State != stateRetired {
			heard = a.age(time.Duration(c.HeardMS) * time.Millisecond)
		}
		rows = append(rows, []string{id.ServerID(c.ID).String(), c.Addr, serverState(c), c.Host, strconv.FormatUint(uint64(c.Tier), 10),
			strconv.FormatUint(c.Chunks, 10), a.size(c.Allocated), a.size(c.Free), a.size(c.Total), strconv.FormatUint(c.BadBlocks, 10), a.memoryWords(c), cmp.Or(c.DataPath, "-"), heard})
	}
	if err := a.table(rows); err != nil {
		return err
	}
	if err := a.printModes(s); err != nil {
		return err
	}
	return a.printJournals(s.Servers)
}

// printModes prints the table of chunk servers that are used for something else than new data, if there are any.
func (a *app) printModes(s *statusJSON) error {
	rows := [][]string{{"NOT ACTIVE", "MODE", "FOR", "STILL FOR", "LEFT", "DONE"}}
	for _, c := range s.Servers {
		if c.Mode == "" || c.State == stateRetired {
			continue
		}
		rows = append(rows, []string{id.ServerID(c.ID).String(), c.Mode, a.since(c.ModeSince), a.until(c.ModeUntil), leftWords(a, c), doneWords(c)})
	}
	if len(rows) == 1 {
		return nil
	}
	fmt.Fprintln(a.out)
	return a.table(rows)
}

// since and until say how long ago or ahead a time of stat --json is.
func (a *app) since(at string) string {
	t, err := time.Parse(time.RFC3339, at)
	if err != nil {
		return "-"
	}
	return max(time.Since(t), 0).Round(time.Second).String()
}

func (a *app) until(at string) string {
	t, err := time.Parse(time.RFC3339, at)
	if err != nil {
		return "-"
	}
	return max(time.Until(t), 0).Round(time.Second).String()
}

func leftWords(a *app, c serverJSON) string {
	if c.Mode == "standby" {
		return "-"
	}
	return a.size(c.Left) + ", " + count(c.LeftChunk, "chunk")
}

func doneWords(c serverJSON) string {
	switch {
	case c.Mode == "standby":
		return "-"
	case c.LeftChunk == 0:
		return "100%"
	case c.LeftOf == 0:
		return "0%"
	}
	return strconv.FormatUint(100-min(c.Left*100/c.LeftOf, 100), 10) + "%"
}

// printJournals prints the table of write journals, if there are any.
func (a *app) printJournals(servers []serverJSON) error {
	rows := [][]string{{"JOURNAL OF", "SIZE", "USED", "ONLY THERE", "DESTAGES", "WRITTEN", "READ", "PAST IT", "STATE"}}
	for _, c := range servers {
		j := c.Journal
		if j == nil || j.Size == 0 {
			continue
		}
		state := "ok"
		if j.Full {
			state = "its disk is full"
		}
		const page = 4096
		rows = append(rows, []string{id.ServerID(c.ID).String(), a.size(j.Size), fmt.Sprintf("%d%%", j.Used*100/j.Size), a.size(j.Dirty),
			a.size(j.DestageRate) + "/s", a.size(j.Journaled * page), a.size(j.Hits * page), a.size((j.Bypassed + j.Overflowed) * page), state})
	}
	if len(rows) == 1 {
		return nil
	}
	fmt.Fprintln(a.out)
	return a.table(rows)
}

// memoryWords says how much memory a chunk server takes up, of what it may.
func (a *app) memoryWords(c serverJSON) string {
	if c.Memory == 0 {
		return "-"
	}
	return a.size(c.Resident) + " of " + a.size(c.Memory)
}

func (a *app) listServicesCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list-services", Short: "List the servers of the cluster", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := a.readCluster()
			if err != nil {
				return err
			}
			st, err := d.leaderStatus(cmd.Context())
			if err != nil {
				return err
			}
			s := newStatusJSON(st)
			if a.json {
				return a.printJSON(struct {
					Metas   []metaJSON   `json:"mds"`
					Servers []serverJSON `json:"cs"`
				}{s.Metas, s.Servers})
			}
			return a.printServers(s)
		},
	}
}
