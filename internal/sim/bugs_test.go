package sim

import (
	"encoding/binary"
	"hash/crc32"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"varve/internal/planted"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// bugs are faults planted in the cluster: frames that are changed on their way have a process do what it must not. Each must be found.
var bugs = map[string]meddler{
	"none": nil,

	// A client takes a write for done though one server never got it.
	"acknowledge-before-all-replicas": func(_, to string, b []byte) (instead, answer []byte) {
		if typeOf(b) == wire.Write && to == serverIP(1) {
			return nil, ok(b, nil)
		}
		return b, nil
	},
	// A punch never reaches one server.
	"lose-a-punch": func(_, to string, b []byte) (instead, answer []byte) {
		if t := typeOf(b); (t == wire.Punch || t == wire.ChunkPunch) && to == serverIP(1) {
			return nil, ok(b, nil)
		}
		return b, nil
	},
	// A flush reaches no server.
	"flush-nothing": func(_, _ string, b []byte) (instead, answer []byte) {
		if typeOf(b) == wire.Flush {
			return nil, ok(b, nil)
		}
		return b, nil
	},
	// A replica is promoted though nothing was copied to it.
	"promote-too-early": func(_, _ string, b []byte) (instead, answer []byte) {
		if typeOf(b) == wire.ChunkRebuild {
			return nil, ok(b, new(msg.ChunkRebuildReply))
		}
		return b, nil
	},
}

// inclining meddlers are no bugs: with them a run is likelier to meet one.
var inclining = map[string]meddler{
	// Between the end of a session and the fence there is time for something of it to arrive.
	planted.GrantBeforeFence: slowFences, "none-slow-fences": slowFences,
}

// slowFences has chunk servers hear of fences seconds late: they are not told with heartbeats, and the first requests are lost.
func slowFences(_, _ string, b []byte) (instead, answer []byte) {
	t, answers := wire.Type(binary.LittleEndian.Uint16(b[4:])), b[7] != 0
	if t == wire.Fence && !answers && binary.LittleEndian.Uint64(b[8:])%3 != 0 {
		return nil, nil
	}
	m := new(msg.HeartbeatReply)
	if t == wire.Heartbeat && answers && m.UnmarshalVT(b[wire.HeaderSize:]) == nil && len(m.Fenced) > 0 {
		m.Fenced = nil
		return reply(b, m), nil
	}
	return b, nil
}

// inclined are what makes a run likelier to meet a bug, where a run of any kind meets it too seldom for a test of seconds.
var inclined = map[string]func(*config){
	"none-takeovers": takeovers, "none-stragglers": stragglers, "none-slow-fences": stragglers, "none-lone": lonePower, "none-rebuilds": rebuilds,
	// Replica sets that change refuse what a fenced session sends as well, by their epoch; a single replica has none that changes.
	planted.ForgetFence:      stragglers,
	planted.GrantBeforeFence: stragglers,
	// What a server has lost with its power is seen if it is read before it was made equal.
	planted.ServeUnclean: lonePower,
	planted.ReadJoining:  rebuilds,
}

func rebuilds(c *config) {
	c.family, c.shape.replicas, c.shared, c.faults, c.kinds, c.steady = kills, "2:1", false, 10, []int{0}, true
	c.active, c.ops, c.think, c.rules, c.punches, c.cuts = 15*time.Second, 1000, 20*time.Millisecond, rules{}, 0, 0
}

func lonePower(c *config) {
	c.family, c.shape.replicas, c.faults, c.kinds, c.punches, c.cuts, c.steady = loneFamily, "3:2", 20, []int{quick}, 0, 0, true
	c.shared, c.clients, c.files, c.workers, c.metas, c.shape.servers = true, 2, 1, 1, 1, 3 // all is read at the first replica
	c.active, c.ops, c.think, c.rules = 10*time.Second, 1000, 60*time.Millisecond, rules{}
}

func takeovers(c *config) {
	c.family, c.shape.replicas, c.shared, c.faults, c.kinds = kills, "1:1", false, 3, []int{handFence}
	c.active, c.ops, c.think, c.steady, c.metas = 15*time.Second, 1000, 40*time.Millisecond, true, 1
	c.punches, c.cuts = 0, 0
}

// stragglers are takeovers after which something of the old client arrives: it stops when it is told that it is fenced, or when its lease is over.
func stragglers(c *config) {
	takeovers(c)
	c.rules = rules{late: 400, lateBy: 20 * time.Second}
}

// typeOf returns the type of a request, 0 for an answer.
func typeOf(b []byte) wire.Type {
	if b[7] != 0 {
		return 0
	}
	return wire.Type(binary.LittleEndian.Uint16(b[4:]))
}

// ok is the answer to b that all is well.
func ok(b []byte, m wire.Message) []byte {
	a := append([]byte(nil), b[:wire.HeaderSize]...)
	a[7] = 1
	return reply(a, m)
}

// reply is the answer b with another message.
func reply(b []byte, m wire.Message) []byte {
	var body []byte
	if m != nil {
		var err error
		if body, err = m.MarshalVT(); err != nil {
			return nil
		}
	}
	le, table := binary.LittleEndian, crc32.MakeTable(crc32.Castagnoli)
	a := append(append([]byte(nil), b[:wire.HeaderSize]...), body...)
	le.PutUint32(a[28:], uint32(len(body)))
	le.PutUint32(a[32:], 0)
	le.PutUint32(a[36:], crc32.Checksum(body, table))
	le.PutUint32(a[44:], crc32.Checksum(a[:44], table))
	return a
}

// plantedSeeds is how many runs a planted bug may take to be found, from plantedFirst on, which is at or right before one that found it.
const plantedSeeds = 200

// plantedFirst has all bugs. In brackets is how many of so many runs from 1 on found them; those of package planted with the runs inclined to them.
var plantedFirst = map[string]uint64{
	"acknowledge-before-all-replicas": 1,  // (19 of 25)
	"promote-too-early":               1,  // (18 of 40)
	"lose-a-punch":                    5,  // (56 of 120)
	"flush-nothing":                   39, // (7 of 100)
	planted.ForgetFence:               4,  // (4 of 60)
	planted.GrantBeforeFence:          4,  // (5 of 120)
	planted.ServeUnclean:              4,  // (2 of 20)
	planted.ReadJoining:               4,  // (2 of 20)
	planted.SkipAdoption:              1,  // (76 of 120)
	planted.ApplyTwice:                1,  // (4 of 5)
}

// TestPlantedBugs: the checkers find each bug within a few runs, all of which find nothing without it.
func TestPlantedBugs(t *testing.T) {
	if os.Getenv(seedEnv) != "" || os.Getenv(childEnv) != "" {
		t.Skip("another run")
	}
	for _, name := range slices.Sorted(maps.Keys(plantedFirst)) {
		t.Run(name, func(t *testing.T) {
			if _, framed := bugs[name]; !framed && !planted.On {
				t.Skip("needs -tags planted")
			}
			found := ""
			n := 0
			for from := plantedFirst[name]; n < plantedSeeds && found == ""; from += 3 {
				child(t, from, 3, name, func(r *Report) {
					n++
					if len(r.Findings) > 0 && found == "" {
						found = r.Findings[0]
						t.Logf("run %d, seed %d: %s", n, r.Seed, strings.SplitN(found, "\n", 2)[0])
					}
				})
			}
			if found == "" {
				t.Errorf("not found in %d runs", n)
			}
		})
	}
}

// TestInclined: runs that are inclined to a bug find nothing without it.
func TestInclined(t *testing.T) {
	if os.Getenv(seedEnv) != "" || os.Getenv(childEnv) != "" || !planted.On {
		t.Skip("needs -tags planted, and no other run")
	}
	for _, name := range []string{"none-takeovers", "none-stragglers", "none-slow-fences", "none-lone", "none-rebuilds"} {
		child(t, 1, 6, name, func(r *Report) {
			for _, f := range r.Findings {
				t.Errorf("%s, seed %d: %s", name, r.Seed, f)
			}
		})
	}
}
