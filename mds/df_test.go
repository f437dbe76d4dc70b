package mds

import (
	"testing"

	"pgregory.net/rapid"

	"varve/internal/fserr"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds/settings"
)

// TestMirrored compares with placing one unit after the other on the emptiest disks, which is as good as any way.
func TestMirrored(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		disks := rapid.SliceOfN(rapid.Uint64Range(0, 12), 0, 6).Draw(t, "disks")
		n := rapid.IntRange(1, 4).Draw(t, "n")
		left := append([]uint64(nil), disks...)
		want := uint64(0)
		for {
			used := map[int]bool{}
			for range n {
				best := -1
				for i, d := range left {
					if d > 0 && !used[i] && (best < 0 || d > left[best]) {
						best = i
					}
				}
				if best < 0 {
					break
				}
				used[best] = true
			}
			if len(used) < n {
				break
			}
			for i := range used {
				left[i]--
			}
			want++
		}
		if got := mirrored(disks, n); got != want {
			t.Fatalf("%v, %d times: %d, want %d", disks, n, got, want)
		}
	})
}

// TestFillMargin: below the margin there is no room for new chunks, and df says so; what is there goes on.
func TestFillMargin(t *testing.T) {
	c := newCluster(t, 1, patient)
	for range 4 {
		newChunks(c) // disks of 1 TiB, of which half is free
	}
	a := newClient(c)
	ino := a.create("f", true).Attr.Ino
	first := a.must(a.change(&msg.AllocChunk{Ino: ino, Count: 1})).GetLayout().Chunks[0]
	df := func() (total, free uint64) {
		r := a.must(a.read(&msg.StatFS{})).GetStatFs()
		return r.Total, r.Free
	}
	const tib = 1 << 40
	if total, free := df(); total != 4*tib/3 || free != 4*(tib/2-tib/100)/3 {
		t.Errorf("df: %d of %d are free", free, total)
	}
	set := func(v string) {
		if code, detail := c.adminAsk(wire.SetConfig, &msg.SetConfig{Key: settings.FillMargin, Value: v}); code != fserr.OK {
			t.Fatal(code, detail)
		}
	}
	set("60")
	if _, code := a.do(a.change(&msg.AllocChunk{Ino: ino, First: 1, Count: 1})); code != fserr.NoSpace {
		t.Errorf("a new chunk below the margin: %v", code)
	}
	if total, free := df(); total != 4*tib/3 || free != 0 {
		t.Errorf("df below the margin: %d of %d are free", free, total)
	}
	if got := a.must(a.read(&msg.GetLayout{Ino: ino, Count: 1})).GetLayout().Chunks[0]; got.Id != first.Id {
		t.Errorf("the chunk that was there: %v", got)
	}
	set("40")
	a.must(a.change(&msg.AllocChunk{Ino: ino, First: 1, Count: 1}))
	for v, ok := range map[string]bool{"": true, "0": true, "90": true, "91": false, "-1": false, "5%": false, "1.5": false} {
		if err := settings.Check(settings.FillMargin, v); (err == nil) != ok {
			t.Errorf("margin %q: %v", v, err)
		}
	}
}
