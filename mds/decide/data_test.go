package decide

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
	"varve/mds/event"
	"varve/mds/state"

	"github.com/cockroachdb/datadriven"
)

// TestData runs testdata/*.txt. A line of input is one request (verb, paths or numbers, key=value) or one of the
// leader's events; the output is its outcome. "as" sets who asks: uid[:gid[,groups]] and the session.
func TestData(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		sh := &shell{t: t, w: newWorld(), session: 1, cred: &msg.Cred{}}
		for range 3 {
			sh.w.openSession()
		}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			var b strings.Builder
			for _, line := range strings.Split(d.Input, "\n") {
				fmt.Fprintln(&b, sh.run(strings.Fields(line)))
				if err := sh.w.s.Check(); err != nil {
					t.Fatalf("%s: %s: %v", d.Pos, line, err)
				}
			}
			return b.String()
		})
	})
}

type shell struct {
	t       *testing.T
	w       *world
	session uint64
	cred    *msg.Cred
	args    []string
	opts    map[string]string
}

// split returns the directory's inode and the last name of a path. The path before it must exist.
func (sh *shell) split(path string) (uint64, []byte) {
	dir, name := "/", path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		dir, name = path[:i], path[i+1:]
	}
	return sh.walk(dir), []byte(name)
}

// walk returns the inode of a path, or of "#number".
func (sh *shell) walk(path string) uint64 {
	if n, ok := strings.CutPrefix(path, "#"); ok {
		v, err := strconv.ParseUint(n, 10, 64)
		if err != nil {
			sh.t.Fatal(err)
		}
		return v
	}
	at := id.Root
	for _, name := range strings.FieldsFunc(path, func(r rune) bool { return r == '/' }) {
		d, ok := sh.w.s.Dentry(at, name)
		if !ok {
			return 999
		}
		at = d.Ino
	}
	return uint64(at)
}

func (sh *shell) num(key string) uint64 {
	v, ok := sh.opts[key]
	if !ok {
		return 0
	}
	n, err := strconv.ParseUint(v, 0, 64)
	if err != nil {
		sh.t.Fatal(err)
	}
	return n
}

func (sh *shell) u32(key string) *uint32 {
	if _, ok := sh.opts[key]; !ok {
		return nil
	}
	return p(uint32(sh.num(key)))
}

func (sh *shell) has(key string) bool { _, ok := sh.opts[key]; return ok }

func (sh *shell) run(words []string) string {
	sh.args, sh.opts = nil, map[string]string{}
	for _, w := range words[1:] {
		if k, v, ok := strings.Cut(w, "="); ok {
			sh.opts[k] = v
		} else {
			sh.args = append(sh.args, w)
		}
	}
	if out, ok := sh.leader(words[0]); ok {
		return out
	}
	req := &msg.MetaRequest{Cred: sh.cred}
	sh.request(req, words[0])
	code, r := sh.w.do(sh.session, req)
	return show(words[0], code, r)
}

// leader runs what is no request.
func (sh *shell) leader(verb string) (string, bool) {
	ev := &event.Event{}
	switch verb {
	case "as":
		sh.cred = &msg.Cred{Uid: uint32(sh.num("uid")), Gid: uint32(sh.num("gid")), Checked: sh.has("checked")}
		if sh.has("group") {
			sh.cred.Groups = []uint32{uint32(sh.num("group"))}
		}
		if sh.has("session") {
			sh.session = sh.num("session")
		}
		return "ok", true
	case "state":
		return sh.dump(), true
	case "modes":
		return sh.modes(sh.walk(sh.args[0])), true
	case "conflicts":
		var b []string
		for _, c := range Conflicts(sh.w.s, id.Ino(sh.walk(sh.args[0])), id.SessionID(sh.session), msg.Want(sh.num("want"))) {
			b = append(b, fmt.Sprintf("session %v: %v -> %v", c.Session, c.Now, c.After))
		}
		return strings.Join(b, "\n"), true
	case "latches":
		req := &msg.MetaRequest{Session: sh.session}
		words := sh.args
		sh.args = words[1:]
		sh.request(req, words[0])
		var b []string
		for _, l := range Latches(sh.w.s, req) {
			kind := []string{"", "session", "rename", "dentry", "inode", "layout", "locks"}[l.Kind]
			b = append(b, strings.TrimSpace(fmt.Sprintf("%s %d %s exclusive=%v", kind, l.A, l.Name, l.Exclusive)))
		}
		return strings.Join(b, "\n"), true
	case "dead":
		sh.w.dead[id.ServerID(sh.num("server"))] = true
		return "ok", true
	case "expire":
		ev.Body = &event.Event_SessionClose{SessionClose: &event.SessionClose{Id: sh.num("session"), Kind: event.SessionClose_EXPIRED}}
	case "lost":
		ev.Body = &event.Event_ServerLost{ServerLost: &event.ServerLost{Server: uint32(sh.num("server"))}}
	case "join", "sync":
		c, _ := sh.w.s.Chunk(id.Ino(sh.walk(sh.args[0])), uint32(sh.num("index")))
		if verb == "join" {
			ev.Body = &event.Event_ReplicaJoin{ReplicaJoin: &event.ReplicaJoin{Chunk: uint64(c.ID), Server: uint32(sh.num("server")), Epoch: uint64(c.Epoch()) + 1}}
		} else {
			ev.Body = &event.Event_ReplicaSync{ReplicaSync: &event.ReplicaSync{Chunk: uint64(c.ID), Server: uint32(sh.num("server")), Epoch: uint64(c.Epoch())}}
		}
	case "config":
		ev.Body = &event.Event_ConfigSet{ConfigSet: &event.ConfigSet{Key: sh.args[0], Value: sh.args[1]}}
	default:
		return "", false
	}
	sh.w.apply(ev)
	return "ok", true
}

// request fills in the operation.
func (sh *shell) request(r *msg.MetaRequest, verb string) {
	arg := func(i int) string {
		if i < len(sh.args) {
			return sh.args[i]
		}
		return ""
	}
	types := map[string]msg.FileType{
		"create": msg.FileType_REGULAR, "mkdir": msg.FileType_DIRECTORY, "symlink": msg.FileType_SYMLINK,
		"mkfifo": msg.FileType_FIFO, "mknod": msg.FileType_CHAR,
	}
	switch verb {
	case "lookup":
		dir, name := sh.split(arg(0))
		r.Op = &msg.MetaRequest_Lookup{Lookup: &msg.Lookup{Parent: dir, Name: name}}
	case "stat":
		r.Op = &msg.MetaRequest_GetAttr{GetAttr: &msg.GetAttr{Ino: sh.walk(arg(0))}}
	case "create", "mkdir", "symlink", "mkfifo", "mknod":
		dir, name := sh.split(arg(0))
		op := &msg.Create{Parent: dir, Name: name, Type: types[verb], Perm: 0o755, Exclusive: sh.has("excl"), Open: sh.has("open"), Target: []byte(arg(1))}
		if v := sh.u32("perm"); v != nil {
			op.Perm = *v
		}
		r.Op = &msg.MetaRequest_Create{Create: op}
	case "link":
		dir, name := sh.split(arg(1))
		r.Op = &msg.MetaRequest_Link{Link: &msg.Link{Ino: sh.walk(arg(0)), Parent: dir, Name: name}}
	case "unlink", "rmdir":
		dir, name := sh.split(arg(0))
		r.Op = &msg.MetaRequest_Remove{Remove: &msg.Remove{Parent: dir, Name: name, Dir: verb == "rmdir"}}
	case "rename":
		dir, name := sh.split(arg(0))
		to, newName := sh.split(arg(1))
		r.Op = &msg.MetaRequest_Rename{Rename: &msg.Rename{
			Parent: dir, Name: name, NewParent: to, NewName: newName, NoReplace: sh.has("noreplace"), Exchange: sh.has("exchange"),
		}}
	case "ls":
		r.Op = &msg.MetaRequest_ReadDir{ReadDir: &msg.ReadDir{Ino: sh.walk(arg(0)), Max: uint32(sh.num("max")), Cookie: sh.num("cookie")}}
	case "readlink":
		r.Op = &msg.MetaRequest_ReadLink{ReadLink: &msg.ReadLink{Ino: sh.walk(arg(0))}}
	case "setattr":
		op := &msg.SetAttr{Ino: sh.walk(arg(0)), Perm: sh.u32("perm"), Uid: sh.u32("uid"), Gid: sh.u32("gid"), Flush: sh.has("flush"),
			MtimeNow: sh.has("touch"), KillPriv: sh.has("killpriv")}
		if sh.has("size") {
			op.Size = p(sh.num("size"))
		}
		if sh.has("mtime") {
			op.Mtime = p(int64(sh.num("mtime")))
		}
		r.Op = &msg.MetaRequest_SetAttr{SetAttr: op}
	case "setxattr":
		r.Op = &msg.MetaRequest_SetXattr{SetXattr: &msg.SetXattr{Ino: sh.walk(arg(0)), Name: []byte(arg(1)), Value: []byte(arg(2)), Create: sh.has("create"), Replace: sh.has("replace")}}
	case "getxattr":
		r.Op = &msg.MetaRequest_GetXattr{GetXattr: &msg.GetXattr{Ino: sh.walk(arg(0)), Name: []byte(arg(1))}}
	case "removexattr":
		r.Op = &msg.MetaRequest_RemoveXattr{RemoveXattr: &msg.RemoveXattr{Ino: sh.walk(arg(0)), Name: []byte(arg(1))}}
	case "listxattr":
		r.Op = &msg.MetaRequest_ListXattr{ListXattr: &msg.ListXattr{Ino: sh.walk(arg(0))}}
	case "access":
		r.Op = &msg.MetaRequest_Access{Access: &msg.Access{Ino: sh.walk(arg(0)), Mask: uint32(sh.num("mask"))}}
	case "statfs":
		r.Op = &msg.MetaRequest_StatFs{StatFs: &msg.StatFS{}}
	case "open":
		r.Op = &msg.MetaRequest_Open{Open: &msg.Open{Ino: sh.walk(arg(0)), Want: msg.Want(sh.num("want")), Trunc: sh.has("trunc"), Mask: uint32(sh.num("mask"))}}
	case "release":
		r.Op = &msg.MetaRequest_Release{Release: &msg.Release{Ino: sh.walk(arg(0)), Lease: sh.num("lease"), Keep: msg.Want(sh.num("keep"))}}
	case "layout":
		r.Op = &msg.MetaRequest_GetLayout{GetLayout: &msg.GetLayout{Ino: sh.walk(arg(0)), First: uint32(sh.num("first")), Count: 100}}
	case "alloc":
		r.Op = &msg.MetaRequest_AllocChunk{AllocChunk: &msg.AllocChunk{Ino: sh.walk(arg(0)), First: uint32(sh.num("first")), Count: uint32(sh.num("count"))}}
	case "drop":
		r.Op = &msg.MetaRequest_DropReplica{DropReplica: &msg.DropReplica{Ino: sh.walk(arg(0)), Server: uint32(sh.num("server")), Chunk: sh.num("chunk"), Epoch: sh.num("epoch"), Count: 100}}
	case "writedone":
		r.Op = &msg.MetaRequest_WriteDone{WriteDone: &msg.WriteDone{Ino: sh.walk(arg(0)), Offset: sh.num("off"), Length: sh.num("len"), Punch: sh.has("punch")}}
	case "append":
		r.Op = &msg.MetaRequest_Append{Append: &msg.Append{Ino: sh.walk(arg(0)), Length: sh.num("len")}}
	case "punchdone":
		r.Op = &msg.MetaRequest_PunchDone{PunchDone: &msg.PunchDone{Ino: sh.walk(arg(0))}}
	case "lock", "getlk":
		op := &msg.Lock{Ino: sh.walk(arg(0)), Owner: sh.num("owner"), Pid: uint32(sh.num("owner")), Start: sh.num("start"), End: state.LockEnd,
			Flock: sh.has("flock"), Test: verb == "getlk", Type: map[string]msg.LockType{"read": 1, "write": 2}[arg(1)]}
		if sh.has("end") {
			op.End = sh.num("end")
		}
		r.Op = &msg.MetaRequest_Lock{Lock: op}
	case "policy":
		r.Op = &msg.MetaRequest_GetPolicy{GetPolicy: &msg.GetPolicy{Ino: sh.walk(arg(0))}}
	case "setpolicy":
		p := &msg.Policy{Norm: uint32(sh.num("norm")), Min: uint32(sh.num("min")), Tier: uint32(sh.num("tier")), Domain: uint32(sh.num("domain")), Prefer: sh.opts["prefer"]}
		r.Op = &msg.MetaRequest_SetPolicy{SetPolicy: &msg.SetPolicy{Ino: sh.walk(arg(0)), Policy: p, Fields: uint32(sh.num("fields"))}}
	default:
		sh.t.Fatalf("unknown verb %q", verb)
	}
}

// show writes an outcome in a line or a few.
func show(verb string, code fserr.Code, r *msg.MetaReply) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s", verb, code.Error())
	if a := r.GetAttr(); a != nil && code == fserr.OK {
		fmt.Fprintf(&b, " #%d %s %04o nlink=%d owner=%d:%d size=%d", a.Ino, strings.ToLower(a.Type.String()), a.Perm, a.Nlink, a.Uid, a.Gid, a.Size)
	}
	switch x := r.GetResult().(type) {
	case *msg.MetaReply_ReadDir:
		for _, e := range x.ReadDir.Entries {
			fmt.Fprintf(&b, "\n  #%d %s %s cookie=%d", e.Ino, e.Name, strings.ToLower(e.Type.String()), e.Cookie)
		}
		fmt.Fprintf(&b, "\n  end=%v parent=#%d", x.ReadDir.End, x.ReadDir.Parent)
	case *msg.MetaReply_Data:
		fmt.Fprintf(&b, "\n  data %q", x.Data)
	case *msg.MetaReply_Names:
		fmt.Fprintf(&b, "\n  names %q", x.Names.Names)
	case *msg.MetaReply_StatFs:
		fmt.Fprintf(&b, "\n  total=%d free=%d files=%d", x.StatFs.Total, x.StatFs.Free, x.StatFs.Files)
	case *msg.MetaReply_Open:
		fmt.Fprintf(&b, "\n  lease=%d mode=%v%s", x.Open.Lease, x.Open.Mode, punch(x.Open.Punch))
	case *msg.MetaReply_Layout:
		b.WriteString(layout(x.Layout.Chunks))
	case *msg.MetaReply_Append:
		fmt.Fprintf(&b, "\n  offset=%d", x.Append.Offset)
	case *msg.MetaReply_Lock:
		fmt.Fprintf(&b, "\n  %v %d-%d pid=%d", x.Lock.Type, x.Lock.Start, int64(x.Lock.End), x.Lock.Pid)
	case *msg.MetaReply_SetAttr:
		b.WriteString(punch(x.SetAttr))
	case *msg.MetaReply_Policy:
		e, o := x.Policy.Effective, x.Policy.Own
		fmt.Fprintf(&b, "\n  effective %d:%d own %d:%d", e.Norm, e.Min, o.Norm, o.Min)
		if e.Tier != 0 || e.Domain != 0 || e.Prefer != "" {
			fmt.Fprintf(&b, "; effective tier=%d domain=%d prefer=%q own tier=%d domain=%d prefer=%q", e.Tier, e.Domain, e.Prefer, o.Tier, o.Domain, o.Prefer)
		}
	}
	return b.String()
}

func punch(p *msg.SetAttrReply) string {
	if !p.GetPunch() {
		return ""
	}
	return fmt.Sprintf("\n  punch chunk %d from %d", p.Index, p.From)
}

func layout(chunks []*msg.Chunk) string {
	var b strings.Builder
	for _, c := range chunks {
		fmt.Fprintf(&b, "\n  %d: id=%d epoch=%d on", c.Index, c.Id, c.Epoch)
		for _, r := range c.Replicas {
			fmt.Fprintf(&b, " cs%d", r.Server)
			if r.Joining {
				b.WriteString("(joining)")
			}
		}
	}
	return b.String()
}

func (sh *shell) modes(ino uint64) string {
	var b []string
	sh.w.s.Leases(id.Ino(ino), func(l state.Lease) bool {
		b = append(b, fmt.Sprintf("session %v: %v, %v", l.Session, l.Want, sh.w.s.Mode(l.Ino, l.Session)))
		return true
	})
	return strings.Join(b, "\n")
}

// dump names what there is beside the tree.
func (sh *shell) dump() string {
	c := sh.w.s.Counts()
	s := fmt.Sprintf("inodes=%d chunks=%d degraded=%d joining=%d garbage=%d leases=%d orphans=%d unsettled=%d punching=%d undermin=%d",
		c.Inodes, c.Chunks, c.Degraded, c.Joining, c.Garbage, c.Leases, c.Orphans, c.Unsettled, c.Punching, sh.w.s.UnderMin())
	for server := id.ServerID(1); server <= 4; server++ {
		if g := sh.w.s.Garbage(server, 10); len(g) > 0 {
			s += fmt.Sprintf("\n  garbage of %v: %v", server, g)
		}
	}
	return s
}
