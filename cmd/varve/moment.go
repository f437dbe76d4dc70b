package main

import (
	"context"
	"math"
	"strconv"
	"strings"
	"time"

	"varve/internal/id"
	"varve/mds/history"
)

// moment is a place in the journal that a person names: an index, or a time that must be looked up.
type moment struct {
	index id.Index
	time  time.Time // zero: index counts
}

// timeLayouts are the ways to write a time; those without a zone are local.
var timeLayouts = []string{
	time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02 15:04:05.999999999", "2006-01-02T15:04", "2006-01-02 15:04", "2006-01-02",
}

// parseMoment reads an index, a time, or how long ago: "1234", "2026-03-01T12:00", "-10m", "10m ago", "now", "@1772366400" (seconds since 1970).
func parseMoment(s string, now time.Time) (moment, error) {
	if n, err := strconv.ParseUint(s, 10, 64); err == nil {
		return moment{index: id.Index(n)}, nil
	}
	if s == "now" {
		return moment{time: now}, nil
	}
	if unix, ok := strings.CutPrefix(s, "@"); ok {
		if n, err := strconv.ParseInt(unix, 10, 33); err == nil {
			return moment{time: time.Unix(n, 0)}, nil
		}
	}
	ago, isAgo := strings.CutSuffix(s, " ago")
	if !isAgo {
		ago, isAgo = strings.CutPrefix(s, "-")
	}
	if isAgo {
		if d, err := parseSpan(ago); err == nil && d >= 0 {
			return moment{time: now.Add(-d)}, nil
		}
	}
	for _, l := range timeLayouts {
		if t, err := time.ParseInLocation(l, s, now.Location()); err == nil {
			if t.Before(time.Unix(0, math.MinInt64)) || t.After(time.Unix(0, math.MaxInt64)) {
				return moment{}, usagef("%q is further away than times in a journal can be: want a year from 1678 to 2261", s)
			}
			return moment{time: t}, nil
		}
	}
	return moment{}, usagef("%q is no index and no time: want such as 1234, 2026-03-01T12:00, 2026-03-01T12:00:00Z, @1772366400 or -10m", s)
}

// parseSpan reads a duration; unlike time.ParseDuration it knows days.
func parseSpan(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		if err != nil {
			return 0, usagef("%q is no duration: want such as 90s, 10m, 24h or 7d", s)
		}
		return time.Duration(n) * 24 * time.Hour, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, usagef("%q is no duration: want such as 90s, 10m, 24h or 7d", s)
	}
	return d, nil
}

// in returns the index that m means in the journal.
func (m moment) in(ctx context.Context, src history.Source) (id.Index, error) {
	if m.time.IsZero() {
		return m.index, nil
	}
	at, err := src.FindTime(ctx, m.time.UnixNano())
	if err != nil || at > 0 {
		return at, err
	}
	first, _, err := src.Bounds(ctx)
	if err != nil {
		return 0, err
	}
	return 0, usagef("the journal's first event, %d, is later than %s", first, m.time.Format(time.RFC3339))
}
