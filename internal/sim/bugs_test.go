package sim

import (
	"encoding/binary"
	"hash/crc32"
	"os"
	"strings"
	"sync"
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

// inclined are what makes a run likelier to meet a bug, where a run of any kind meets it too seldom for a test of seconds.
var inclined = map[string]func(*config){
	"none-takeovers": takeovers, "none-lone": lonePower, "none-rebuilds": rebuilds,
	// Replica sets that change refuse what a fenced session sends as well, by their epoch; a single replica has none that changes.
	planted.ForgetFence:      takeovers,
	planted.GrantBeforeFence: takeovers,
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
	var body []byte
	if m != nil {
		var err error
		if body, err = m.MarshalVT(); err != nil {
			return nil
		}
	}
	le, table := binary.LittleEndian, crc32.MakeTable(crc32.Castagnoli)
	a := append(append([]byte(nil), b[:wire.HeaderSize]...), body...)
	a[7] = 1
	le.PutUint32(a[28:], uint32(len(body)))
	le.PutUint32(a[32:], 0)
	le.PutUint32(a[36:], crc32.Checksum(body, table))
	le.PutUint32(a[44:], crc32.Checksum(a[:44], table))
	return a
}

// plantedSeeds is how many runs a planted bug may take to be found, from plantedFirst on, which is right before one that finds it: of those from 1
// on the second, the 75th and the 7th do.
const plantedSeeds = 100

var plantedFirst = map[string]uint64{"acknowledge-before-all-replicas": 2, "flush-nothing": 75, "promote-too-early": 7}

// TestPlantedBugs: the checkers find each bug within a few runs, all of which find nothing without it.
func TestPlantedBugs(t *testing.T) {
	if os.Getenv(seedEnv) != "" || os.Getenv(childEnv) != "" {
		t.Skip("another run")
	}
	for name := range bugs {
		if name == "none" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			found := ""
			first := plantedFirst[name]
			for from := first; from < first+plantedSeeds && found == ""; from += 3 {
				child(t, from, 3, name, func(r *Report) {
					mu.Lock()
					defer mu.Unlock()
					if len(r.Findings) > 0 && found == "" {
						found = r.Findings[0]
						t.Logf("seed %d: %s", r.Seed, strings.SplitN(found, "\n", 2)[0])
					}
				})
			}
			if found == "" {
				t.Errorf("not found in %d runs", plantedSeeds)
			}
		})
	}
}
