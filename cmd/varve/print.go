package main

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
)

// printJSON prints v as indented JSON.
func (a *app) printJSON(v any) error {
	enc := json.NewEncoder(a.out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// size returns a number of bytes for people, or as it is with --bytes.
func (a *app) size(n uint64) string {
	if a.bytes {
		return strconv.FormatUint(n, 10)
	}
	return humanize.IBytes(n)
}

// age returns a span for people, or milliseconds with --bytes.
func (a *app) age(d time.Duration) string {
	switch {
	case a.bytes:
		return strconv.FormatInt(d.Milliseconds(), 10)
	case d < time.Second:
		return "now"
	case d < time.Minute:
		return d.Truncate(time.Second).String() + " ago"
	}
	return humanize.RelTime(time.Now().Add(-d), time.Now(), "ago", "from now")
}

// count returns n things in words: "1 chunk", "2 chunks".
func count(n uint64, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return humanize.Comma(int64(n)) + " " + thing + "s"
}

// table prints rows in columns, the first row being the heads.
func (a *app) table(rows [][]string) error {
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		if _, err := fmt.Fprintln(w, strings.TrimRight(strings.Join(r, "\t"), "\t")); err != nil {
			return err
		}
	}
	return w.Flush()
}

// stamp returns a recorded time for people.
func stamp(ns int64) string { return time.Unix(0, ns).Format("2006-01-02 15:04:05.000000") }
