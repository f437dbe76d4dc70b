package main

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"varve/internal/id"
	"varve/internal/wire/msg"
)

// maxRange bounds the nodes that one range names.
const maxRange = 4096

var (
	rangeOf  = regexp.MustCompile(`^(.*?)([0-9]+)-([0-9]+)$`)
	serverID = regexp.MustCompile(`^(?:cs)?([0-9]+)$`)
)

// expandNodes returns the names that args stand for: names apart by commas, with ranges such as vm1-4 or vm01-12. known says whether a word is a
// name as it is, although it looks like a range.
func expandNodes(args []string, known func(string) bool) ([]string, error) {
	var out []string
	add := func(name string) {
		if !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	for _, arg := range args {
		for _, word := range strings.Split(arg, ",") {
			m := rangeOf.FindStringSubmatch(word)
			if word == "" {
				return nil, usagef("%q: a name is missing between commas", arg)
			}
			if m == nil || known(word) {
				add(word)
				continue
			}
			from, err1 := strconv.Atoi(m[2])
			to, err2 := strconv.Atoi(m[3])
			if err1 != nil || err2 != nil || to < from || to-from >= maxRange {
				return nil, usagef("%q: want a range from low to high of at most %d, such as vm1-4", word, maxRange)
			}
			width := 0
			if strings.HasPrefix(m[2], "0") {
				width = len(m[2])
			}
			for n := from; n <= to; n++ {
				add(fmt.Sprintf("%s%0*d", m[1], width, n))
			}
		}
	}
	return out, nil
}

// serversOf returns the chunk servers that args name, by id: servers (cs3 or 3), hosts with all their servers, ranges of both, and ALL.
func serversOf(st *msg.StatusReply, args []string) ([]uint32, error) {
	var out []uint32
	named := func(word string) []uint32 {
		var found []uint32
		m := serverID.FindStringSubmatch(word)
		for _, s := range st.Servers {
			if s.State == stateRetired {
				continue
			}
			if m != nil && m[1] == strconv.FormatUint(uint64(s.Server), 10) || s.Host == word || word == "ALL" {
				found = append(found, s.Server)
			}
		}
		return found
	}
	words, err := expandNodes(args, func(word string) bool { return len(named(word)) > 0 })
	if err != nil {
		return nil, err
	}
	for _, word := range words {
		found := named(word)
		if len(found) == 0 {
			return nil, usagef("%s is no chunk server and no host of one; varve list-services lists them", word)
		}
		out = append(out, found...)
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// namesOf are the servers for people.
func namesOf(list []uint32) string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = id.ServerID(s).String()
	}
	return joinWords(out)
}
