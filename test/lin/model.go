package lin

import (
	"fmt"
	"strings"

	"github.com/anishathalye/porcupine"

	"varve/internal/fserr"
)

// maxNames is how many names a directory may have.
const maxNames = 4

// entry is what a name means. Two names of one inode have equal entries. The zero entry: there is no such name.
type entry struct {
	ino  int64 // negative: made by the operation of that number, whose answer was not seen
	dir  bool
	perm uint32
	attr uint32 // value of the extended attribute, 0: none
}

// state is one directory.
type state [maxNames]entry

type opKind int

const (
	opMake     opKind = iota // name a, exclusively; dir
	opRemove                 // name a; dir
	opRename                 // a to b; mode
	opLink                   // ino as a
	opStat                   // name a
	opGetAttr                // ino
	opChmod                  // ino, value
	opSetXattr               // ino, value
	opGetXattr               // ino
	opList
	opKinds
)

var opNames = [opKinds]string{"make", "remove", "rename", "link", "stat", "getattr", "chmod", "setxattr", "getxattr", "list"}

type renameMode int

const (
	plain renameMode = iota
	noReplace
	exchange
)

// input is one operation on the directory with number key.
type input struct {
	kind  opKind
	key   int
	id    int64 // of the operation, from 1
	a, b  int   // names
	dir   bool
	mode  renameMode
	ino   int64
	value uint32
}

// output is its outcome.
type output struct {
	unknown bool // it may take effect later, or never
	code    fserr.Code
	ino     int64
	dir     bool
	perm    uint32
	nlink   uint32
	value   uint32
	list    [maxNames]int64
}

func (s *state) nlink(ino int64) (n uint32) {
	for _, e := range s {
		if e.ino == ino {
			if e.dir {
				return 2
			}
			n++
		}
	}
	return n
}

// find returns the entry of an inode.
func (s *state) find(ino int64) (entry, bool) {
	for _, e := range s {
		if e.ino == ino && ino != 0 {
			return e, true
		}
	}
	return entry{}, false
}

func (s *state) change(ino int64, fn func(*entry)) {
	for i := range s {
		if s[i].ino == ino {
			fn(&s[i])
		}
	}
}

// is reports whether name i means ino; if its number has not been seen yet, it is that from now on.
func (s *state) is(i int, ino int64) bool {
	if have := s[i].ino; have < 0 && ino > 0 {
		if _, other := s.find(ino); !other {
			s.change(have, func(e *entry) { e.ino = ino })
		}
	}
	return s[i].ino == ino
}

// step says whether the operation may answer so in state s, and what the state is then.
func step(s state, in *input, out *output) (bool, state) {
	code, next := apply(s, in, out)
	if out.unknown {
		return true, next
	}
	if code != out.code {
		return false, s
	}
	if code != fserr.OK {
		return true, next
	}
	same := func(e entry) bool {
		return e.dir == out.dir && e.perm == out.perm && next.nlink(e.ino) == out.nlink
	}
	switch in.kind {
	case opStat:
		return next.is(in.a, out.ino) && same(next[in.a]), next
	case opGetAttr:
		e, _ := next.find(in.ino)
		return same(e), next
	case opGetXattr:
		e, _ := next.find(in.ino)
		return e.attr == out.value, next
	case opList:
		for i, ino := range out.list {
			if !next.is(i, ino) {
				return false, s
			}
		}
	}
	return true, next
}

// apply does the operation; it follows mds/decide. An inode that has lost its last name is gone, since nobody has it open.
func apply(s state, in *input, out *output) (fserr.Code, state) {
	switch in.kind {
	case opMake:
		if s[in.a].ino != 0 {
			return fserr.Exist, s
		}
		e := entry{ino: out.ino, dir: in.dir, perm: in.value}
		if out.unknown {
			e.ino = -in.id
		}
		s[in.a] = e
	case opRemove:
		switch e := s[in.a]; {
		case e.ino == 0:
			return fserr.NotExist, s
		case in.dir && !e.dir:
			return fserr.NotDir, s
		case !in.dir && e.dir:
			return fserr.IsDir, s
		}
		s[in.a] = entry{}
	case opRename:
		return rename(s, in)
	case opLink:
		e, ok := s.find(in.ino)
		switch {
		case !ok:
			return fserr.Stale, s
		case s[in.a].ino != 0:
			return fserr.Exist, s
		case e.dir:
			return fserr.Perm, s
		}
		s[in.a] = e
	case opStat:
		if s[in.a].ino == 0 {
			return fserr.NotExist, s
		}
	case opGetAttr, opChmod, opSetXattr, opGetXattr:
		e, ok := s.find(in.ino)
		switch {
		case !ok:
			return fserr.Stale, s
		case in.kind == opGetXattr && e.attr == 0:
			return fserr.NoAttr, s
		case in.kind == opChmod:
			s.change(in.ino, func(e *entry) { e.perm = in.value })
		case in.kind == opSetXattr:
			s.change(in.ino, func(e *entry) { e.attr = in.value })
		}
	}
	return fserr.OK, s
}

func rename(s state, in *input) (fserr.Code, state) {
	from, to := s[in.a], s[in.b]
	switch {
	case from.ino == 0, in.mode == exchange && to.ino == 0:
		return fserr.NotExist, s
	case in.mode == noReplace && to.ino != 0:
		return fserr.Exist, s
	case from.ino == to.ino:
		return fserr.OK, s
	case in.mode == exchange:
		s[in.a], s[in.b] = to, from
		return fserr.OK, s
	case to.ino != 0 && from.dir && !to.dir:
		return fserr.NotDir, s
	case to.ino != 0 && !from.dir && to.dir:
		return fserr.IsDir, s
	}
	s[in.a], s[in.b] = entry{}, from
	return fserr.OK, s
}

// model is the sequential specification, for porcupine.
var model = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		keys := make(map[int]int)
		var parts [][]porcupine.Operation
		for _, op := range history {
			i, ok := keys[op.Input.(*input).key]
			if !ok {
				i = len(parts)
				keys[op.Input.(*input).key] = i
				parts = append(parts, nil)
			}
			parts[i] = append(parts[i], op)
		}
		return parts
	},
	Init: func() any { return state{} },
	Step: func(s, in, out any) (bool, any) {
		ok, next := step(s.(state), in.(*input), out.(*output))
		return ok, next
	},
	Hash: func(s any) (h uint64) {
		for _, e := range s.(state) {
			h = (h ^ uint64(e.ino)) * 0x9e3779b97f4a7c15
			h = (h ^ uint64(e.perm)<<32 ^ uint64(e.attr)) * 0x9e3779b97f4a7c15
		}
		return h
	},
	DescribeOperation: func(in, out any) string { return describe(in.(*input), out.(*output)) },
	DescribeState:     func(s any) string { return s.(state).String() },
}

func describe(in *input, out *output) string {
	var b strings.Builder
	fmt.Fprintf(&b, "dir%d %s", in.key, opNames[in.kind])
	switch in.kind {
	case opMake, opRemove:
		fmt.Fprintf(&b, " %c dir=%v perm=%o", 'a'+in.a, in.dir, in.value)
	case opStat:
		fmt.Fprintf(&b, " %c", 'a'+in.a)
	case opRename:
		fmt.Fprintf(&b, " %c %c%s", 'a'+in.a, 'a'+in.b, [...]string{"", " noreplace", " exchange"}[in.mode])
	case opLink:
		fmt.Fprintf(&b, " #%d %c", in.ino, 'a'+in.a)
	case opGetAttr, opGetXattr:
		fmt.Fprintf(&b, " #%d", in.ino)
	case opChmod, opSetXattr:
		fmt.Fprintf(&b, " #%d %o", in.ino, in.value)
	}
	switch {
	case out.unknown:
		b.WriteString(" -> ?")
	case out.code != fserr.OK:
		fmt.Fprintf(&b, " -> %v", out.code)
	case in.kind == opMake:
		fmt.Fprintf(&b, " -> #%d", out.ino)
	case in.kind == opStat, in.kind == opGetAttr:
		fmt.Fprintf(&b, " -> #%d dir=%v perm=%o nlink=%d", out.ino, out.dir, out.perm, out.nlink)
	case in.kind == opGetXattr:
		fmt.Fprintf(&b, " -> %o", out.value)
	case in.kind == opList:
		fmt.Fprintf(&b, " -> %v", out.list)
	}
	return b.String()
}

func (s state) String() string {
	var parts []string
	for i, e := range s {
		if e.ino != 0 {
			parts = append(parts, fmt.Sprintf("%c=#%d dir=%v perm=%o attr=%o", 'a'+i, e.ino, e.dir, e.perm, e.attr))
		}
	}
	return "{" + strings.Join(parts, ", ") + "}"
}
