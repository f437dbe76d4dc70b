package plan

import (
	"fmt"
	"slices"
	"testing"

	"varve/internal/chunk"
	"varve/internal/id"
	"varve/internal/wire/msg"
	"varve/mds/event"
	"varve/mds/state"
)

// TestPlaceAttributes: new chunks go where attributes say, in whatever cluster.
func TestPlaceAttributes(t *testing.T) {
	seeds(t, 200, func(w *world) {
		for i := range 3 + w.rand.IntN(20) {
			host := i / (1 + w.rand.IntN(3))
			w.server(fmt.Sprint("h", host), fmt.Sprintf("room%d/row%d/r%d", host/8, host/4, host/2), uint32(w.rand.IntN(3)), 1+w.rand.IntN(400))
		}
		w.measure()
		for i := range w.views {
			v := &w.views[i]
			switch w.rand.IntN(8) {
			case 0:
				v.Live = false
			case 1:
				v.Slow = true
			case 2:
				v.Draining = true
			case 3:
				v.Standby = true
			}
		}
		norm := 1 + w.rand.IntN(state.MaxReplicas)
		level := state.Domain(1 + w.rand.IntN(5))
		tier := w.rand.IntN(4)
		w.policy(state.Policy{Norm: uint32(norm), Min: 1, Domain: level, Tier: uint8(tier), Prefer: "h1"})
		place := func(seed uint64) []id.ServerID { return Place(w.s, w.views, 2, seed, norm) }
		if w.rand.IntN(2) == 0 {
			sites := NewSites(w.s, w.views)
			place = func(seed uint64) []id.ServerID { return sites.Place(w.s, 2, seed, norm) }
		}
		got := place(w.rand.Uint64())
		usable, domains := 0, map[string]bool{}
		right := map[string]bool{} // domains with servers of the tier that are not slow
		for i := range w.views {
			v := &w.views[i]
			if v.Live && !v.Draining && !v.Standby && v.Free > chunk.Size {
				usable++
				domains[v.within(level)] = true
				if !v.Slow && (tier == 0 || int(v.Tier) == tier-1) {
					right[v.within(level)] = true
				}
			}
		}
		if len(got) != min(norm, usable) {
			w.t.Fatalf("%d servers of %d usable ones, norm %d", len(got), usable, norm)
		}
		seen, in, wrong := map[id.ServerID]bool{}, map[string]bool{}, 0
		for _, k := range got {
			v := w.view(k)
			if seen[k] || !v.Live || v.Draining || v.Standby || v.Free <= chunk.Size {
				w.t.Fatalf("%v is twice in %v, or not usable", k, got)
			}
			seen[k], in[v.within(level)] = true, true
			if v.Slow || tier > 0 && int(v.Tier) != tier-1 {
				wrong++
			}
		}
		if want := min(norm, len(domains)); len(in) < want {
			w.t.Errorf("%v are in %d %vs, want %d", got, len(in), level, want)
		}
		if len(right) >= norm && wrong > 0 {
			w.t.Errorf("%d of %v are slow or on another tier than %d", wrong, got, tier-1)
		}
	})
}

// TestPlaceLocal: one replica is on the host that writes, while that is not fuller than others, and on those that are preferred.
func TestPlaceLocal(t *testing.T) {
	w := newWorld(t, 3)
	for i := range 6 {
		w.server(fmt.Sprint("h", i), "", 0, 400)
	}
	w.measure()
	w.apply(&event.Event{Body: &event.Event_SessionOpen{SessionOpen: &event.SessionOpen{Id: 1, Host: "h4", Nonce: []byte("n")}}})
	w.apply(&event.Event{Body: &event.Event_LeaseSet{LeaseSet: &event.LeaseSet{
		Entries: []*event.LeaseSet_Entry{{Session: 1, Ino: 2, Want: uint32(msg.Want_WANT_WRITE)}}}}})
	first := func() (n int) {
		for seed := range uint64(100) {
			if Place(w.s, w.views, 2, seed, 3)[0] == 5 {
				n++
			}
		}
		return n
	}
	if n := first(); n != 100 {
		t.Errorf("%d of 100 chunks begin on the host that writes", n)
	}
	w.view(5).Free /= 2
	if n := first(); n > 40 {
		t.Errorf("%d of 100 chunks begin on the host that writes, though it is fuller", n)
	}
	w.policy(state.Policy{Norm: 3, Min: 2, Prefer: "h1,h2"})
	got := Place(w.s, w.views, 2, 1, 3)
	if got[0] != 2 && got[0] != 3 || got[1] != 2 && got[1] != 3 {
		t.Errorf("%v, though h1 and h2 are preferred", got)
	}
}

// TestSitesAreAsGood: by whichever way a place is found, the ranks are the same, and each server is about as likely.
func TestSitesAreAsGood(t *testing.T) {
	seeds(t, 60, func(w *world) {
		for i := range 3 + w.rand.IntN(30) {
			host := i / (1 + w.rand.IntN(2))
			w.server(fmt.Sprint("h", host), fmt.Sprintf("room%d/row%d/r%d", host/8, host/4, host/2), uint32(w.rand.IntN(2)), 10+w.rand.IntN(400))
		}
		w.measure()
		for i := range w.views {
			w.views[i].Slow, w.views[i].Live = w.rand.IntN(10) == 0, w.rand.IntN(10) > 0
		}
		if w.rand.IntN(2) == 0 {
			w.apply(&event.Event{Body: &event.Event_SessionOpen{SessionOpen: &event.SessionOpen{Id: 1, Host: "h2", Nonce: []byte("n")}}})
			w.apply(&event.Event{Body: &event.Event_LeaseSet{LeaseSet: &event.LeaseSet{
				Entries: []*event.LeaseSet_Entry{{Session: 1, Ino: 2, Want: uint32(msg.Want_WANT_WRITE)}}}}})
		}
		norm := 1 + w.rand.IntN(3)
		p := state.Policy{Norm: uint32(norm), Min: 1, Domain: state.Domain(1 + w.rand.IntN(3)), Tier: uint8(w.rand.IntN(3))}
		if w.rand.IntN(2) == 0 {
			p.Prefer = "h1,h3"
		}
		w.policy(p)
		exclude := w.views[w.rand.IntN(len(w.views))].ID
		sites := NewSites(w.s, w.views)
		const rounds = 1000
		var by [2]map[id.ServerID]int // of first replicas
		by[0], by[1] = map[id.ServerID]int{}, map[id.ServerID]int{}
		for seed := range uint64(rounds) {
			for i, got := range [][]id.ServerID{Place(w.s, w.views, 2, seed, norm, exclude), sites.Place(w.s, 2, seed, norm, exclude)} {
				if len(got) > 0 {
					by[i][got[0]]++
				}
				if slices.Contains(got, exclude) {
					w.t.Fatalf("%v has the excluded %v", got, exclude)
				}
			}
		}
		for _, v := range w.views {
			a, b := by[0][v.ID], by[1][v.ID]
			// Twelve standard deviations of a difference of two such counts.
			if d := float64(a - b); d*d > 144*2*float64(max(a, b, 1)) {
				w.t.Errorf("%v is first %d times when all are looked at, %d times by the sites", v.ID, a, b)
			}
		}
	})
}

// BenchmarkPlace: what a new chunk costs where there are many servers.
func BenchmarkPlace(b *testing.B) {
	for _, racks := range []int{3, 25} {
		b.Run(fmt.Sprint("servers=", racks*40), func(b *testing.B) {
			s, views := large(b, racks, 100*racks)
			b.ReportAllocs()
			for seed := uint64(0); b.Loop(); seed++ {
				Place(s, views, 2, seed, 3)
			}
		})
		b.Run(fmt.Sprint("sites/servers=", racks*40), func(b *testing.B) {
			s, views := large(b, racks, 100*racks)
			sites := NewSites(s, views)
			b.ReportAllocs()
			for seed := uint64(0); b.Loop(); seed++ {
				sites.Place(s, 2, seed, 3)
			}
		})
		b.Run(fmt.Sprint("prepare/servers=", racks*40), func(b *testing.B) {
			s, views := large(b, racks, 100*racks)
			for b.Loop() {
				NewSites(s, views)
			}
		})
	}
}
