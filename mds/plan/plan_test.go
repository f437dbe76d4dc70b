package plan

import (
	"fmt"
	"slices"
	"testing"

	"varve/internal/id"
	"varve/mds/event"
	"varve/mds/state"
)

// cluster returns a state with n servers, perHost of them on a host, one file, and views of all as live.
func cluster(n, perHost int) (*state.State, []ServerView) {
	s := state.New()
	s.Apply(&event.Event{Body: &event.Event_ClusterInit{ClusterInit: &event.ClusterInit{Uuid: make([]byte, 16), Perm: 0o755}}})
	s.Apply(&event.Event{Body: &event.Event_Create{Create: &event.Create{Parent: 1, Name: []byte("f"), Ino: 2, Type: 1}}})
	var views []ServerView
	for i := 1; i <= n; i++ {
		host := fmt.Sprint("h", (i-1)/perHost)
		s.Apply(&event.Event{Body: &event.Event_ServerAdd{ServerAdd: &event.ServerAdd{Id: uint32(i), Uuid: []byte{byte(i)}, Host: host}}})
		views = append(views, ServerView{ID: id.ServerID(i), Host: host, Free: 1 << 40, Total: 2 << 40, Live: true})
	}
	return s, views
}

func alloc(s *state.State, c uint64, servers ...uint32) {
	s.Apply(&event.Event{Body: &event.Event_ChunkAlloc{ChunkAlloc: &event.ChunkAlloc{
		Ino: 2, Norm: 3, Chunks: []*event.ChunkAlloc_Entry{{Index: uint32(c), Id: c, Epoch: 1, Servers: servers}},
	}}})
}

func join(s *state.State, c uint64, server uint32, epoch uint64) {
	s.Apply(&event.Event{Body: &event.Event_ReplicaJoin{ReplicaJoin: &event.ReplicaJoin{Chunk: c, Server: server, Epoch: epoch}}})
}

func TestPlace(t *testing.T) {
	s, views := cluster(6, 2)
	for seed := range uint64(500) {
		got := Place(s, views, 2, seed, 3)
		hosts := map[string]bool{}
		for _, v := range got {
			hosts[views[v-1].Host] = true
		}
		if len(got) != 3 || len(hosts) != 3 {
			t.Fatalf("seed %d: %v on %d hosts", seed, got, len(hosts))
		}
		if again := Place(s, views, 2, seed, 3); !slices.Equal(got, again) {
			t.Fatalf("seed %d: %v, then %v", seed, got, again)
		}
		if more := Place(s, views, 2, seed, 5, 1); len(more) != 5 || slices.Contains(more, 1) {
			t.Fatalf("seed %d: %v without cs1", seed, more)
		}
	}
	views[0].Live, views[1].Free = false, 1<<20
	s.Apply(&event.Event{Body: &event.Event_ServerRetire{ServerRetire: &event.ServerRetire{Id: 3}}})
	if got := Place(s, views, 2, 7, 9); len(got) != 3 || slices.Contains(got, 1) || slices.Contains(got, 2) || slices.Contains(got, 3) {
		t.Errorf("got %v, want cs4, cs5, cs6 in some order", got)
	}
}

// TestPlaceWeight: a server with three times the room is chosen three times as often.
func TestPlaceWeight(t *testing.T) {
	s, views := cluster(2, 1)
	views[1].Free = 3 << 40
	n := 0
	const tries = 20000
	for seed := range uint64(tries) {
		if Place(s, views, 2, seed, 1)[0] == 2 {
			n++
		}
	}
	if share := float64(n) / tries; share < 0.73 || share > 0.77 {
		t.Errorf("share %.3f, want 0.75", share)
	}
}

func TestRepair(t *testing.T) {
	for name, tc := range map[string]struct {
		setup  func(s *state.State, v []ServerView)
		budget Budget
		want   string
	}{
		"whole": {func(s *state.State, v []ServerView) { alloc(s, 1, 1, 2, 3) }, Budget{}, "[]"},
		"fewest first": {func(s *state.State, v []ServerView) { alloc(s, 1, 1, 2); alloc(s, 2, 1) },
			Budget{}, "[join 2 to cs2 from cs1 join 1 to cs3 from cs2]"},
		"old copy first": {func(s *state.State, v []ServerView) {
			alloc(s, 1, 1, 2)
			v[3].Stale = func(c id.ChunkID) bool { return c == 1 }
		}, Budget{}, "[join 1 to cs4 from cs1]"},
		"most space": {func(s *state.State, v []ServerView) { alloc(s, 1, 1, 2); v[3].Free++ }, Budget{}, "[join 1 to cs4 from cs1]"},
		"least load": {func(s *state.State, v []ServerView) { alloc(s, 1, 1, 2); v[2].Load, v[0].Load = 1, 1 },
			Budget{}, "[join 1 to cs4 from cs2]"},
		"joining again": {func(s *state.State, v []ServerView) { alloc(s, 1, 1, 2); join(s, 1, 3, 2) },
			Budget{}, "[join 1 to cs3 from cs1]"},
		"joining away": {func(s *state.State, v []ServerView) { alloc(s, 1, 1, 2); join(s, 1, 3, 2); v[2].Live = false },
			Budget{}, "[]"},
		"joining lost": {func(s *state.State, v []ServerView) {
			alloc(s, 1, 1, 2)
			join(s, 1, 3, 2)
			v[2].Live, v[2].Lost = false, true
		}, Budget{}, "[drop 1 to cs3 from cs0]"},
		"joining on a drained server": {func(s *state.State, v []ServerView) {
			alloc(s, 1, 1, 2)
			join(s, 1, 3, 2)
			v[2].Draining = true
		}, Budget{}, "[drop 1 to cs3 from cs0]"},
		"joining, not needed": {func(s *state.State, v []ServerView) { alloc(s, 1, 1, 2, 3); join(s, 1, 4, 2) },
			Budget{}, "[drop 1 to cs4 from cs0]"},
		"no source": {func(s *state.State, v []ServerView) { alloc(s, 1, 1); v[0].Live = false }, Budget{}, "[]"},
		"no room":   {func(s *state.State, v []ServerView) { alloc(s, 1, 1); v[0].Load = 2 }, Budget{}, "[]"},
		"busy":      {func(s *state.State, v []ServerView) { alloc(s, 99, 1) }, Budget{}, "[]"},
		"bounded": {func(s *state.State, v []ServerView) { alloc(s, 1, 1, 2); alloc(s, 2, 1, 2); alloc(s, 3, 1, 2) },
			Budget{Actions: 2}, "[join 1 to cs3 from cs1 join 2 to cs4 from cs2]"},
		"other host": {func(s *state.State, v []ServerView) {
			alloc(s, 1, 1, 2)
			s.Apply(&event.Event{Body: &event.Event_ServerUpdate{ServerUpdate: &event.ServerUpdate{Id: 3, Host: "h0"}}})
			v[2].Host = "h0"
		}, Budget{}, "[join 1 to cs4 from cs1]"},
	} {
		t.Run(name, func(t *testing.T) {
			s, views := cluster(4, 1)
			tc.setup(s, views)
			var got []string
			hold := func(c *state.Chunk) Hold {
				if c.ID == 99 {
					return HoldAll
				}
				return HoldNone
			}
			for _, a := range NewPlanner().Next(Input{State: s, Servers: views, Budget: tc.budget, Hold: hold}).Actions {
				got = append(got, fmt.Sprintf("%s %d to %v from %v", []string{"", "join", "drop"}[a.Kind], a.Chunk, a.Target, a.Source))
			}
			if fmt.Sprint(got) != tc.want {
				t.Errorf("got %v, want %s", got, tc.want)
			}
		})
	}
}
