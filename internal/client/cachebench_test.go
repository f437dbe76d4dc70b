package client

import (
	"context"
	"fmt"
	"testing"

	"varve/internal/id"
	"varve/internal/wire/msg"
)

// benchDir fills the cache of a client with a directory, and gives the names in it.
func benchDir(b *testing.B) (*Client, id.Ino, [][]byte, []*msg.Attr) {
	t := &testing.T{}
	w := newWorld(t, 1, 0, 1, 1)
	newTree(w)
	c := w.dial(t, nil)
	b.Cleanup(func() {
		c.Close()
		w.servers[0].stop()
	})
	ctx := context.Background()
	d, _, err := c.Create(ctx, checked, &msg.Create{Parent: 1, Name: []byte("d"), Type: msg.FileType_DIRECTORY, Perm: 0o755, Exclusive: true})
	if err != nil {
		b.Fatal(err)
	}
	var names [][]byte
	var attrs []*msg.Attr
	for i := range 1000 {
		name := fmt.Appendf(nil, "file%05d", i)
		a, err := mknod(c, id.Ino(d.Ino), string(name))
		if err != nil {
			b.Fatal(err)
		}
		names, attrs = append(names, name), append(attrs, a)
	}
	return c, id.Ino(d.Ino), names, attrs
}

func BenchmarkCache(b *testing.B) {
	ctx := context.Background()
	b.Run("op=lookup", func(b *testing.B) {
		c, dir, names, _ := benchDir(b)
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if _, err := c.Lookup(ctx, checked, dir, names[i%len(names)]); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("op=getattr", func(b *testing.B) {
		c, _, _, attrs := benchDir(b)
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if _, err := c.GetAttr(ctx, id.Ino(attrs[i%len(attrs)].Ino)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("op=hold", func(b *testing.B) {
		c, dir, names, attrs := benchDir(b)
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			n := i % len(names)
			if entry, _ := c.Hold(dir, names[n], attrs[n]); entry <= 0 {
				b.Fatal("not held")
			}
			c.Unhold(dir, attrs[n])
		}
	})
	b.Run("op=readdir/entries=1000", func(b *testing.B) {
		c, dir, names, _ := benchDir(b)
		b.ReportAllocs()
		for b.Loop() {
			if r, err := c.ReadDir(ctx, checked, dir, 0, 2000, false); err != nil || len(r.Entries) != len(names) {
				b.Fatal(err)
			}
		}
	})
	b.Run("op=meta", func(b *testing.B) {
		c, dir, names, attrs := benchDir(b)
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			n := i % len(names)
			c.meta(&msg.Callback{Kind: msg.Callback_META, Attrs: []uint64{attrs[n].Ino}})
			c.cache.learnAttr(attrs[n], 1, c.cache.now())
			_ = dir
		}
	})
}
