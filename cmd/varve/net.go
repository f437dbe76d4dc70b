package main

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"

	"varve/ebpf"
	"varve/internal/id"
	"varve/internal/traffic"
	"varve/internal/wire/msg"

	"github.com/spf13/cobra"
)

func (a *app) netCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "net", Short: "Show what is done about the traffic of this host's daemons, and what was seen", Args: noArgs,
		Long: "Show what the daemons of this host do about its traffic, and what they have seen: frames and bytes by interface, kind of traffic and peer,\n" +
			"queues, what the guard has dropped, round-trip times and retransmissions. The settings net.* say what is done; varve stat shows all hosts. Of bonds it says whether connections are spread over\n" +
			"their links by the source ports that varve chooses, which VARVE_BOND_PORTS=off in the environment of a daemon leaves to the kernel.",
		RunE: func(*cobra.Command, []string) error {
			s, err := hostTraffic()
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(s)
			}
			return a.printHostTraffic(s)
		},
	}
	cmd.AddCommand(&cobra.Command{
		Use: "clean", Short: "Take off this host's interfaces what daemons that died have left there", Args: noArgs,
		Long: "Take off this host's interfaces what daemons that died have left there: queues, and filters where the kernel has no TCX. Any daemon that starts does it\n" +
			"too. It is refused while a daemon lives that owns what is there.",
		RunE: func(*cobra.Command, []string) error {
			s, err := hostTraffic()
			if err != nil {
				return err
			}
			if s.PID != 0 {
				return refusedf("process %d owns what is on the interfaces, and takes it off when it ends; stop it, or set net.classify, net.shape and net.guard", s.PID)
			}
			left, err := traffic.Clean()
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(left)
			}
			return a.printCleaned(left)
		},
	})
	return cmd
}

func hostTraffic() (*traffic.Snapshot, error) {
	dir, err := traffic.Dir()
	if err != nil {
		return nil, err
	}
	return traffic.Read(dir), nil
}

func (a *app) printCleaned(left map[string]ebpf.Left) error {
	for _, name := range slices.Sorted(maps.Keys(left)) {
		l := left[name]
		what := count(uint64(l.Filters), "filter")
		if l.Queues {
			what = "queues, " + what
		}
		fmt.Fprintf(a.out, "%s: %s taken off\n", name, what)
	}
	if len(left) == 0 {
		fmt.Fprintln(a.out, "nothing was left")
	}
	return nil
}

func (a *app) printHostTraffic(s *traffic.Snapshot) error {
	fmt.Fprintf(a.out, "told apart   %s\nshaping      %s\nguard        %s\nround trips  %s\n", s.Classify, s.Shape, s.Guard, s.Watch)
	bonds, _ := watchBonds(slog.New(slog.DiscardHandler))
	defer bonds.Close()
	a.printBonds([]*netJSON{{Bonds: bonds.Lines(), Warnings: bonds.Warnings()}}, []string{""})
	if s.PID != 0 {
		fmt.Fprintf(a.out, "by           process %d, since %s\n", s.PID, s.Since.Format("2006-01-02 15:04:05"))
	}
	var sections [][][]string
	for _, i := range s.Interfaces {
		if i.Fault != "" {
			fmt.Fprintf(a.out, "%s: %s\n", i.Name, i.Fault)
		}
		rows := [][]string{{strings.ToUpper(i.Name), "PEER", "CLASS", "IN", "FRAMES", "OUT", "FRAMES"}}
		rows = append(rows, a.countRows("all", i.Counts)...)
		sections = append(sections, append(rows, a.countRows("", i.ByPeer)...))
		if len(i.Queues) > 0 {
			rows := [][]string{{"QUEUE OF " + strings.ToUpper(i.Name), "SENT", "DROPPED FRAMES"}}
			for _, q := range i.Queues {
				rows = append(rows, []string{q.Class, a.size(q.Bytes), strconv.FormatUint(q.Drops, 10)})
			}
			sections = append(sections, rows)
		}
	}
	if len(s.Strangers) > 0 {
		rows := [][]string{{"DROPPED OF", "FRAMES", "BYTES"}}
		for _, x := range s.Strangers {
			rows = append(rows, []string{x.Addr, strconv.FormatUint(x.Packets, 10), a.size(x.Bytes)})
		}
		sections = append(sections, rows)
	}
	if len(s.Peers) > 0 {
		rows := [][]string{{"PEER", "CONNECTIONS", "ROUND TRIP", "MEAN", "LEAST", "SENT AGAIN"}}
		us := func(n int64) string { return fmt.Sprintf("%d us", n) }
		for _, p := range s.Peers {
			rows = append(rows, []string{p.Addr, strconv.FormatUint(p.Connections, 10), us(p.LastUS), us(p.MeanUS), us(p.MinUS), strconv.FormatUint(p.Retransmits, 10)})
		}
		sections = append(sections, rows)
	}
	for _, rows := range sections {
		fmt.Fprintln(a.out)
		if err := a.table(rows); err != nil {
			return err
		}
	}
	return nil
}

// countRows puts both directions of a peer and class on one line.
func (a *app) countRows(peer string, counts []traffic.Count) (rows [][]string) {
	type key struct{ peer, class string }
	both := map[key][2]traffic.Traffic{}
	var order []key
	for _, c := range counts {
		k := key{c.Peer, c.Class}
		t, seen := both[k]
		if !seen {
			order = append(order, k)
		}
		if c.Out {
			t[1] = c.Traffic
		} else {
			t[0] = c.Traffic
		}
		both[k] = t
	}
	for _, k := range order {
		t, who := both[k], k.peer
		if who == "" {
			who = peer
		}
		rows = append(rows, []string{"", who, k.class, a.size(t[0].Bytes), strconv.FormatUint(t[0].Packets, 10), a.size(t[1].Bytes), strconv.FormatUint(t[1].Packets, 10)})
	}
	return rows
}

// printNetwork is the section of varve stat about the network of the hosts of chunk servers, as their heartbeats tell it.
func (a *app) printNetwork(s *statusJSON) error {
	why := map[string]int{}
	head := append([]string{"NETWORK OF"}, "INTERFACES", "HEARTBEAT", "META", "GUEST", "REPLICATION", "REPAIR", "REBALANCE", "DROPPED", "SENT AGAIN", "SHAPING", "GUARD")
	rows := [][]string{head}
	for _, c := range s.Servers {
		switch {
		case c.Net == nil:
		case strings.HasPrefix(c.Net.Classify, "off"):
			why[strings.TrimPrefix(c.Net.Classify, "off: ")]++
		default:
			rows = append(rows, a.networkRow(c))
		}
	}
	for _, reason := range slices.Sorted(maps.Keys(why)) {
		fmt.Fprintf(a.out, "\nnetwork   not told apart on the hosts of %s: %s\n", count(uint64(why[reason]), "chunk server"), reason)
	}
	if len(rows) > 1 {
		fmt.Fprintln(a.out)
		if err := a.table(rows); err != nil {
			return err
		}
	}
	var all []*netJSON
	var of []string
	for _, c := range s.Servers {
		all, of = append(all, c.Net), append(of, c.Host+": ")
	}
	a.printBonds(all, of)
	return nil
}

func (a *app) networkRow(c serverJSON) []string {
	var names []string
	in, out := map[string]uint64{}, map[string]uint64{}
	for _, n := range c.Net.Counts {
		if !slices.Contains(names, n.Interface) {
			names = append(names, n.Interface)
		}
		if n.Out {
			out[n.Class] += n.Bytes
		} else {
			in[n.Class] += n.Bytes
		}
	}
	row := []string{id.ServerID(c.ID).String(), strings.Join(names, " ")}
	for _, class := range traffic.ClassNames[1:] {
		row = append(row, a.size(in[class])+" in, "+a.size(out[class])+" out")
	}
	again := uint64(0)
	for _, p := range c.Net.Peers {
		again += p.Retransmits
	}
	onOff := func(word string) string { return strings.SplitN(word, ":", 2)[0] }
	return append(row, count(c.Net.Dropped, "frame"), strconv.FormatUint(again, 10), onOff(c.Net.Shape), onOff(c.Net.Guard))
}

// netJSON is what stat --json says of the network of a chunk server's host.
type netJSON struct {
	Classify string         `json:"classify"`
	Shape    string         `json:"shape"`
	Guard    string         `json:"guard"`
	Watch    string         `json:"watch"`
	Counts   []netCountJSON `json:"counts"`
	Dropped  uint64         `json:"dropped_packets"`
	Bytes    uint64         `json:"dropped_bytes"`
	Peers    []netPeerJSON  `json:"peers"`
	Bonds    []string       `json:"bonds,omitempty"`
	Warnings []string       `json:"warnings,omitempty"`
}

type netCountJSON struct {
	Interface string `json:"interface"`
	Class     string `json:"class"`
	Out       bool   `json:"out"`
	Packets   uint64 `json:"packets"`
	Bytes     uint64 `json:"bytes"`
}

type netPeerJSON struct {
	Peer        string `json:"peer"`
	Connections uint64 `json:"connections"`
	RTT         uint32 `json:"rtt_us"`
	MinRTT      uint32 `json:"min_rtt_us"`
	Retransmits uint64 `json:"retransmits"`
}

func newNetJSON(n *msg.NetReport) *netJSON {
	if n == nil {
		return nil
	}
	j := &netJSON{n.Classify, n.Shape, n.Guard, n.Watch, []netCountJSON{}, n.DroppedPackets, n.DroppedBytes, []netPeerJSON{}, n.Bonds, n.Warnings}
	for _, c := range n.Counts {
		j.Counts = append(j.Counts, netCountJSON{c.Interface, c.Class, c.Out, c.Packets, c.Bytes})
	}
	for _, p := range n.Peers {
		j.Peers = append(j.Peers, netPeerJSON{p.Peer, p.Connections, p.RttUs, p.MinRttUs, p.Retransmits})
	}
	return j
}
