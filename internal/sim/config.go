package sim

import (
	"fmt"
	"math/rand"
	"time"
)

// family is which promises a run may count on.
type family int

const (
	// kills: processes die, hosts are cut off; what was answered is in no page cache, so nothing of it may be lost.
	kills family = iota
	// loneFamily: one chunk server, always the same, also loses power while the others run on; nothing that was answered may be lost.
	loneFamily
	// blackout: at one moment everything loses power; what was flushed must be there.
	blackout
	families
)

var familyNames = [families]string{"kills", "lone power loss", "blackout"}

// config is what a run is like, drawn from its seed.
type config struct {
	shape
	family  family
	shared  bool // all clients have all files open for writing; else each file has one writer at a time
	clients int
	files   int
	workers int           // of a client
	active  time.Duration // faults and load
	think   time.Duration // pause between two operations of a worker, at most
	ops     int           // of a worker, at most
	faults  int
	rules   rules
	full    bool  // disks fill up
	punches int   // of a hundred writes so many put zeros
	cuts    int   // and so many make the file shorter
	kinds   []int // of faults; nil: all
	steady  bool  // nobody flushes or closes, which a metadata server may have to be asked for
}

const maxFiles = 3

func (c config) String() string {
	who := "one writer a file"
	if c.shared {
		who = "shared files"
	}
	return fmt.Sprintf("%s, %d metadata and %d chunk servers, replicas %s, %d clients with %d workers, %d files, %s, %d%% punches, %d%% cuts, %v, %d faults", familyNames[c.family], c.metas,
		c.shape.servers, c.replicas, c.clients, c.workers, c.files, who, c.punches, c.cuts, c.active, c.faults)
}

func draw[T any](rng *rand.Rand, of ...T) T { return of[rng.Intn(len(of))] }

func newConfig(rng *rand.Rand) config {
	c := config{
		shape:   shape{metas: draw(rng, 1, 1, 1, 1, 1, 3), servers: draw(rng, 3, 3, 4), replicas: draw(rng, "3:2", "3:2", "3:2", "3:1", "2:1", "2:1", "1:1")},
		family:  draw(rng, kills, kills, kills, loneFamily, blackout),
		shared:  rng.Intn(3) == 0,
		clients: draw(rng, 1, 1, 2, 2, 3),
		files:   draw(rng, 1, 1, 2, 2, maxFiles),
		workers: 1 + rng.Intn(2),
		active:  draw[time.Duration](rng, 2, 8, 15, 30)*time.Second + time.Duration(rng.Intn(1e9)),
		faults:  rng.Intn(7),
		full:    rng.Intn(8) == 0,
	}
	c.punches, c.cuts = draw(rng, 0, 10, 30), draw(rng, 0, 0, 8)
	c.ops = draw(rng, 20, 50, 150)
	c.think = draw(rng, min(20*time.Millisecond, 2*c.active/time.Duration(c.ops)), 2*c.active/time.Duration(c.ops))
	if c.family == loneFamily {
		c.replicas = "3:2" // another must have what the one loses, and with a minimum of 1 all others may be dropped
	}
	if c.shared {
		c.clients = max(2, c.clients)
		if c.faults > 0 {
			c.cuts = 0 // of two mounts that write a file one could die and take a size with it that the other does not know of
		}
	}
	if rng.Intn(2) == 0 {
		c.rules = rules{lost: draw[uint64](rng, 0, 200, 1000), reply: draw[uint64](rng, 0, 200, 1000), late: draw[uint64](rng, 0, 100, 500),
			lateBy: draw(rng, 30*time.Millisecond, time.Second, 9*time.Second)}
	}
	return c
}
