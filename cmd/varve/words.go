package main

import (
	"os"
	"slices"
	"strconv"
	"strings"

	"varve/internal/id"

	"github.com/mattn/go-isatty"
)

func contains(list []string, s string) bool { return slices.Contains(list, s) }

// joinWords is a list for people.
func joinWords(list []string) string { return strings.Join(list, ", ") }

func isTerminal(f *os.File) bool { return isatty.IsTerminal(f.Fd()) }

// parseChunk reads a chunk's id as it is printed: 16 hexadecimal digits.
func parseChunk(s string) (id.ChunkID, bool) {
	if len(s) != 16 {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 16, 64)
	return id.ChunkID(n), err == nil && n != 0
}

// parseServer reads a chunk server's name, such as cs3.
func parseServer(s string) (id.ServerID, bool) {
	digits, ok := strings.CutPrefix(s, "cs")
	n, err := strconv.ParseUint(digits, 10, 32)
	return id.ServerID(n), ok && err == nil && n != 0
}
