// Package rules holds what every file of varve must keep to, as a table: which room may import which,
// what a pure room may not import, where unsafe may be, that every package says what it is for, and
// how large a file may be. The test of this package reads the whole tree and enforces it.
//
// The table repeats section 12 of ARCHITECTURE.md; change both together.
package rules

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// module is the name of the module in go.mod.
const module = "varve"

// maxFileBytes bounds any file of the tree.
const maxFileBytes = 1_000_000

// room is a directory with what it may import of varve's own packages. A package belongs to the room
// with the longest matching directory.
type room struct {
	dir  string
	pure bool
	may  []string // directories; a trailing /... includes those below; "all" is everything
	not  []string // exceptions from may
	test []string // what tests may import too
}

var pureInternal = []string{"internal/id", "internal/fserr", "internal/invariant", "internal/chunk", "internal/wire/msg", "internal/planted"}

// clientSide is what a server never holds: it would talk to itself.
var clientSide = []string{"internal/client", "internal/rules"}

var rooms = []room{
	{dir: "internal/id", pure: true, may: pureInternal},
	{dir: "internal/fserr", pure: true, may: pureInternal},
	{dir: "internal/invariant", pure: true, may: pureInternal},
	{dir: "internal/chunk", pure: true, may: pureInternal},
	{dir: "internal/wire/msg", pure: true},
	{dir: "internal/planted", pure: true},
	{dir: "internal/wire", may: []string{"internal/id", "internal/fserr", "internal/chunk", "internal/wire/msg", "internal/disk", "internal/pki"}},
	{dir: "internal/bond", may: []string{"internal/wire", "ebpf"}},
	{dir: "internal/planes", may: []string{"internal/wire"}},
	{dir: "internal/pki", may: []string{"internal/id"}},
	{dir: "internal/records", may: []string{"internal/invariant", "iouring/reactor"}},
	{dir: "internal/secure", may: append([]string{"internal/wire", "internal/pki", "internal/records", "internal/secure/..."}, pureInternal...)},
	{dir: "internal/traffic", may: append([]string{"internal/planes", "internal/wire", "mds/settings", "ebpf"}, pureInternal...)},
	{dir: "internal/latency"},
	{dir: "internal/disk"},
	{dir: "internal/boottime"},
	{dir: "internal/rwlock"},
	{dir: "internal/waits"},
	{dir: "internal/local", may: append([]string{"internal/boottime"}, pureInternal...)},
	{dir: "internal/ledger", may: pureInternal},
	{dir: "internal/capture", may: pureInternal},
	{dir: "internal/discover", may: []string{"internal/id"}, test: []string{"test/netns"}},
	{dir: "internal/netcheck", may: []string{"internal/wire", "internal/wire/msg", "internal/fserr"}, test: []string{"internal/id", "test/netns"}},
	{dir: "internal/nbd", may: []string{"internal/nbd/..."}},
	{dir: "internal/nbd/nbdserver", may: []string{"internal/nbd", "internal/block", "internal/fserr", "iouring/reactor"}},
	{dir: "internal/block", may: []string{"internal/block/...", "internal/hot", "internal/fserr", "internal/disk", "iouring/reactor"}},
	{dir: "internal/readcache", may: append([]string{"internal/disk"}, pureInternal...)},
	{dir: "internal/vhost", may: []string{"internal/block", "internal/fserr", "iouring/reactor"}},
	{dir: "internal/hot", may: []string{"iouring/reactor"}},
	{dir: "internal/rules"},
	{dir: "internal/sim", may: []string{"all"}},
	{dir: "internal/client", may: []string{"internal/...", "iouring/..."}},
	{dir: "journal", may: []string{"internal/id", "internal/disk", "internal/fserr", "internal/invariant"}},
	{dir: "mds/event", pure: true},
	{dir: "mds/state", pure: true, may: append([]string{"mds/event"}, pureInternal...)},
	{dir: "mds/decide", pure: true, may: append([]string{"mds/state", "mds/event"}, pureInternal...)},
	{dir: "mds/settings", pure: true, may: append([]string{"mds/state", "mds/event"}, pureInternal...)},
	{dir: "mds/plan", pure: true, may: append([]string{"mds/state", "mds/event"}, pureInternal...)},
	{dir: "mds/throttle", pure: true, may: pureInternal},
	{dir: "mds/history", may: append([]string{"mds/state", "mds/event", "journal"}, pureInternal...)},
	{dir: "mds/raftlog", may: []string{"internal/disk", "internal/id"}},
	{dir: "mds", may: []string{"mds/...", "journal", "internal/..."}, not: clientSide},
	{dir: "cs/repl", pure: true, may: pureInternal},
	{dir: "cs/admit", pure: true, may: pureInternal},
	{dir: "cs/order", pure: true, may: pureInternal},
	{dir: "cs/arena", may: []string{"internal/invariant"}},
	{dir: "cs/store", may: []string{"cs/repl", "internal/rwlock", "internal/id", "internal/fserr", "internal/invariant", "internal/chunk", "internal/disk", "internal/local"}, test: []string{"cs/ssd"}},
	{dir: "cs/ssd", may: []string{"internal/id", "internal/fserr", "internal/invariant", "internal/chunk", "internal/disk"}},
	{dir: "cs", may: []string{"cs/...", "internal/...", "iouring/..."}, not: clientSide},
	{dir: "fuse", may: []string{"fuse/...", "internal/...", "iouring/..."}},
	{dir: "iouring"},
	{dir: "iouring/reactor", may: []string{"iouring"}},
	{dir: "ebpf", may: []string{"ebpf/..."}},
	{dir: "perf", may: []string{"perf/...", "internal/...", "iouring"}},
	{dir: "bench", may: []string{"all"}},
	{dir: "test", may: []string{"all"}},
	{dir: "cmd", may: []string{"all"}},
}

// nobody may import what is below these.
var leaves = []string{"bench", "cmd", "internal/sim"}

// impure is what a pure package may not import. Of time it may use the type Duration and its units.
var impure = []string{"os", "net", "sync", "context", "log", "math/rand", "crypto/rand", "io/ioutil", "syscall", "golang.org/x/sys"}

// pureTime are the names of package time that are values, not clocks.
var pureTime = []string{"Duration", "Nanosecond", "Microsecond", "Millisecond", "Second", "Minute", "Hour"}

// Check reads the named files of the tree whose root holds go.mod, and returns every violation, sorted. A file that is gone is
// passed over.
func Check(tree fs.FS, files []string) ([]string, error) {
	c := checker{doc: map[string]bool{}}
	for _, name := range files {
		if err := c.file(tree, name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	for pkg, ok := range c.doc {
		if !ok {
			c.failf(pkg, "has no package doc: say in one sentence what it decides or holds")
		}
	}
	slices.Sort(c.faults)
	return c.faults, nil
}

// Walk returns the files of a tree that may be source, where no version control says which are.
func Walk(tree fs.FS) (files []string, err error) {
	err = fs.WalkDir(tree, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case !d.IsDir():
			files = append(files, name)
		case skipDir(name):
			return fs.SkipDir
		}
		return nil
	})
	return files, err
}

// skipDir reports whether name is no part of the source: hidden, built, or of a running cluster.
func skipDir(name string) bool {
	base := path.Base(name)
	return name != "." && (strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_")) ||
		name == "build" || name == "varve-data" || name == "varve-mnt"
}

type checker struct {
	faults []string
	doc    map[string]bool // directory of a package -> has a package doc
}

func (c *checker) failf(where, format string, args ...any) {
	c.faults = append(c.faults, where+": "+fmt.Sprintf(format, args...))
}

func (c *checker) file(tree fs.FS, name string) error {
	info, err := fs.Stat(tree, name)
	if err != nil {
		return err
	}
	if info.Size() > maxFileBytes {
		c.failf(name, "has %d bytes, limit %d", info.Size(), maxFileBytes)
	}
	if path.Ext(name) != ".go" || strings.Contains(name, "/testdata/") {
		return nil
	}
	src, err := fs.ReadFile(tree, name)
	if err != nil {
		return err
	}
	f, err := parser.ParseFile(token.NewFileSet(), name, src, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return fmt.Errorf("parse %s: %w", name, err)
	}
	c.source(name, f)
	return nil
}

// source checks one parsed file.
func (c *checker) source(name string, f *ast.File) {
	dir := path.Dir(name)
	test := strings.HasSuffix(name, "_test.go")
	if !test {
		c.doc[dir] = c.doc[dir] || f.Doc != nil && strings.TrimSpace(f.Doc.Text()) != ""
	}
	r := roomOf(dir)
	if r == nil {
		c.failf(name, "is in no room of the table in ARCHITECTURE.md section 12")
		return
	}
	for _, spec := range f.Imports {
		imp, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			c.failf(name, "import %s: %v", spec.Path.Value, err)
			continue
		}
		if imp == "unsafe" && !unsafeAllowed(name) {
			c.failf(name, "imports unsafe: only files named *_unsafe.go may")
		}
		if ours, ok := strings.CutPrefix(imp, module+"/"); ok {
			c.own(name, dir, r, ours, test)
		} else if r.pure && !test {
			c.pure(name, f, spec, imp)
		}
	}
}

// own checks an import of one of varve's packages. Tests may also use what their room's tests share (internal/disk and
// the like) but never a leaf.
func (c *checker) own(name, dir string, r *room, imp string, test bool) {
	if imp == dir {
		return // an external test of the package
	}
	for _, leaf := range leaves {
		if below(imp, leaf) && !below(dir, leaf) {
			c.failf(name, "imports %s: nothing imports %s", imp, leaf)
			return
		}
	}
	if test && (below(imp, "internal") || below(imp, "test") || slices.Contains(r.test, imp)) {
		return
	}
	if !r.allows(imp) {
		c.failf(name, "imports %s, which %s may not (ARCHITECTURE.md section 12)", imp, r.dir)
	}
}

// pure checks an import of a pure package that is not varve's.
func (c *checker) pure(name string, f *ast.File, spec *ast.ImportSpec, imp string) {
	if isGenerated(name) {
		return
	}
	for _, bad := range impure {
		if below(imp, bad) {
			c.failf(name, "imports %s: its room is pure", imp)
		}
	}
	if imp != "time" {
		return
	}
	alias := "time"
	if spec.Name != nil {
		alias = spec.Name.Name
	}
	ast.Inspect(f, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if x, ok := sel.X.(*ast.Ident); ok && x.Name == alias && !slices.Contains(pureTime, sel.Sel.Name) {
			c.failf(name, "uses time.%s: its room is pure, only time.Duration is allowed", sel.Sel.Name)
		}
		return true
	})
}

func isGenerated(name string) bool { return strings.HasSuffix(name, ".pb.go") }

func unsafeAllowed(name string) bool {
	base := strings.TrimSuffix(path.Base(name), "_test.go")
	return isGenerated(name) || strings.HasSuffix(strings.TrimSuffix(base, ".go"), "_unsafe")
}

// roomOf returns the room that dir belongs to, nil if none.
func roomOf(dir string) *room {
	var best *room
	for i := range rooms {
		if r := &rooms[i]; below(dir, r.dir) && (best == nil || len(r.dir) > len(best.dir)) {
			best = r
		}
	}
	return best
}

func (r *room) allows(imp string) bool {
	for _, no := range r.not {
		if below(imp, no) {
			return false
		}
	}
	for _, may := range r.may {
		if dir, tree := strings.CutSuffix(may, "/..."); may == "all" || imp == may || tree && below(imp, dir) {
			return true
		}
	}
	return false
}

// below reports whether the slash-separated name is dir or inside it.
func below(name, dir string) bool {
	return name == dir || strings.HasPrefix(name, dir+"/")
}

// Root returns the directory with go.mod, given one inside the module.
func Root(dir string, exists func(string) bool) (string, error) {
	for d := dir; ; d = filepath.Dir(d) {
		if exists(filepath.Join(d, "go.mod")) {
			return d, nil
		}
		if d == filepath.Dir(d) {
			return "", fmt.Errorf("no go.mod at or above %s", dir)
		}
	}
}
