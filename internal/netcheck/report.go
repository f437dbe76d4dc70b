package netcheck

import "time"

// Report is what Run found out.
type Report struct {
	Members []Node `json:"members"`
	Pairs   []Pair `json:"pairs"`
	// Possible is how many pairs there are; those that Pairs lacks were left out.
	Possible int `json:"possible_pairs"`
	// Rate is the limit of what a test sent, in bytes/s; 0: none.
	Rate     uint64    `json:"rate_limit_bytes_per_s,omitempty"`
	Problems []Problem `json:"problems"`
	TookMS   int64     `json:"took_ms"`
}

// Node is one member.
type Node struct {
	Name      string   `json:"name"` // mds1, cs3, or this host
	Addr      string   `json:"addr"`
	Host      string   `json:"host,omitempty"`
	Failed    string   `json:"failed,omitempty"` // why nothing, or not all, is known of it
	Interface string   `json:"interface,omitempty"`
	MTU       uint32   `json:"mtu,omitempty"`
	SpeedMbit uint32   `json:"speed_mbit,omitempty"`
	Duplex    string   `json:"duplex,omitempty"`
	State     string   `json:"state,omitempty"`
	Warnings  []string `json:"warnings,omitempty"`
	Off       string   `json:"warnings_off,omitempty"` // why there are none
	Apart     string   `json:"apart,omitempty"`        // why nothing was measured with it, though nothing is wrong
	// Clock says that ClockNS is known: how much its clock is ahead of the one of this host, give or take DoubtNS.
	Clock   bool  `json:"clock_known"`
	ClockNS int64 `json:"clock_ahead_ns"`
	DoubtNS int64 `json:"clock_doubt_ns"`
}

// Pair is one way that was measured.
type Pair struct {
	From        string  `json:"from"`
	To          string  `json:"to"`
	BytesPerS   float64 `json:"bytes_per_s"`
	LeastUS     float64 `json:"latency_least_us"`
	MedianUS    float64 `json:"latency_median_us"`
	P99US       float64 `json:"latency_p99_us"`
	TCP         bool    `json:"tcp_info"` // Segments and Retransmits are known
	Segments    uint64  `json:"segments"`
	Retransmits uint64  `json:"retransmitted"`
	PathMTU     uint32  `json:"path_mtu,omitempty"`
	LocalMTU    uint32  `json:"interface_mtu,omitempty"` // where the path begins
	MTUBy       string  `json:"path_mtu_by,omitempty"`
	Hole        bool    `json:"larger_vanish,omitempty"`
	Failed      string  `json:"failed,omitempty"`
	Verdict     Verdict `json:"verdict"`

	from, to int // indices of Members
	apart    int // index + 1 of the one that may not take part
}

// Verdict is what is to be thought of something.
type Verdict string

// The verdicts.
const (
	OK   Verdict = "ok"
	Warn Verdict = "warn"
	Bad  Verdict = "bad"
)

// Problem is one thing that is not as it should be.
type Problem struct {
	Verdict Verdict `json:"verdict"`
	Where   string  `json:"where"` // a member, or "cs1 -> cs2"
	What    string  `json:"what"`
	Do      string  `json:"do"`
}

// Worst returns the worst verdict.
func (r *Report) Worst() Verdict {
	worst := OK
	for _, p := range r.Problems {
		if p.Verdict == Bad {
			return Bad
		}
		worst = Warn
	}
	return worst
}

// loss returns which part of what was sent had to be sent again.
func (p *Pair) loss() float64 {
	if !p.TCP || p.Segments == 0 {
		return 0
	}
	return float64(p.Retransmits) / float64(p.Segments)
}

func (n *Node) ahead() time.Duration { return time.Duration(n.ClockNS) }
