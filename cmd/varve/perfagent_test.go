package main

import (
	"slices"
	"testing"

	"github.com/spf13/cobra"
)

// TestHostFlag: hosts may stand together, or each with a flag of its own; none of them is lost.
func TestHostFlag(t *testing.T) {
	for _, args := range [][]string{{"--host", "a,b,c"}, {"--host", "a", "--host", "b", "--host=c"}, {"--host", "a,b", "--host", "c"}} {
		f, cmd := new(hostFlags), new(cobra.Command)
		f.add(cmd)
		if err := cmd.ParseFlags(args); err != nil || !slices.Equal(f.hosts, []string{"a", "b", "c"}) {
			t.Errorf("%q: hosts %q, %v", args, f.hosts, err)
		}
	}
}
