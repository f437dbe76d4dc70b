package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"

	"github.com/spf13/cobra"
)

// whatIfTimeout is how long the leader may take: it looks at every chunk.
const whatIfTimeout = 3 * time.Minute

// whatIfJSON is what `whatif lose --json` prints.
type whatIfJSON struct {
	Lost          []lostJSON `json:"lost"`
	Index         uint64     `json:"index"`
	Chunks        uint64     `json:"chunks"`     // there are
	Hit           uint64     `json:"chunks_hit"` // with a replica on a lost server
	Gone          uint64     `json:"chunks_gone"`
	GoneBytes     uint64     `json:"gone_bytes"`
	GoneFiles     uint64     `json:"gone_files"`
	UnderMin      uint64     `json:"chunks_under_min"` // cannot be written until something is rebuilt
	UnderMinFiles uint64     `json:"under_min_files"`
	Last          uint64     `json:"chunks_with_one_replica"`
	Moves         uint64     `json:"replicas_to_rebuild"`
	MoveBytes     uint64     `json:"rebuild_bytes"` // at most: files may be sparse
	Homeless      uint64     `json:"replicas_without_room"`
	HomelessBytes uint64     `json:"without_room_bytes"`
	Shared        uint64     `json:"replicas_sharing_a_domain"`
	ETAMS         int64      `json:"rebuild_ms"` // -1: no rate is known
	Rate          uint64     `json:"rate_bytes_per_s"`
	ServerRate    uint64     `json:"server_rate_bytes_per_s"`
	ByServer      bool       `json:"limited_by_one_server"`
	Degraded      bool       `json:"degraded_already"`
	TookMS        int64      `json:"took_ms"`
	Survivors     []survivor `json:"survivors"`
	Files         []lostFile `json:"files"`
	FilesLeftOut  uint64     `json:"files_left_out"`
}

type lostJSON struct {
	Server string `json:"server"`
	Host   string `json:"host"`
	Rack   string `json:"rack,omitempty"`
	Chunks uint64 `json:"chunks"`
	Bytes  uint64 `json:"bytes"`
}

type survivor struct {
	Server    string `json:"server"`
	Host      string `json:"host"`
	Rack      string `json:"rack,omitempty"`
	Tier      uint32 `json:"tier"`
	Live      bool   `json:"live"`
	Chunks    uint64 `json:"replicas"` // that it would get
	Bytes     uint64 `json:"bytes"`
	ReadBytes uint64 `json:"read_bytes"`
	Free      uint64 `json:"free_bytes"`
}

type lostFile struct {
	Ino       uint64 `json:"ino"`
	Path      string `json:"path,omitempty"`
	Size      uint64 `json:"size"`
	Gone      uint64 `json:"chunks_gone"`
	GoneBytes uint64 `json:"gone_bytes"`
	UnderMin  uint64 `json:"chunks_under_min"`
}

func (a *app) whatIfCommand() *cobra.Command {
	return groupCommand("whatif", "Ask what would be if", a.whatIfLoseCommand())
}

func (a *app) whatIfLoseCommand() *cobra.Command {
	var rate, serverRate sizeFlag
	var files uint32
	cmd := &cobra.Command{
		Use: "lose HOST|CS|rack=R...", Short: "Say what would be lost with hosts, chunk servers or racks, and what repair would have to do",
		Long: "Say what would be if all that is named were lost for good at once: which data, which files could not be written until something is rebuilt, how much has\n" +
			"to be copied, where to, whether there is room, and how long it takes. Nothing changes. CS is cs3 or 3; rack=R also takes ROW or ROOM, and host=H a host that is\n" +
			"called like a chunk server. Amounts of data are at most: a sparse file has less. The exit code is 4 if data would be lost.",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return exactArgs("HOST|CS|rack=R")(cmd, args)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			req, err := parseLoss(args)
			if err != nil {
				return err
			}
			req.Rate, req.ServerRate, req.MaxFiles = uint64(rate), uint64(serverRate), files
			d, err := a.readCluster()
			if err != nil {
				return err
			}
			v, err := d.whatIf(cmd.Context(), req)
			if err != nil {
				return err
			}
			if a.json {
				err = a.printJSON(v)
			} else {
				err = a.printWhatIf(v)
			}
			if err == nil && v.Gone > 0 {
				err = refusedf("%s in %s would be lost for good; wait for repair, or have more replicas with set-attr, before anything of this is taken away",
					count(v.Gone, "chunk"), count(v.GoneFiles, "file"))
			}
			return err
		},
	}
	f := cmd.Flags()
	f.Var(&rate, "rate", "what all repair together copies a second (default: the setting repair.rate)")
	f.Var(&serverRate, "server-rate", "what repair copies to one chunk server a second (default: the setting repair.rate.server)")
	f.Uint32Var(&files, "files", 20, "files that are named")
	return cmd
}

// parseLoss reads what is to be lost.
func parseLoss(args []string) (*msg.WhatIf, error) {
	req := &msg.WhatIf{}
	for _, arg := range args {
		kind, name, ok := strings.Cut(arg, "=")
		n, err := strconv.ParseUint(strings.TrimPrefix(arg, "cs"), 10, 32)
		switch {
		case ok && name == "":
			return nil, usagef("%q names nothing", arg)
		case ok && (kind == "rack" || kind == "row" || kind == "room"):
			req.Racks = append(req.Racks, name)
		case ok && kind == "host":
			req.Hosts = append(req.Hosts, name)
		case ok || arg == "":
			return nil, usagef("%q: want a host, a chunk server such as cs3, rack=R or host=H", arg)
		case err == nil && n > 0:
			req.Servers = append(req.Servers, uint32(n))
		default:
			req.Hosts = append(req.Hosts, arg)
		}
	}
	return req, nil
}

func (d *clusterDir) whatIf(ctx context.Context, req *msg.WhatIf) (*whatIfJSON, error) {
	r := new(msg.WhatIfReply)
	err := d.askLeader(ctx, whatIfTimeout, wire.WhatIf, req, r)
	if errors.Is(err, fserr.NotExist) && r.Detail != "" {
		return nil, fmt.Errorf("%s; `varve list-services` lists them", strings.TrimSuffix(r.Detail, ": "+fserr.NotExist.Error()))
	}
	if err != nil {
		return nil, err
	}
	v := &whatIfJSON{
		Lost: []lostJSON{}, Index: r.Index, Chunks: r.Chunks, Hit: r.Hit, Gone: r.Gone, GoneBytes: r.GoneBytes, GoneFiles: r.GoneFiles, UnderMin: r.UnderMin,
		UnderMinFiles: r.UnderMinFiles, Last: r.Last, Moves: r.Moves, MoveBytes: r.MoveBytes, Homeless: r.Homeless, HomelessBytes: r.HomelessBytes, Shared: r.Shared,
		ETAMS: r.EtaMs, Rate: r.Rate, ServerRate: r.ServerRate, ByServer: r.ByServer, Degraded: r.Degraded, TookMS: r.TookMs,
		Survivors: []survivor{}, Files: []lostFile{}, FilesLeftOut: r.FilesLeftOut,
	}
	if r.Rate == 0 && r.ServerRate == 0 {
		v.ETAMS = -1
	}
	for _, x := range r.Lost {
		v.Lost = append(v.Lost, lostJSON{id.ServerID(x.Server).String(), x.Host, x.Rack, x.Chunks, x.Bytes})
	}
	for _, x := range r.Survivors {
		v.Survivors = append(v.Survivors, survivor{id.ServerID(x.Server).String(), x.Host, x.Rack, x.Tier, x.Live, x.Chunks, x.Bytes, x.ReadBytes, x.Free})
	}
	for _, x := range r.Files {
		v.Files = append(v.Files, lostFile{x.Ino, string(x.Path), x.Size, x.Gone, x.GoneBytes, x.UnderMin})
	}
	return v, nil
}

// span returns how long something takes, for people, or in milliseconds with --bytes.
func (a *app) span(d time.Duration) string {
	switch {
	case a.bytes:
		return strconv.FormatInt(d.Milliseconds(), 10)
	case d < time.Second:
		return "less than a second"
	}
	return d.Round(time.Second).String()
}

// maxSurvivors is how many survivors are shown one by one.
const maxSurvivors = 24

func (a *app) printWhatIf(v *whatIfJSON) error {
	var names []string
	var chunks, bytes uint64
	for _, x := range v.Lost {
		names = append(names, x.Server)
		chunks, bytes = chunks+x.Chunks, bytes+x.Bytes
	}
	if n := len(names); n > 8 {
		names = append(names[:8], fmt.Sprintf("and %d more", n-8))
	}
	line := func(name, format string, args ...any) {
		fmt.Fprintf(a.out, "%-14s%s\n", name, fmt.Sprintf(format, args...))
	}
	line("without", "%s: %s, %s", strings.Join(names, " "), count(chunks, "replica"), a.size(bytes))
	if v.Gone == 0 {
		line("data lost", "none; %s would have one replica left", count(v.Last, "chunk"))
	} else {
		line("data lost", "%s of %s, %s; %s would have one replica left", count(v.Gone, "chunk"), count(v.GoneFiles, "file"), a.size(v.GoneBytes), count(v.Last, "chunk"))
	}
	if v.UnderMin > 0 {
		line("writes wait", "to %s of %s, until something is rebuilt", count(v.UnderMin, "chunk"), count(v.UnderMinFiles, "file"))
	} else {
		line("writes wait", "nowhere")
	}
	line("to rebuild", "%s, %s", count(v.Moves, "replica"), a.size(v.MoveBytes))
	if v.Homeless > 0 {
		line("no place", "for %s, %s: add chunk servers, or free space", count(v.Homeless, "replica"), a.size(v.HomelessBytes))
	}
	if v.Shared > 0 {
		line("not apart", "%s would share a failure domain until one is added", count(v.Shared, "replica"))
	}
	if v.ETAMS >= 0 {
		limit := "all repair together at " + a.size(v.Rate) + "/s"
		if v.ByServer {
			limit = "each server at " + a.size(v.ServerRate) + "/s"
		}
		line("it takes", "%s, %s", a.span(time.Duration(v.ETAMS)*time.Millisecond), limit)
	}
	if v.Degraded {
		line("note", "some chunks have too few replicas already; what those lack comes on top")
	}
	if err := a.printSurvivors(v.Survivors); err != nil {
		return err
	}
	return a.printLostFiles(v)
}

// printSurvivors shows where replicas would go, those that get most first.
func (a *app) printSurvivors(list []survivor) error {
	list = slices.DeleteFunc(slices.Clone(list), func(x survivor) bool { return x.Bytes == 0 && x.ReadBytes == 0 && x.Chunks == 0 })
	if len(list) == 0 {
		return nil
	}
	slices.SortStableFunc(list, func(x, y survivor) int { return cmp.Compare(y.Bytes, x.Bytes) })
	rows := [][]string{{"CS", "HOST", "RACK", "REPLICAS", "TO WRITE", "TO READ", "FREE AFTER"}}
	for _, x := range list[:min(len(list), maxSurvivors)] {
		rows = append(rows, []string{x.Server, x.Host, x.Rack, strconv.FormatUint(x.Chunks, 10), a.size(x.Bytes), a.size(x.ReadBytes), a.size(x.Free - min(x.Free, x.Bytes))})
	}
	if err := a.table(rows); err != nil {
		return err
	}
	if n := len(list) - maxSurvivors; n > 0 {
		fmt.Fprintf(a.out, "and %d more chunk servers: --json\n", n)
	}
	return nil
}

func (a *app) printLostFiles(v *whatIfJSON) error {
	if len(v.Files) == 0 {
		return nil
	}
	rows := [][]string{{"FILE", "SIZE", "CHUNKS LOST", "DATA LOST", "WRITES WAIT TO"}}
	for _, x := range v.Files {
		path := x.Path
		if path == "" {
			path = fmt.Sprintf("inode %d", x.Ino)
		}
		rows = append(rows, []string{path, a.size(x.Size), strconv.FormatUint(x.Gone, 10), a.size(x.GoneBytes), count(x.UnderMin, "chunk")})
	}
	if err := a.table(rows); err != nil {
		return err
	}
	if v.FilesLeftOut > 0 {
		fmt.Fprintf(a.out, "and %s more: --files N\n", count(v.FilesLeftOut, "file"))
	}
	return nil
}
