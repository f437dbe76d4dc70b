// Package settings is the table of the cluster's settings: what keys there are, what their values mean, which hold
// where nothing was set, and what a person is told about them.
//
// A setting is kept in the state as the text that was set (event ConfigSet), "" for one that was never set or was taken back.
// Check says whether a text may be set. The parsers (Age, Bytes) read what Check let through; what an older or newer version let
// through and this one does not understand, its reader treats as not set.
package settings

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"varve/mds/state"
)

// The keys.
const (
	// Replicas is the default policy of files, NORM:MIN.
	Replicas = state.ConfigReplicas
	// RepairGrace is how long a chunk server may be away before its replicas are given up.
	RepairGrace = "repair.grace"
	// RepairLastGrace is how long it may be away where chunks have one live replica left.
	RepairLastGrace = "repair.grace.last"
	// RepairRate is what all rebuilds of the cluster together may copy in a second, and RepairServerRate those to one server.
	RepairRate       = "repair.rate"
	RepairServerRate = "repair.rate.server"
	// RepairRebuilds is how many rebuilds there may be at once, and RepairServerRebuilds how many to or from one server.
	RepairRebuilds       = "repair.rebuilds"
	RepairServerRebuilds = "repair.rebuilds.server"
	// SessionGrace is how long a session whose client is not heard of is kept for it, while nobody else wants what it holds.
	SessionGrace = "session.grace"
	// SlowFactor is how many times what the others take makes a chunk server slow.
	SlowFactor = "slow.factor"
	// FillMargin is the part of each chunk server's disk that no new chunk may use, in percent.
	FillMargin = "mds.alloc.fill_margin"
	// CertLifetime is how long certificates are valid that are given from then on.
	CertLifetime = "security.certificate.lifetime"
	// JournalAge is how long a metadata server keeps events in its journal.
	JournalAge = "journal.retention.age"
	// JournalBytes is how much room the journal of one metadata server may take up.
	JournalBytes = "journal.retention.bytes"
	// MDNS says whether metadata servers answer multicast questions for them.
	MDNS = "net.mdns"
)

// Setting is one line of the table.
type Setting struct {
	Key     string
	Default string // what holds where nothing was set; "" where Help says what that means
	Help    string // one sentence, with an example

	check func(value string) error
}

// table has every setting, sorted by key.
var table = []Setting{
	{Key: JournalAge, Help: "drop events from the journal that are older, such as 90d; 0 or empty keeps them for ever",
		check: func(v string) error { _, err := Age(v); return err }},
	{Key: JournalBytes, Help: "drop the oldest events when a server's journal takes up more, such as 50G; 0 or empty sets no limit",
		check: checkBytes},
	{Key: FillMargin, Default: "1", Help: "percent of each disk that is kept for the chunks that are there: below it new ones get no space, such as 5",
		check: func(v string) error { _, err := Percent(v); return err }},
	{Key: MDNS, Default: "off", Help: "whether metadata servers answer multicast questions (mDNS) on the link that has their address, so that a new node finds them: on or off",
		check: checkSwitch},
	{Key: DataTLS, Default: "off", Help: "on: data is encrypted on the way between mounts and chunk servers, and among those; connections made from then on",
		check: checkSwitch},
	{Key: RepairGrace, Default: "1m", Help: "give up the replicas of a chunk server that is away for longer, such as 10m",
		check: checkGrace},
	{Key: RepairLastGrace, Default: "15s", Help: "give up its replicas sooner where a chunk has one live replica left, such as 30s",
		check: checkGrace},
	{Key: RepairRate, Help: "bytes a second that repair and moves copy in the whole cluster at most, such as 1G; empty: what the servers may together",
		check: checkRate},
	{Key: RepairServerRate, Default: "128M", Help: "bytes a second that repair and moves copy to one chunk server at most, such as 64M",
		check: checkRate},
	{Key: RepairRebuilds, Help: "chunks that are rebuilt at once in the whole cluster, such as 16; empty: as many as there are chunk servers",
		check: func(v string) error { return checkCount(v, 1, maxRebuilds) }},
	{Key: RepairServerRebuilds, Default: "2", Help: "chunks that are rebuilt at once to or from one chunk server, such as 4",
		check: func(v string) error { return checkCount(v, 1, maxServerRebuilds) }},
	{Key: Replicas, Default: "3:2", Help: "replicas that a new chunk gets and must have, as NORM:MIN, such as 3:2",
		check: checkReplicas},
	{Key: CertLifetime, Default: "30d", Help: "how long a node's certificate is valid; it is renewed after two thirds, and who is off for longer needs auth-node, such as 90d",
		check: checkLifetime},
	{Key: SessionGrace, Default: "10m", Help: "how long a mount that is cut off keeps its open files if nobody else wants them, such as 1h; 0: not beyond its lease",
		check: func(v string) error { _, err := Age(v); return err }},
	{Key: SlowFactor, Default: "6", Help: "a chunk server is slow, and gets no new data and few reads, when it takes so many times what others take, such as 10; 0: never",
		check: func(v string) error { return checkCount(v, 0, 1000) }},
}

// Limits of settings.
const (
	maxRebuilds       = 4096
	maxServerRebuilds = 64
	minRate           = 1 << 20
)

// minJournalBytes is the smallest limit on a journal: below it every checkpoint would drop all history.
const minJournalBytes = 1 << 20

// All returns every setting, sorted by key.
func All() []Setting { return append([]Setting(nil), table...) }

// Find returns the setting of a key.
func Find(key string) (Setting, bool) {
	for _, s := range table {
		if s.Key == key {
			return s, true
		}
	}
	return nodeSetting(key)
}

// Check reports why value cannot be set for key, in words for who set it. An empty value takes a setting back and is always right.
func Check(key, value string) error {
	s, ok := Find(key)
	if !ok {
		keys := make([]string, 0, len(table))
		for _, s := range table {
			keys = append(keys, s.Key)
		}
		return fmt.Errorf("setting %q is not known: want one of %s", key, strings.Join(keys, ", "))
	}
	if value == "" {
		return nil
	}
	if err := s.check(value); err != nil {
		return fmt.Errorf("setting %s: %w", key, err)
	}
	return nil
}

func checkReplicas(v string) error {
	if _, ok := state.ParsePolicy(v); !ok {
		return fmt.Errorf("replicas %q: want NORM:MIN with 1 <= MIN <= NORM <= %d, such as 3:2", v, state.MaxReplicas)
	}
	return nil
}

func checkGrace(v string) error {
	d, err := Age(v)
	if err == nil && d == 0 {
		err = fmt.Errorf("age %q: want more than 0", v)
	}
	return err
}

// Bounds of CertLifetime: below the least, clocks that differ would end certificates.
const (
	minLifetime = time.Hour
	maxLifetime = 10 * 365 * 24 * time.Hour
)

func checkLifetime(v string) error {
	d, err := Age(v)
	if err == nil && (d < minLifetime || d > maxLifetime) {
		err = fmt.Errorf("age %q: want 1h to 3650d", v)
	}
	return err
}

func checkRate(v string) error {
	n, err := Bytes(v)
	if err == nil && n < minRate {
		err = fmt.Errorf("rate %q: want 1M or more", v)
	}
	return err
}

// Count reads a whole number. "" is 0.
func Count(v string) (int, error) {
	if v == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(v, 10, 31)
	if err != nil {
		return 0, fmt.Errorf("number %q: want a whole number", v)
	}
	return int(n), nil
}

func checkCount(v string, least, most int) error {
	n, err := Count(v)
	if err == nil && (n < least || n > most) {
		err = fmt.Errorf("number %q: want %d to %d", v, least, most)
	}
	return err
}

// On reads a switch. "" is off.
func On(v string) bool { return v == "on" }

func checkSwitch(v string) error {
	if v != "on" && v != "off" {
		return fmt.Errorf("switch %q: want on or off", v)
	}
	return nil
}

// FillMarginPercent is what FillMargin is where nothing was set.
const FillMarginPercent = 1

// maxPercent is the largest margin.
const maxPercent = 90

// Percent reads a number of percent.
func Percent(v string) (int, error) {
	n, err := strconv.ParseUint(v, 10, 8)
	if err != nil || n > maxPercent {
		return 0, fmt.Errorf("percent %q: want a whole number from 0 to %d", v, maxPercent)
	}
	return int(n), nil
}

func checkBytes(v string) error {
	n, err := Bytes(v)
	if err == nil && n > 0 && n < minJournalBytes {
		err = fmt.Errorf("size %q: want 1M or more, or 0 for no limit", v)
	}
	return err
}

// ageUnits are the units of Age; "ms" stands before "m" and "s".
var ageUnits = []struct {
	name string
	unit time.Duration
}{
	{"ms", time.Millisecond}, {"s", time.Second}, {"m", time.Minute}, {"h", time.Hour}, {"d", 24 * time.Hour}, {"w", 7 * 24 * time.Hour},
}

// Age reads numbers with the units ms, s, m, h, d and w, such as 90d or 1h30m. "" and "0" are 0.
func Age(v string) (time.Duration, error) {
	wrong := fmt.Errorf("age %q: want whole numbers with the units ms, s, m, h, d or w, such as 90d or 1h30m", v)
	if v == "" || v == "0" {
		return 0, nil
	}
	var sum time.Duration
	for rest := v; rest != ""; {
		digits := len(rest) - len(strings.TrimLeft(rest, "0123456789"))
		n, err := strconv.ParseInt(rest[:digits], 10, 64)
		if err != nil {
			return 0, wrong
		}
		rest = rest[digits:]
		unit := time.Duration(0)
		for _, u := range ageUnits {
			if after, ok := strings.CutPrefix(rest, u.name); ok {
				unit, rest = u.unit, after
				break
			}
		}
		if unit == 0 {
			return 0, wrong
		}
		if n > int64((math.MaxInt64-sum)/unit) {
			return 0, fmt.Errorf("age %q: want at most 292 years", v)
		}
		sum += time.Duration(n) * unit
	}
	return sum, nil
}

// Bytes reads a number of bytes, or of KiB, MiB, GiB, TiB or PiB with the letter K, M, G, T or P (or k, KiB and so on). "" and
// "0" are 0. KB and its like, which others read as 1000, are refused.
func Bytes(v string) (int64, error) {
	if v == "" {
		return 0, nil
	}
	digits := len(v) - len(strings.TrimLeft(v, "0123456789"))
	n, err := strconv.ParseInt(v[:digits], 10, 64)
	unit := strings.ToUpper(v[digits:])
	shift := 0
	if err == nil && unit != "" && unit != "B" {
		i := strings.Index("KMGTP", unit[:1])
		if i < 0 || unit[1:] != "" && unit[1:] != "IB" {
			err = strconv.ErrSyntax
		}
		shift = 10 * (i + 1)
	}
	if err != nil {
		return 0, fmt.Errorf("size %q: want a whole number of bytes, or one with K, M, G, T or P, such as 50G", v)
	}
	if n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("size %q: want at most %d bytes", v, int64(math.MaxInt64))
	}
	return n << shift, nil
}
