package settings

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// The keys of what daemons do with the network of their hosts (package internal/traffic).
const (
	// NetClassify has frames told apart by kind of traffic, and counted.
	NetClassify = "net.classify"
	// NetShape has each interface's way out shared among kinds of traffic.
	NetShape = "net.shape"
	// NetShapeLink is the speed of a link, where the kernel does not know it, or it is not to be filled.
	NetShapeLink = "net.shape.link"
	// netShapeClass begins the keys of what a kind of traffic has of a link.
	netShapeClass = NetShape + "."
	// NetGuard has what comes to varve's ports from strangers dropped, and NetGuardAllow are the networks that are none beside the servers.
	NetGuard      = "net.guard"
	NetGuardAllow = "net.guard.allow"
	// netPrefix begins all of them.
	netPrefix = "net."
)

// Share is what a kind of traffic has of a link, in percent.
type Share struct {
	Min, Max int // guaranteed; at most, of what others leave
	Urgency  uint8
}

// NetClasses are the kinds of traffic that have a share, most urgent first. The last one is that of rebalancing and scrubbing.
var NetClasses = []string{"heartbeat", "meta", "guest", "replication", "repair", "rebalance"}

var netShares = []struct {
	set  string
	what string
}{
	{"min 5% max 100%", "heartbeats"}, {"min 5% max 100%", "metadata"}, {"min 40% max 100%", "reads and writes of clients"},
	{"min 20% max 100%", "what chunk servers forward to one another"}, {"min 10% max 100%", "rebuilds"}, {"min 5% max 100%", "moves and the scrub"},
}

// urgency is who gets first what others leave: heartbeats with metadata, guests, replication, repair, the rest.
func urgency(class int) uint8 { return uint8(max(class-1, 0)) }

const (
	minLink    = 1_000_000         // bits a second
	maxLink    = 4_000_000_000_000 // as much as HTB can say
	maxAllowed = 1024              // networks
)

func init() {
	table = append(table,
		Setting{Key: NetClassify, Default: "auto", Help: "tell kinds of traffic apart on the interfaces of servers and mounts, and count them: auto (not on loopback), on or off",
			check: func(v string) error { return checkWord(v, "auto", "on", "off") }},
		Setting{Key: NetGuard, Default: "off", Help: "drop what comes to the ports of servers from who is no server and not in net.guard.allow: on or off",
			check: func(v string) error { return checkWord(v, "on", "off") }},
		Setting{Key: NetGuardAllow, Help: "networks of mounts, new servers and administrators, such as 10.0.0.0/8,fd00::/8; without them the guard stays off",
			check: func(v string) error { _, err := Networks(v); return err }},
		Setting{Key: NetShape, Default: "off", Help: "share each interface's way out among kinds of traffic: on or off",
			check: func(v string) error { return checkWord(v, "on", "off") }},
		Setting{Key: NetShapeLink, Help: "bits a second of each interface, such as 10G; empty: what the kernel says",
			check: func(v string) error { _, err := BitRate(v); return err }},
	)
	defer func() { slices.SortFunc(table, func(a, b Setting) int { return strings.Compare(a.Key, b.Key) }) }()
	for i, class := range NetClasses {
		table = append(table, Setting{Key: netShapeClass + class, Default: netShares[i].set,
			Help: "what " + netShares[i].what + " have of a link: min 10% max 50%", check: func(v string) error { _, err := parseShare(v); return err }})
	}
}

func checkWord(v string, want ...string) error {
	for _, w := range want {
		if v == w {
			return nil
		}
	}
	return fmt.Errorf("%q: want one of %s", v, strings.Join(want, ", "))
}

// parseShare reads "min 40% max 100%"; what is not said is 1 % and 100 %.
func parseShare(v string) (Share, error) {
	wrong := fmt.Errorf("share %q: want min N%% max N%%, from 1 to 100", v)
	s := Share{1, 100, 0}
	words := strings.Fields(v)
	if len(words) == 0 || len(words)%2 != 0 || len(words) > 4 {
		return s, wrong
	}
	for i := 0; i < len(words); i += 2 {
		n, err := strconv.ParseUint(strings.TrimSuffix(words[i+1], "%"), 10, 8)
		if err != nil || n < 1 || n > 100 || i == 2 && words[0] == words[2] {
			return s, wrong
		}
		switch words[i] {
		case "min":
			s.Min = int(n)
		case "max":
			s.Max = int(n)
		default:
			return s, wrong
		}
	}
	if s.Min > s.Max {
		return s, fmt.Errorf("share %q: the least is more than the most", v)
	}
	return s, nil
}

// Shares returns what each of NetClasses has, by what was set. If it is more than a link has, it fails.
func Shares(set func(key string) string) ([]Share, error) {
	out := make([]Share, len(NetClasses))
	sum := 0
	for i, class := range NetClasses {
		s, err := parseShare(set(netShapeClass + class))
		if err != nil { // not set, or by another version
			s, _ = parseShare(netShares[i].set)
		}
		s.Urgency = urgency(i)
		out[i] = s
		sum += s.Min
	}
	if sum > 99 {
		return nil, fmt.Errorf("%d %% of a link are guaranteed by %s*, at most 99 can be", sum, netShapeClass)
	}
	return out, nil
}

// Networks splits networks and addresses with commas between them.
func Networks(v string) ([]string, error) {
	var out []string
	for _, word := range strings.Split(v, ",") {
		if word = strings.TrimSpace(word); word == "" {
			continue
		}
		if !isNetwork(word) {
			return nil, fmt.Errorf("network %q: want one such as 10.0.0.0/8 or fd00::/8, or an address", word)
		}
		out = append(out, word)
	}
	if len(out) > maxAllowed {
		return nil, fmt.Errorf("%d networks, at most %d", len(out), maxAllowed)
	}
	return out, nil
}

// isNetwork reports whether a word is an address, or a network with its length.
func isNetwork(word string) bool {
	addr, length, has := strings.Cut(word, "/")
	bits := uint64(32)
	if strings.Contains(addr, ":") {
		bits = 128
	}
	if n, err := strconv.ParseUint(length, 10, 8); has && (err != nil || n > bits) {
		return false
	}
	if bits == 128 {
		return isV6(addr)
	}
	parts := strings.Split(addr, ".")
	for _, part := range parts {
		if n, err := strconv.ParseUint(part, 10, 8); err != nil || strconv.FormatUint(n, 10) != part {
			return false
		}
	}
	return len(parts) == 4
}

func isV6(addr string) bool {
	before, after, short := strings.Cut(addr, "::")
	groups := 0
	for _, half := range []string{before, after} {
		if half == "" {
			continue
		}
		for _, g := range strings.Split(half, ":") {
			if _, err := strconv.ParseUint(g, 16, 16); err != nil || len(g) > 4 {
				return false
			}
			groups++
		}
	}
	return groups == 8 && !short || groups < 8 && short
}

// BitRate reads a number of bits a second, or of thousands, millions or thousands of millions with K, M or G. "" is 0.
func BitRate(v string) (uint64, error) {
	if v == "" {
		return 0, nil
	}
	unit := uint64(1)
	number := v
	if i := strings.Index("KMG", strings.ToUpper(v[len(v)-1:])); i >= 0 {
		number = v[:len(v)-1]
		for range i + 1 {
			unit *= 1000
		}
	}
	n, err := strconv.ParseUint(number, 10, 63)
	if err != nil || n > maxLink/unit || n*unit < minLink {
		return 0, fmt.Errorf("rate %q: want bits a second from 1M to 4000G, such as 10G", v)
	}
	return n * unit, nil
}

// IsNet reports whether a setting is one of these.
func IsNet(key string) bool { return strings.HasPrefix(key, netPrefix) }
