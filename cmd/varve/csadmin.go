package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"

	"github.com/spf13/cobra"
)

// scrubJSON is what `cs scrub --json` and `cs stat --json` print of one server's scrub.
type scrubJSON struct {
	Server  string  `json:"server,omitempty"`
	Rate    uint64  `json:"rate_bytes_per_s"` // 0: off
	Passes  uint64  `json:"passes"`
	Passed  string  `json:"passed,omitempty"` // when the last pass came to its end
	TookMS  int64   `json:"took_ms,omitempty"`
	Begun   string  `json:"begun,omitempty"` // of the pass under way
	Chunks  uint64  `json:"chunks"`
	Bytes   uint64  `json:"bytes"`
	Found   uint64  `json:"bad_blocks_found"`
	Percent float64 `json:"percent"`
	Waiting bool    `json:"waiting_for_guests"`

	passed, begun int64
}

func newScrubJSON(server string, m *msg.ScrubStat) scrubJSON {
	return scrubJSON{
		Server: server, Rate: m.Rate, Passes: m.Passes, Passed: isoTime(m.Passed), TookMS: m.TookMs, Begun: isoTime(m.Begun), Chunks: m.Chunks,
		Bytes: m.Bytes, Found: m.Found, Percent: float64(m.Permille) / 10, Waiting: m.Waiting, passed: m.Passed, begun: m.Begun,
	}
}

func isoTime(ns int64) string {
	if ns == 0 {
		return ""
	}
	return time.Unix(0, ns).UTC().Format(time.RFC3339)
}

// badJSON is one block in quarantine.
type badJSON struct {
	Chunk string `json:"chunk"`
	Block uint32 `json:"block"`
	Cause string `json:"cause"`
	Since string `json:"since"`
}

// storeJSON is what `cs stat --json` prints of one server.
type storeJSON struct {
	Server    string    `json:"server"`
	Chunks    uint64    `json:"chunks"`
	Total     uint64    `json:"total_bytes"`
	Free      uint64    `json:"free_bytes"`
	Reserved  uint64    `json:"reserved_bytes"`
	Allocated uint64    `json:"allocated_bytes"`
	Uncounted uint64    `json:"chunks_not_counted_yet"`
	Bad       uint64    `json:"bad_blocks"`
	List      []badJSON `json:"quarantine"`
	Failed    string    `json:"failed,omitempty"`
	Scrub     scrubJSON `json:"scrub"`

	Memory       uint64 `json:"memory_bytes"`
	Resident     uint64 `json:"resident_bytes"`
	Payload      uint64 `json:"payload_bytes"` // of requests under way
	PayloadSize  uint64 `json:"payload_size_bytes"`
	DataPath     string `json:"data_path"`
	Waiting      uint32 `json:"requests_waiting"`
	UnderWay     uint32 `json:"requests_under_way"`
	MostUnderWay uint32 `json:"requests_under_way_limit"`
}

// chosen returns the chunk servers that args name (cs1 or 1), all that are members if there are none.
func chosen(st *msg.StatusReply, args []string) ([]*msg.ChunkServer, error) {
	var all []*msg.ChunkServer
	for _, s := range st.Servers {
		if s.State != stateRetired {
			all = append(all, s)
		}
	}
	if len(args) == 0 {
		return all, nil
	}
	var some []*msg.ChunkServer
	for _, arg := range args {
		n, err := strconv.ParseUint(strings.TrimPrefix(arg, "cs"), 10, 32)
		i := slices.IndexFunc(all, func(s *msg.ChunkServer) bool { return err == nil && uint64(s.Server) == n })
		if i < 0 {
			return nil, fmt.Errorf("%s is none of the chunk servers; `varve list-services` lists them", arg)
		}
		some = append(some, all[i])
	}
	return some, nil
}

// eachServer asks every chunk server that args name. It goes on after one that does not answer, and returns that failure.
func (a *app) eachServer(ctx context.Context, args []string, ask func(name string, m *admin) error) error {
	d, err := a.readCluster()
	if err != nil {
		return err
	}
	st, err := d.leaderStatus(ctx)
	if err != nil {
		return err
	}
	servers, err := chosen(st, args)
	if err != nil {
		return err
	}
	var last error
	for _, s := range servers {
		name := id.ServerID(s.Server).String()
		m, err := d.dial(ctx, s.Addr)
		if err == nil {
			err = ask(name, m)
			m.close()
		}
		if err != nil {
			last = fmt.Errorf("%s: %w", name, err)
			fmt.Fprintf(a.err, "varve: %s\n", oneLine(last))
		}
	}
	if last != nil {
		return unreachablef("not every chunk server did what was asked: %w", last)
	}
	return nil
}

func (a *app) csScrubCommand() *cobra.Command {
	var rate sizeFlag
	var off, now bool
	cmd := &cobra.Command{
		Use: "scrub [CS...] [--rate SIZE | --off] [--now]", Short: "Show or set how fast chunk servers read all they hold to find bad blocks",
		Long: "Show how far the scrub of the chunk servers is, of all or of those given (cs1 cs2). Each server reads all its chunks, at most at its rate a second and\n" +
			"slower while guests use the disk, begins anew once a week, and goes on after a restart where it was. A bad block is put in quarantine and\n" +
			"mended from another replica. The rate is remembered by the server; at first it is 16 MiB.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if off && cmd.Flags().Changed("rate") {
				return usagef("--off and --rate exclude each other")
			}
			req := &msg.Scrub{Rate: uint64(rate), SetRate: off || cmd.Flags().Changed("rate"), Begin: now}
			if req.SetRate && !off && req.Rate == 0 {
				return usagef("--rate 0: say --off to stop the scrub")
			}
			all := []scrubJSON{}
			err := a.eachServer(cmd.Context(), args, func(name string, m *admin) error {
				r := new(msg.ScrubStat)
				err := m.ask(cmd.Context(), wire.Scrub, req, r)
				if err == nil {
					all = append(all, newScrubJSON(name, r))
				}
				return err
			})
			if a.json {
				if perr := a.printJSON(all); perr != nil {
					return perr
				}
				return err
			}
			rows := [][]string{{"CS", "RATE", "DONE", "CHUNKS", "READ", "FOUND", "PASSES", "LAST PASS", "STATE"}}
			for _, s := range all {
				rows = append(rows, append([]string{s.Server}, a.scrubWords(s)...))
			}
			if perr := a.table(rows); perr != nil {
				return perr
			}
			return err
		},
	}
	cmd.Flags().Var(&rate, "rate", "what a server reads a second at most, such as 64M")
	cmd.Flags().BoolVar(&off, "off", false, "stop the scrub until a rate is set again")
	cmd.Flags().BoolVar(&now, "now", false, "begin a new pass now")
	return cmd
}

func (a *app) scrubWords(s scrubJSON) []string {
	rate, state, last := a.size(s.Rate)+"/s", "idle", "never"
	switch {
	case s.Rate == 0:
		rate, state = "off", "off"
	case s.Waiting:
		state = "waiting for guests"
	case s.begun != 0:
		state = "reading"
	}
	if s.passed != 0 {
		last = a.age(time.Since(time.Unix(0, s.passed)))
	}
	return []string{rate, fmt.Sprintf("%.1f%%", s.Percent), strconv.FormatUint(s.Chunks, 10), a.size(s.Bytes), strconv.FormatUint(s.Found, 10),
		strconv.FormatUint(s.Passes, 10), last, state}
}

func (a *app) csStatCommand() *cobra.Command {
	var bad int
	cmd := &cobra.Command{
		Use: "stat [CS...] [--bad N]", Short: "Show how chunk servers keep and serve their chunks: space, memory, requests, blocks in quarantine, scrub",
		RunE: func(cmd *cobra.Command, args []string) error {
			if bad < 0 {
				return usagef("--bad %d is negative", bad)
			}
			all := []storeJSON{}
			err := a.eachServer(cmd.Context(), args, func(name string, m *admin) error {
				r := &msg.StoreStatReply{Scrub: &msg.ScrubStat{}}
				if err := m.ask(cmd.Context(), wire.StoreStat, &msg.StoreStat{MaxBad: uint32(bad)}, r); err != nil {
					return err
				}
				all = append(all, newStoreJSON(name, r))
				return nil
			})
			if a.json {
				if perr := a.printJSON(all); perr != nil {
					return perr
				}
				return err
			}
			for _, s := range all {
				a.printStore(s)
			}
			return err
		},
	}
	cmd.Flags().IntVar(&bad, "bad", 20, "bad blocks that are listed of each server")
	return cmd
}

func newStoreJSON(name string, r *msg.StoreStatReply) storeJSON {
	s := storeJSON{
		Server: name, Chunks: r.Chunks, Total: r.Total, Free: r.Free, Reserved: r.Reserved, Allocated: r.Allocated, Uncounted: r.Uncounted,
		Memory: r.Memory, Resident: r.Resident, Payload: r.Payload, PayloadSize: r.PayloadSize,
		DataPath: r.DataPath, Waiting: r.Waiting, UnderWay: r.UnderWay, MostUnderWay: r.MostUnderWay,
		Bad: r.Bad, Failed: r.Failed, Scrub: newScrubJSON("", r.Scrub), List: []badJSON{},
	}
	for _, b := range r.BadBlocks {
		s.List = append(s.List, badJSON{id.ChunkID(b.Chunk).String(), b.Block, b.Cause, isoTime(b.Since)})
	}
	return s
}

func (a *app) printStore(s storeJSON) {
	fmt.Fprintf(a.out, "%s\n", s.Server)
	if s.Failed != "" {
		fmt.Fprintf(a.out, "  failed      %s\n", s.Failed)
	}
	counted := ""
	if s.Uncounted > 0 {
		counted = fmt.Sprintf(" (%s not counted yet)", count(s.Uncounted, "chunk"))
	}
	fmt.Fprintf(a.out, "  chunks      %s, %s on the disk%s\n", count(s.Chunks, "chunk"), a.size(s.Allocated), counted)
	fmt.Fprintf(a.out, "  space       %s free of %s, and %s kept free\n", a.size(s.Free), a.size(s.Total), a.size(s.Reserved))
	fmt.Fprintf(a.out, "  memory      %s of %s; payload %s of %s\n", a.size(s.Resident), a.size(s.Memory), a.size(s.Payload), a.size(s.PayloadSize))
	fmt.Fprintf(a.out, "  requests    %d of at most %d under way, %d waiting; %s\n", s.UnderWay, s.MostUnderWay, s.Waiting, s.DataPath)
	w := a.scrubWords(s.Scrub)
	fmt.Fprintf(a.out, "  scrub       %s at %s, %s done, %s read, %s bad found; passes %s, last %s\n", w[7], w[0], w[1], w[3], w[4], w[5], w[6])
	fmt.Fprintf(a.out, "  quarantine  %s\n", count(s.Bad, "bad block"))
	for _, b := range s.List {
		fmt.Fprintf(a.out, "    chunk %s block %d: %s, since %s\n", b.Chunk, b.Block, b.Cause, b.Since)
	}
	if n := s.Bad - uint64(len(s.List)); n > 0 && len(s.List) > 0 {
		fmt.Fprintf(a.out, "    and %d more: --bad %d\n", n, s.Bad)
	}
}
