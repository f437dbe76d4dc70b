package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/netcheck"
	"varve/internal/planes"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

const (
	// checkPairs is how many pairs check-net measures if nothing else is said.
	checkPairs = 400
	// checkMatrix is up to how many members it prints a matrix; of more it prints what is wrong, and the slowest.
	checkMatrix = 12
	checkWorst  = 20
)

// checkClasses are the classes of traffic that check-net can measure between servers.
var checkClasses = map[string]wire.Class{"guest": wire.ClassGuest, "replication": wire.ClassReplication, "repair": wire.ClassRepair}

// checkNetJSON is what `check-net --json` prints.
type checkNetJSON struct {
	Cluster string           `json:"cluster"`
	Verdict netcheck.Verdict `json:"verdict"`
	Notes   []string         `json:"notes"`
	*netcheck.Report
}

func (a *app) checkNetCommand() *cobra.Command {
	var span time.Duration
	var rate sizeFlag
	var pairs int
	var class string
	var noMTU, noSelf, noClients bool
	cmd := &cobra.Command{
		Use: "check-net", Short: "Measure the network between all members, and say what is wrong with it", Args: noArgs,
		Long: "Measure throughput, latency, path MTU and retransmissions between all members of the cluster, its clients and this host, and compare\n" +
			"interfaces and clocks. Each host takes part in one test at a time, and sends as repair does, so guests go first. Members of one host are not\n" +
			"measured against one another, unless all are on one, and clients, which the leader asks, against servers only. Says ok, warn or bad, why,\n" +
			"and what to do; the exit code is 1 if something is bad.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if span < 10*time.Millisecond || span > netcheck.MaxTest {
				return usagef("--for %v: want 10ms to %v for each pair", span, netcheck.MaxTest)
			}
			if pairs < 0 {
				return usagef("--pairs %d: want how many to measure at most, or 0 for all", pairs)
			}
			c, ok := checkClasses[class]
			if !ok {
				return usagef("--class %q: want guest, replication or repair", class)
			}
			d, err := a.readCluster()
			if err != nil {
				return err
			}
			st, err := d.leaderStatus(cmd.Context())
			if err != nil {
				return err
			}
			o := netcheck.RunOptions{Targets: checkTargets(st, c), For: span, Rate: uint64(rate), Class: c, Pairs: pairs, NoMTU: noMTU,
				Dial: func(ctx context.Context, addr string) (*wire.Conn, error) {
					m, err := d.dial(ctx, addr)
					if err != nil {
						return nil, err
					}
					return m.conn, nil
				},
			}
			by := &relay{d: d}
			defer by.close()
			o.Relay = by.ask
			if !noClients {
				o.Targets = append(o.Targets, checkClients(st)...)
			}
			network, err := d.network() // read once, before several dial at once
			if err != nil {
				return err
			}
			if !noSelf {
				o.Self = func() (wire.Network, *msg.Hello) {
					return network, &msg.Hello{Cluster: d.uuid[:], Role: msg.Hello_ADMIN, Version: version}
				}
			}
			end := a.pairProgress(&o)
			r, err := netcheck.Run(cmd.Context(), o)
			end()
			if err != nil {
				return &exitError{exitFailed, errors.New("interrupted")}
			}
			return a.printNetCheck(d.name, st, r)
		},
	}
	f := cmd.Flags()
	f.DurationVar(&span, "for", time.Second, "how long each pair is measured")
	f.Var(&rate, "rate", "bytes a second that a test sends at most (default: what the network takes)")
	f.IntVar(&pairs, "pairs", checkPairs, "how many pairs to measure at most, spread over all hosts; 0: all")
	f.StringVar(&class, "class", "repair", "traffic as which servers send: guest, replication or repair")
	f.BoolVar(&noMTU, "no-mtu", false, "do not probe the paths' MTU")
	f.BoolVar(&noClients, "no-clients", false, "leave mounts and other clients out")
	f.BoolVar(&noSelf, "no-self", false, "leave this host out")
	return cmd
}

// checkTargets are the members of a cluster.
func checkTargets(st *msg.StatusReply, class wire.Class) (out []netcheck.Target) {
	for _, m := range st.Metas {
		t := netcheck.Target{Name: id.MetaID(m.Server).String(), Server: m.Server, Addr: m.Addr}
		if m.State == "unreachable" {
			t.Down = "the leader does not reach it"
		}
		out = append(out, t)
	}
	for _, s := range st.Servers {
		if s.State == stateRetired {
			continue
		}
		t := netcheck.Target{Name: id.ServerID(s.Server).String(), Server: s.Server, Addr: s.Addr}
		if s.Planes != "" {
			t.Data = planes.Book(s.Planes).Addr(planes.Of(class))
		}
		if s.State == "down" || s.State == "failed" {
			t.Down = "is " + s.State
			if s.Reason != "" {
				t.Down += ": " + s.Reason
			}
		}
		out = append(out, t)
	}
	return out
}

// checkClients are the clients that are connected to the leader.
func checkClients(st *msg.StatusReply) (out []netcheck.Target) {
	for _, s := range st.Sessions {
		if s.Connected {
			out = append(out, netcheck.Target{Name: fmt.Sprintf("%s:%s", s.Host, s.Mount), Session: s.Session})
		}
	}
	return out
}

// relay has the leader ask clients, on a connection that is kept.
type relay struct {
	d  *clusterDir
	mu sync.Mutex
	to *admin // the leader; nil until it is found
}

func (r *relay) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.to != nil {
		r.to.close()
		r.to = nil
	}
}

// leader returns a connection to a metadata server, which leads unless that has changed.
func (r *relay) leader(ctx context.Context) (*admin, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.to != nil && r.to.conn.Err() == nil {
		return r.to, nil
	}
	m, err := r.d.dialAny(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { r.to = m }()
	members := new(msg.MembersReply)
	if err := m.ask(ctx, wire.Members, &msg.Members{}, members); err != nil || members.Leader == "" || members.Leader == m.addr {
		return m, err
	}
	l, err := r.d.dialMeta(ctx, members.Leader)
	if err == nil {
		m.close()
		m = l
	}
	return m, nil
}

// ask is netcheck.RunOptions.Relay.
func (r *relay) ask(ctx context.Context, session uint64, t wire.Type, req, reply wire.Message) (fserr.Code, error) {
	body, err := req.MarshalVT()
	if err != nil {
		return 0, err
	}
	m, err := r.leader(ctx)
	if err != nil {
		return 0, err
	}
	answer := new(msg.NetRelayReply)
	code, err := m.conn.CallMessage(ctx, wire.NetRelay, wire.ClassMeta, &msg.NetRelay{Session: session, Type: uint32(t), Body: body}, answer)
	switch {
	case err != nil:
		return 0, err
	case code == fserr.NotLeader:
		r.close() // the next question finds who leads
		return code, nil
	case answer.Detail != "":
		return 0, fmt.Errorf("%s: %w", answer.Detail, code)
	case code == fserr.OK:
		if u, ok := reply.(interface{ UnmarshalVT([]byte) error }); ok {
			err = u.UnmarshalVT(answer.Body)
		}
	}
	return code, err
}

// pairProgress shows how many pairs have been measured, if standard error is a terminal. Call end when it is over.
func (a *app) pairProgress(o *netcheck.RunOptions) (end func()) {
	f, ok := a.err.(*os.File)
	if !ok || !isTerminal(f) {
		return func() {}
	}
	var bar *progressbar.ProgressBar
	o.Progress = func(done, all int) {
		if bar == nil {
			bar = progressbar.NewOptions(all, progressbar.OptionSetWriter(f), progressbar.OptionSetDescription("measuring pairs"),
				progressbar.OptionShowCount(), progressbar.OptionClearOnFinish(), progressbar.OptionSetPredictTime(true))
		}
		_ = bar.Set(done) // it is only shown
	}
	return func() {
		if bar != nil {
			_ = bar.Finish()
		}
	}
}

// checkNotes is what has to be known to read a report.
func checkNotes(st *msg.StatusReply, r *netcheck.Report) []string {
	notes := []string{}
	if r.Possible > len(r.Pairs) {
		notes = append(notes, fmt.Sprintf("%d of %d pairs were measured, spread over all hosts; --pairs 0 measures all", len(r.Pairs), r.Possible))
	}
	if len(r.Pairs) == 0 {
		notes = append(notes, "there was no pair to measure")
	}
	if st.Repair != nil && len(st.Repair.Jobs) > 0 {
		notes = append(notes, fmt.Sprintf("repair is at work (%s): what was measured had to share with it; measure again when it is over", count(uint64(len(st.Repair.Jobs)), "rebuild")))
	}
	by := map[string]int{}
	for i := range r.Pairs {
		if p := &r.Pairs[i]; p.MTUBy != "" {
			by[p.MTUBy]++
		}
	}
	for _, how := range sortedKeys(by) {
		notes = append(notes, fmt.Sprintf("path MTU of %s by %s", count(uint64(by[how]), "pair"), how))
	}
	off := map[string]int{}
	for i := range r.Members {
		m := &r.Members[i]
		if m.Off != "" {
			off[m.Off]++
		}
		if m.Apart != "" {
			notes = append(notes, fmt.Sprintf("nothing was measured with %s: %s", m.Name, m.Apart))
		}
	}
	for _, why := range sortedKeys(off) {
		notes = append(notes, fmt.Sprintf("no look at bonds and interfaces of %s: %s", count(uint64(off[why]), "member"), why))
	}
	return notes
}

func sortedKeys(m map[string]int) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func (a *app) printNetCheck(cluster string, st *msg.StatusReply, r *netcheck.Report) error {
	out := checkNetJSON{Cluster: cluster, Verdict: r.Worst(), Notes: checkNotes(st, r), Report: r}
	var err error
	if a.json {
		err = a.printJSON(out)
	} else {
		err = a.printNetTables(&out)
	}
	if err == nil && out.Verdict == netcheck.Bad {
		bad := 0
		for _, p := range r.Problems {
			if p.Verdict == netcheck.Bad {
				bad++
			}
		}
		err = &exitError{exitFailed, fmt.Errorf("the network of cluster %s is bad: %s", cluster, count(uint64(bad), "problem"))}
	}
	return err
}

func (a *app) printNetTables(out *checkNetJSON) error {
	rows := [][]string{{"MEMBER", "ADDRESS", "HOST", "INTERFACE", "SPEED", "MTU", "CLOCK", "STATE"}}
	for i := range out.Members {
		m := &out.Members[i]
		speed, mtu, clock, state := "-", "-", "-", "ok"
		if m.SpeedMbit > 0 {
			speed = netcheck.Bits(float64(m.SpeedMbit) * 1e6 / 8)
		}
		if m.MTU > 0 {
			mtu = fmt.Sprint(m.MTU)
		}
		if m.Clock && m.Name != netcheck.SelfName {
			clock = fmt.Sprintf("%+.1f ±%.1f ms", float64(m.ClockNS)/1e6, float64(m.DoubtNS)/1e6)
		}
		if m.Failed != "" {
			state = m.Failed
		}
		rows = append(rows, []string{m.Name, orDash(m.Addr), orDash(m.Host), orDash(m.Interface), speed, mtu, clock, state})
	}
	if err := a.table(rows); err != nil {
		return err
	}
	if len(out.Pairs) > 0 {
		if err := a.printPairs(out.Report); err != nil {
			return err
		}
	}
	for _, n := range out.Notes {
		fmt.Fprintf(a.out, "note: %s\n", n)
	}
	if len(out.Problems) == 0 {
		_, err := fmt.Fprintf(a.out, "ok: nothing is wrong with the network of cluster %s\n", out.Cluster)
		return err
	}
	fmt.Fprintln(a.out)
	for _, p := range out.Problems {
		if _, err := fmt.Fprintf(a.out, "%-5s %s: %s\n      %s\n", p.Verdict, p.Where, p.What, p.Do); err != nil {
			return err
		}
	}
	return nil
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// printPairs prints a matrix, or what is most worth knowing of a large one.
func (a *app) printPairs(r *netcheck.Report) error {
	if len(r.Members) <= checkMatrix {
		fmt.Fprintln(a.out, "\nthroughput, from the member of the row to that of the column")
		if err := a.table(matrix(r, func(p *netcheck.Pair) string { return netcheck.Bits(p.BytesPerS) })); err != nil {
			return err
		}
		fmt.Fprintln(a.out, "\nlatency of small messages, median")
		return a.table(matrix(r, func(p *netcheck.Pair) string { return latencyText(p.MedianUS) }))
	}
	worst := slices.Clone(r.Pairs)
	slices.SortStableFunc(worst, func(a, b netcheck.Pair) int {
		switch {
		case a.BytesPerS < b.BytesPerS:
			return -1
		case a.BytesPerS > b.BytesPerS:
			return 1
		}
		return 0
	})
	worst = worst[:min(len(worst), checkWorst)]
	fmt.Fprintf(a.out, "\nthe %d slowest pairs; --json has all\n", len(worst))
	rows := [][]string{{"FROM", "TO", "THROUGHPUT", "LATENCY", "PATH MTU", "SENT AGAIN", "VERDICT"}}
	for i := range worst {
		p := &worst[i]
		rate, took, mtu, again := "-", "-", "-", "-"
		if p.Failed == "" {
			rate, took = netcheck.Bits(p.BytesPerS), latencyText(p.MedianUS)
		}
		if p.PathMTU > 0 {
			mtu = fmt.Sprint(p.PathMTU)
		}
		if p.TCP {
			again = fmt.Sprintf("%d of %d", p.Retransmits, p.Segments)
		}
		rows = append(rows, []string{p.From, p.To, rate, took, mtu, again, string(p.Verdict)})
	}
	return a.table(rows)
}

func latencyText(us float64) string {
	if us >= 1000 {
		return fmt.Sprintf("%.1f ms", us/1000)
	}
	return fmt.Sprintf("%.0f µs", us)
}

// matrix is a table of pairs. A pair that failed shows so, one that was not measured as a dot.
func matrix(r *netcheck.Report, cell func(*netcheck.Pair) string) [][]string {
	at := map[string]int{}
	head := []string{""}
	for i, m := range r.Members {
		at[m.Name] = i
		head = append(head, strings.ReplaceAll(m.Name, " ", "-"))
	}
	rows := [][]string{head}
	for _, m := range r.Members {
		row := make([]string, len(r.Members)+1)
		row[0] = strings.ReplaceAll(m.Name, " ", "-")
		for i := range r.Members {
			row[i+1] = "·"
		}
		rows = append(rows, row)
	}
	for i := range r.Pairs {
		p := &r.Pairs[i]
		text := "failed"
		if p.Failed == "" {
			text = cell(p)
			if p.Verdict != netcheck.OK {
				text += " !"
			}
		}
		rows[at[p.From]+1][at[p.To]+1] = text
	}
	return rows
}
