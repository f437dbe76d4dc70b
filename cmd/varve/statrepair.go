package main

import (
	"fmt"
	"strings"
	"time"

	"varve/internal/id"
	"varve/internal/wire/msg"
)

// repairJSON is what `stat --json` says of repair, drains and moves.
type repairJSON struct {
	Rate        uint64     `json:"rate_bytes_per_s"` // that all rebuilds may copy now
	Most        uint64     `json:"most_bytes_per_s"`
	Copying     uint64     `json:"copying_bytes_per_s"` // lately
	Held        string     `json:"held,omitempty"`      // why the rate is not raised
	Running     uint32     `json:"rebuilds"`
	MostRunning uint32     `json:"most_rebuilds"`
	GuestP99US  uint32     `json:"guest_p99_us"`
	UsualP99US  uint32     `json:"usual_guest_p99_us"` // without repair, as far as that was seen
	CountingMS  int64      `json:"counting_ms"`        // for how long the leader has counted what follows
	Rebuilt     uint64     `json:"rebuilt"`            // replicas
	Copied      uint64     `json:"copied_bytes"`
	Failed      uint64     `json:"failed_steps"`
	Removed     uint64     `json:"removed"` // replicas that were too many, or joining on lost servers
	Left        uint64     `json:"left_bytes"`
	ETAMS       int64      `json:"eta_ms"` // -1: nothing is being copied
	Jobs        []jobJSON  `json:"jobs"`
	Work        []workJSON `json:"work"`
	Warnings    []string   `json:"warnings,omitempty"`
}

type jobJSON struct {
	Chunk     string `json:"chunk"`
	Class     string `json:"class"`
	Reason    string `json:"reason"`
	Target    string `json:"target"`
	Source    string `json:"source,omitempty"`
	From      string `json:"from,omitempty"` // whose place the target takes
	Bytes     uint64 `json:"bytes"`          // at most
	Copied    uint64 `json:"copied_bytes"`
	RunningMS int64  `json:"running_ms"`
}

type workJSON struct {
	Class  string `json:"class"`
	Reason string `json:"reason"`
	Server string `json:"server,omitempty"` // that is being emptied
	Chunks uint64 `json:"chunks"`
	Bytes  uint64 `json:"bytes"`
	ETAMS  int64  `json:"eta_ms"` // -1: nothing is being copied
}

func newRepairJSON(r *msg.RepairStatus) *repairJSON {
	if r == nil {
		return nil
	}
	out := &repairJSON{Rate: r.Rate, Most: r.Most, Copying: r.Copying, Held: r.Held, Running: r.Running, MostRunning: r.MostRunning,
		GuestP99US: r.GuestP99Us, UsualP99US: r.UsualP99Us, Warnings: r.Warnings, Jobs: []jobJSON{}, Work: []workJSON{},
		CountingMS: r.CountingMs, Rebuilt: r.Rebuilt, Copied: r.Copied, Failed: r.Failed, Removed: r.Removed, Left: r.Left, ETAMS: r.EtaMs}
	name := func(s uint32) string {
		if s == 0 {
			return ""
		}
		return id.ServerID(s).String()
	}
	for _, j := range r.Jobs {
		out.Jobs = append(out.Jobs, jobJSON{id.ChunkID(j.Chunk).String(), j.Class, j.Reason, name(j.Target), name(j.Source), name(j.From), j.Bytes, j.Copied, j.RunningMs})
	}
	for _, w := range r.Work {
		out.Work = append(out.Work, workJSON{w.Class, w.Reason, name(w.Server), w.Chunks, w.Bytes, w.EtaMs})
	}
	return out
}

// printRepair prints what repair does, if it does anything or is kept from it.
func (a *app) printRepair(r *repairJSON) {
	if r == nil {
		return
	}
	did := ""
	if r.Rebuilt+r.Failed+r.Removed+r.Copied > 0 {
		did = fmt.Sprintf("%s rebuilt with %s copied, %s taken out, %s failed, in the %v of this leader", count(r.Rebuilt, "replica"), a.size(r.Copied),
			count(r.Removed, "replica"), count(r.Failed, "step"), (time.Duration(r.CountingMS) * time.Millisecond).Round(time.Second))
	}
	if len(r.Work)+len(r.Jobs)+len(r.Warnings) == 0 {
		if did != "" {
			fmt.Fprintf(a.out, "repair    nothing to do; %s\n", did)
		}
		return
	}
	line := fmt.Sprintf("copying %s/s of %s/s now, %s/s at most; %d of %s", a.size(r.Copying), a.size(r.Rate), a.size(r.Most), r.Running, count(uint64(r.MostRunning), "rebuild"))
	if r.Held != "" {
		line += "; held: " + r.Held
	}
	lines := []string{line}
	for _, w := range r.Work {
		about := w.Reason
		if w.Server != "" {
			about = w.Server + " is emptied"
		}
		eta := "waiting"
		if w.ETAMS >= 0 {
			eta = "about " + (time.Duration(w.ETAMS) * time.Millisecond).Round(time.Second).String()
		}
		lines = append(lines, fmt.Sprintf("%s: %s, %s left, %s, %s", w.Class, about, a.size(w.Bytes), count(w.Chunks, "chunk"), eta))
	}
	if did != "" {
		lines = append(lines, did)
	}
	for _, w := range r.Warnings {
		lines = append(lines, "note: "+w)
	}
	fmt.Fprintf(a.out, "repair    %s\n", strings.Join(lines, "\n          "))
}

// maxJobsShown bounds the steps that stat prints.
const maxJobsShown = 10

func (a *app) printJobs(r *repairJSON) error {
	if r == nil || len(r.Jobs) == 0 {
		return nil
	}
	rows := [][]string{{"REPAIRS", "CLASS", "WHY", "FROM", "TO", "COPIED", "FOR"}}
	for _, j := range r.Jobs[:min(len(r.Jobs), maxJobsShown)] {
		rows = append(rows, []string{j.Chunk, j.Class, j.Reason, j.Source, j.Target, a.size(j.Copied) + " of " + a.size(j.Bytes),
			(time.Duration(j.RunningMS) * time.Millisecond).Round(100 * time.Millisecond).String()})
	}
	fmt.Fprintln(a.out)
	return a.table(rows)
}

// serverState is a chunk server's state for people: also what it is used for, and whether it is slow.
func serverState(c serverJSON) string {
	out := stateWords(c.State)
	if c.Mode != "" {
		out += ", " + c.Mode
	}
	if c.Slow != "" {
		out += ", slow"
	}
	return out
}
