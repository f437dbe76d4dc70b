package main

import (
	"context"
	"strings"
	"testing"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
)

// TestInfo: the directory of a mount about itself can be read and not changed, and none of it is asked of the cluster, which is not there.
func TestInfo(t *testing.T) {
	ctx := context.Background()
	b := newInfo(backend{}, nil, func() string { return "dev" })
	b.files[1].text = func() []byte { return []byte("x") } // its own would ask a client
	dir, err := b.Lookup(ctx, nil, id.Root, []byte(infoName))
	if err != nil || dir.Type != msg.FileType_DIRECTORY || dir.Perm != 0o555 {
		t.Fatalf("%v, %v", dir, err)
	}
	ino := id.Ino(dir.Ino)
	for _, max := range []int{1, 100} {
		var names []string
		for cookie, end := uint64(0), false; !end; {
			r, err := b.ReadDir(ctx, nil, ino, cookie, max, true)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range r.Entries {
				names, cookie = append(names, string(e.Name)), e.Cookie
				a, err := b.Lookup(ctx, nil, ino, e.Name)
				if err != nil || a.Ino != e.Ino || a.Perm != 0o444 {
					t.Errorf("%s: %v, %v", e.Name, a, err)
				}
			}
			end = r.End
		}
		if got := strings.Join(names, " "); got != "read_cache_info stat version" {
			t.Errorf("by %d: %s", max, got)
		}
	}
	a, err := b.Lookup(ctx, nil, ino, []byte("version"))
	if err != nil {
		t.Fatal(err)
	}
	file := id.Ino(a.Ino)
	f, err := b.Open(ctx, nil, file, false, false)
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 100)
	if n, err := f.ReadAt(ctx, p, 1); err != nil || string(p[:n]) != version[1:]+"\n" || uint64(n)+1 != a.Size {
		t.Errorf("%q, %v, size %d", p[:n], err, a.Size)
	}
	if n, err := f.ReadAt(ctx, p, 1000); n != 0 || err != nil {
		t.Error(n, err)
	}
	name := []byte("n")
	_, openErr := b.Open(ctx, nil, file, true, false)
	_, dirErr := b.Open(ctx, nil, ino, false, false)
	_, noErr := b.Lookup(ctx, nil, ino, name)
	_, _, createErr := b.Create(ctx, nil, &msg.Create{Parent: uint64(ino), Name: name})
	_, _, hideErr := b.Create(ctx, nil, &msg.Create{Parent: 1, Name: []byte(infoName)})
	_, linkErr := b.Link(ctx, nil, file, id.Root, name)
	_, setErr := b.SetAttr(ctx, nil, &msg.SetAttr{Ino: uint64(file)})
	_, getErr := b.GetXattr(ctx, nil, file, name)
	_, lockErr := b.Lock(ctx, &msg.Lock{Ino: uint64(file)})
	_, readErr := b.ReadLink(ctx, file)
	for i, c := range []struct {
		err  error
		want fserr.Code
	}{
		{openErr, fserr.ReadOnly}, {dirErr, fserr.IsDir}, {noErr, fserr.NotExist}, {createErr, fserr.ReadOnly}, {hideErr, fserr.ReadOnly}, {linkErr, fserr.ReadOnly},
		{setErr, fserr.ReadOnly}, {getErr, fserr.NoAttr}, {lockErr, fserr.NotSupported}, {readErr, fserr.Invalid},
		{b.Remove(ctx, nil, ino, []byte("version"), false), fserr.ReadOnly}, {b.Remove(ctx, nil, id.Root, []byte(infoName), true), fserr.ReadOnly},
		{b.Rename(ctx, nil, &msg.Rename{Parent: 1, Name: name, NewParent: 1, NewName: []byte(infoName)}), fserr.ReadOnly},
		{b.SetXattr(ctx, nil, &msg.SetXattr{Ino: uint64(file)}), fserr.ReadOnly}, {b.RemoveXattr(ctx, nil, file, name), fserr.ReadOnly},
		{b.Access(ctx, nil, file, 2), fserr.ReadOnly}, {b.Access(ctx, nil, file, 1), fserr.Access}, {b.Access(ctx, nil, ino, 5), fserr.OK},
	} {
		if fserr.Of(c.err) != c.want {
			t.Errorf("case %d: %v, want %v", i, c.err, c.want)
		}
	}
	if entry, attr := b.Hold(id.Root, []byte(infoName), dir); entry != 0 || attr != 0 {
		t.Error("the kernel may keep what changes")
	}
	b.Unhold(id.Root, dir)
}
