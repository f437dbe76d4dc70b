package history

import (
	"fmt"
	"iter"
	"slices"
	"strings"

	"varve/internal/id"
	"varve/internal/wire/msg"
	"varve/mds/event"
	"varve/mds/state"

	"github.com/dustin/go-humanize"
)

// Change is one difference between two states.
type Change struct {
	Kind string   `json:"kind"` // added, removed, renamed, changed; for the cluster: server, config, session
	Path string   `json:"path,omitempty"`
	From string   `json:"from,omitempty"` // renamed: where it was
	Ino  id.Ino   `json:"ino,omitempty"`
	Type string   `json:"type,omitempty"`
	What []string `json:"what,omitempty"` // each thing that is not the same
}

// DiffSummary counts the differences.
type DiffSummary struct {
	Added   int `json:"added"`
	Removed int `json:"removed"`
	Renamed int `json:"renamed"`
	Changed int `json:"changed"`
	Cluster int `json:"cluster"` // servers, settings and sessions
}

// name is a name that only one of the states has.
type name struct {
	parent id.Ino
	name   string
	ino    id.Ino
}

// Diff calls fn for each difference between a and b below the path top: names first, in the order of paths, then attributes and chunks of what
// both have, then, if top is the root, servers, settings and sessions. Memory: the names that differ.
func Diff(a, b *state.State, top string, fn func(Change) error) (sum DiffSummary, err error) {
	d := &differ{a: a, b: b, top: top, fn: fn}
	if err := d.names(); err != nil {
		return d.sum, err
	}
	if err := d.inodes(); err != nil {
		return d.sum, err
	}
	if top == "/" {
		err = d.cluster()
	}
	return d.sum, err
}

type differ struct {
	a, b   *state.State
	na, nb Names
	top    string
	fn     func(Change) error
	sum    DiffSummary
}

func (d *differ) names() error {
	var gone, made []name
	d.a.Names(func(x *state.Dentry) bool {
		if y, ok := d.b.Dentry(x.Parent, x.Name); !ok || y.Ino != x.Ino {
			gone = append(gone, name{x.Parent, x.Name, x.Ino})
		}
		return true
	})
	d.b.Names(func(x *state.Dentry) bool {
		if y, ok := d.a.Dentry(x.Parent, x.Name); !ok || y.Ino != x.Ino {
			made = append(made, name{x.Parent, x.Name, x.Ino})
		}
		return true
	})
	where := make(map[id.Ino][]name)
	for _, m := range made {
		where[m.ino] = append(where[m.ino], m)
	}
	var out []Change
	for _, g := range gone {
		from := d.na.Join(d.a, g.parent, g.name)
		if to := where[g.ino]; len(to) > 0 {
			where[g.ino] = to[1:]
			out = append(out, Change{Kind: "renamed", From: from, Path: d.nb.Join(d.b, to[0].parent, to[0].name), Ino: g.ino, Type: typeOf(d.a, g.ino)})
			continue
		}
		out = append(out, Change{Kind: "removed", Path: from, Ino: g.ino, Type: typeOf(d.a, g.ino)})
	}
	for _, m := range made {
		if !slices.Contains(where[m.ino], m) {
			continue // a rename took it
		}
		c := Change{Kind: "added", Path: d.nb.Join(d.b, m.parent, m.name), Ino: m.ino, Type: typeOf(d.b, m.ino)}
		if n, ok := d.b.Inode(m.ino); ok && n.IsRegular() {
			c.What = []string{humanize.IBytes(n.Size)}
		}
		out = append(out, c)
	}
	slices.SortStableFunc(out, func(x, y Change) int { return strings.Compare(x.Path, y.Path) })
	for _, c := range out {
		if !Below(c.Path, d.top) && (c.From == "" || !Below(c.From, d.top)) {
			continue
		}
		switch c.Kind {
		case "added":
			d.sum.Added++
		case "removed":
			d.sum.Removed++
		default:
			d.sum.Renamed++
		}
		if err := d.fn(c); err != nil {
			return err
		}
	}
	return nil
}

func typeOf(s *state.State, ino id.Ino) string {
	if n, ok := s.Inode(ino); ok {
		return strings.ToLower(n.Type().String())
	}
	return ""
}

// inodes compares what both states have.
func (d *differ) inodes() error {
	for n := range all(d.a) {
		m, ok := d.b.Inode(n.Ino)
		if !ok {
			continue
		}
		what := d.attrs(n, m)
		what = append(what, d.chunks(n)...)
		if len(what) == 0 {
			continue
		}
		p, live := d.nb.Path(d.b, n.Ino)
		if !live && p == "" {
			p = fmt.Sprintf("(inode %d)", n.Ino)
		}
		if !Below(p, d.top) {
			continue
		}
		d.sum.Changed++
		if err := d.fn(Change{Kind: "changed", Path: p, Ino: n.Ino, Type: typeOf(d.b, n.Ino), What: what}); err != nil {
			return err
		}
	}
	return nil
}

func all(s *state.State) iter.Seq[*state.Inode] {
	return func(yield func(*state.Inode) bool) { s.Inodes(0, yield) }
}

func (d *differ) attrs(n, m *state.Inode) (what []string) {
	if n == m {
		return nil
	}
	add := func(name string, old, now any) {
		if old != now {
			what = append(what, fmt.Sprintf("%s %v -> %v", name, old, now))
		}
	}
	add("mode", fmt.Sprintf("%04o", n.Perm()), fmt.Sprintf("%04o", m.Perm()))
	add("uid", n.UID, m.UID)
	add("gid", n.GID, m.GID)
	if !n.IsDir() {
		add("links", n.Nlink(), m.Nlink())
	}
	if n.Size != m.Size && n.IsRegular() {
		old, now := humanize.IBytes(n.Size), humanize.IBytes(m.Size)
		if old == now {
			old, now = fmt.Sprint(n.Size), fmt.Sprint(m.Size)
		}
		what = append(what, fmt.Sprintf("size %s -> %s", old, now))
	}
	if n.Mtime != m.Mtime && n.IsRegular() {
		what = append(what, "mtime")
	}
	if !slices.Equal(n.Xattrs(), m.Xattrs()) {
		what = append(what, "xattrs")
	}
	return what
}

// chunks compares the chunks of a regular file.
func (d *differ) chunks(n *state.Inode) []string {
	if !n.IsRegular() {
		return nil
	}
	var made, freed, moved int
	list := func(s *state.State) iter.Seq[*state.Chunk] {
		return func(yield func(*state.Chunk) bool) { s.Chunks(n.Ino, 0, 1<<31, yield) }
	}
	for c := range list(d.b) {
		if old, ok := d.a.Chunk(n.Ino, c.Index()); !ok || old.ID != c.ID {
			made++
		} else if old != c && replicas(old) != replicas(c) {
			moved++
		}
	}
	for c := range list(d.a) {
		if now, ok := d.b.Chunk(n.Ino, c.Index()); !ok || now.ID != c.ID {
			freed++
		}
	}
	var what []string
	for _, x := range []struct {
		n    int
		what string
	}{{made, "allocated"}, {freed, "freed"}, {moved, "with other replicas"}} {
		if x.n > 0 {
			what = append(what, fmt.Sprintf("%d chunks %s", x.n, x.what))
		}
	}
	return what
}

// replicas says where a chunk is; those that are still joining in brackets.
func replicas(c *state.Chunk) string {
	var out []string
	for i := range c.Len() {
		r := c.Replica(i)
		if r.Joining {
			out = append(out, "("+r.Server.String()+")")
		} else {
			out = append(out, r.Server.String())
		}
	}
	return strings.Join(out, " ")
}

// cluster compares servers, settings and sessions.
func (d *differ) cluster() error {
	var out []Change
	add := func(kind, what string) { out = append(out, Change{Kind: kind, What: []string{what}}) }
	describe := func(s *state.State) map[string]string {
		m := map[string]string{}
		s.Servers(func(v *state.Server) bool {
			m["server "+v.ID.String()] = fmt.Sprintf("%s, host %s, tier %d, retired %v", v.Addr, v.Host, v.Tier, v.Retired)
			if v.Mode != event.ServerMode_ACTIVE {
				m["server "+v.ID.String()] += ", " + strings.ToLower(v.Mode.String())
			}
			return true
		})
		s.Settings(func(v state.Setting) bool {
			m["config "+v.Key] = v.Value
			return true
		})
		s.Sessions(func(v *state.Session) bool {
			what := "open"
			if v.Fenced {
				what = "fenced"
			}
			m["session "+v.ID.String()] = fmt.Sprintf("%s (%s:%s)", what, v.Host, v.Mount)
			return true
		})
		return m
	}
	before, after := describe(d.a), describe(d.b)
	for _, k := range sortedKeys(before, after) {
		old, had := before[k]
		now, has := after[k]
		kind, _, _ := strings.Cut(k, " ")
		switch {
		case had && has && old != now:
			add(kind, fmt.Sprintf("%s: %s -> %s", k, old, now))
		case had && !has:
			add(kind, fmt.Sprintf("%s: gone (was %s)", k, old))
		case !had && has:
			add(kind, fmt.Sprintf("%s: new, %s", k, now))
		}
	}
	d.sum.Cluster = len(out)
	for _, c := range out {
		if err := d.fn(c); err != nil {
			return err
		}
	}
	return nil
}

func sortedKeys(maps ...map[string]string) []string {
	var keys []string
	for _, m := range maps {
		for k := range m {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// Holders says who holds an inode in s.
func Holders(s *state.State, ino id.Ino) []string {
	var out []string
	var x Texter
	s.Leases(ino, func(l state.Lease) bool {
		want := "for reading"
		if l.Want == msg.Want_WANT_WRITE {
			want = "for writing"
		}
		out = append(out, fmt.Sprintf("%s, %s, since event %d", x.session(s, uint64(l.Session)), want, l.Index))
		return true
	})
	return out
}

// Replicas says where a chunk is; those that are still joining in brackets.
func Replicas(c *state.Chunk) string { return replicas(c) }
