package main

import (
	"fmt"
	"strings"
	"time"

	"varve/mds/history"
)

// bars are the heights of a sparkline.
var bars = []rune(" ▁▂▃▄▅▆▇█")

func sparkline(values []uint64) string {
	most := uint64(1)
	for _, v := range values {
		most = max(most, v)
	}
	var b strings.Builder
	for _, v := range values {
		i := int(v * uint64(len(bars)-1) / most)
		if v > 0 {
			i = max(i, 1)
		}
		b.WriteRune(bars[i])
	}
	return b.String()
}

func (a *app) printStats(st *history.Stats, most int) error {
	span := time.Duration(st.To - st.From)
	rate := "at once"
	if span > 0 {
		rate = fmt.Sprintf("in %s, %.3g a second", span.Round(time.Second), float64(st.Events)/span.Seconds())
	}
	fmt.Fprintf(a.out, "%s, index %d to %d, %s: %s\n", count(st.Events, "event"), st.First, st.Last, a.size(st.Bytes), rate)
	fmt.Fprintf(a.out, "%s to %s; replay reaches back to index %d", stamp(st.From), stamp(st.To), st.Replay)
	if st.Gaps > 0 {
		fmt.Fprintf(a.out, "; %s", count(uint64(st.Gaps), "hole"))
	}
	fmt.Fprintf(a.out, "\n\n%s  (a mark is %s)\n", sparkline(st.Rate), time.Duration(st.SpanNano).Round(time.Millisecond))
	for _, part := range []struct {
		head string
		list []history.Count
		most int
	}{{"kind", st.Kinds, len(st.Kinds)}, {"client", st.Clients, most}, {"directory", st.Dirs, most}} {
		if len(part.list) == 0 {
			continue
		}
		fmt.Fprintln(a.out)
		rows := [][]string{{part.head, "events", "share", "bytes"}}
		for _, c := range part.list[:min(len(part.list), max(part.most, 0))] {
			n := fmt.Sprint(c.Events)
			if c.About {
				n = "≤" + n
			}
			rows = append(rows, []string{c.Name, n, fmt.Sprintf("%.1f%%", 100*float64(c.Events)/float64(max(st.Events, 1))), a.size(c.Bytes)})
		}
		if err := a.table(rows); err != nil {
			return err
		}
		if rest := len(part.list) - len(rows) + 1; rest > 0 {
			fmt.Fprintf(a.out, "and %d more\n", rest)
		}
	}
	return nil
}
