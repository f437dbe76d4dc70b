package lin

import (
	"math"
	"os"
	"testing"

	"github.com/anishathalye/porcupine"

	"varve/internal/fserr"
)

// at returns an operation called at call and answered at end; 0: never.
func at(call, end int64, in input, out output) porcupine.Operation {
	in.id = call
	if end == 0 {
		end, out.unknown = math.MaxInt64, true
	}
	return porcupine.Operation{ClientId: int(call), Input: &in, Call: call, Output: &out, Return: end}
}

func TestModel(t *testing.T) {
	mk := input{kind: opMake, a: 0, value: 0o644}
	stat := func(a int) input { return input{kind: opStat, a: a} }
	file := func(ino int64, nlink uint32) output { return output{ino: ino, perm: 0o644, nlink: nlink} }
	missing := output{code: fserr.NotExist}
	for _, c := range []struct {
		name    string
		ok      bool
		history []porcupine.Operation
	}{
		{"made, seen", true, []porcupine.Operation{at(1, 2, mk, output{ino: 9}), at(3, 4, stat(0), file(9, 1))}},
		{"made, not seen afterwards", false, []porcupine.Operation{at(1, 2, mk, output{ino: 9}), at(3, 4, stat(0), missing)}},
		{"not seen meanwhile", true, []porcupine.Operation{at(1, 5, mk, output{ino: 9}), at(3, 4, stat(0), missing)}},
		{"seen, then not", false, []porcupine.Operation{at(1, 9, mk, output{ino: 9}), at(2, 3, stat(0), file(9, 1)), at(4, 5, stat(0), missing)}},
		{"of two exclusive creates both won", false, []porcupine.Operation{at(1, 5, mk, output{ino: 9}), at(2, 6, mk, output{ino: 10})}},
		{"unknown create never happened", true, []porcupine.Operation{at(1, 0, mk, output{}), at(3, 4, stat(0), missing)}},
		{"unknown create took effect late", true, []porcupine.Operation{at(1, 0, mk, output{}), at(3, 4, stat(0), missing), at(5, 6, stat(0), file(7, 1))}},
		{"unknown create is one inode", false, []porcupine.Operation{at(1, 0, mk, output{}), at(3, 4, stat(0), file(7, 1)), at(5, 6, stat(0), file(8, 1))}},
		{"rename is one step", false, []porcupine.Operation{
			at(1, 2, mk, output{ino: 9}), at(3, 20, input{kind: opRename, a: 0, b: 1}, output{}),
			at(5, 6, stat(0), missing), at(7, 8, stat(1), missing)}},
		{"link raises nlink of both", true, []porcupine.Operation{
			at(1, 2, mk, output{ino: 9}), at(3, 4, input{kind: opLink, ino: 9, a: 1}, output{}), at(5, 6, stat(0), file(9, 2))}},
		{"stale nlink", false, []porcupine.Operation{
			at(1, 2, mk, output{ino: 9}), at(3, 4, input{kind: opLink, ino: 9, a: 1}, output{}), at(5, 6, stat(0), file(9, 1))}},
		{"stale mode", false, []porcupine.Operation{
			at(1, 2, mk, output{ino: 9}), at(3, 4, input{kind: opChmod, ino: 9, value: 0o600}, output{}), at(5, 6, stat(0), file(9, 1))}},
		{"list misses a name", false, []porcupine.Operation{at(1, 2, mk, output{ino: 9}), at(3, 4, input{kind: opList}, output{})}},
		{"list", true, []porcupine.Operation{at(1, 2, mk, output{ino: 9}), at(3, 4, input{kind: opList}, output{list: [maxNames]int64{9}})}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			err := check(c.history, dir)
			if (err == nil) != c.ok {
				t.Errorf("check: %v, want it to pass: %v", err, c.ok)
			}
			if files, _ := os.ReadDir(dir); !c.ok && len(files) != 2 { // for a browser and as text
				t.Errorf("%d files show what is wrong, want 2", len(files))
			}
		})
	}
}
