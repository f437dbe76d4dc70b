package state

// sets finds equal replica sets again, so that chunks share them: a set takes up 24 bytes, and with a few servers there are few of them. It is a table in which
// a set has one of a few places, from which younger ones put it out. So it is bounded, what nobody uses is not kept for ever, and equal sets may be there twice: nothing
// depends on that.
type sets struct {
	table  []*replicaSet // rows of setWays, a power of two of them
	missed int           // since it has grown
}

const (
	setWays = 4
	minSets = 64
	maxSets = 1 << 16 // with more servers than that is enough for, nearly every chunk has a set of its own
)

// find returns a set that equals r.
func (t *sets) find(r replicaSet) *replicaSet {
	if t.table == nil {
		t.table = make([]*replicaSet, minSets)
	}
	row := t.row(&r)
	for _, e := range row {
		if e != nil && *e == r {
			return e
		}
	}
	if t.missed++; t.missed > 2*len(t.table) && len(t.table) < maxSets {
		t.grow()
		row = t.row(&r)
	}
	own := r
	put(row, &own)
	return &own
}

func (t *sets) row(r *replicaSet) []*replicaSet {
	i := r.hash() % uint64(len(t.table)/setWays) * setWays
	return t.table[i : i+setWays]
}

// put puts r first; what has been there for longest goes.
func put(row []*replicaSet, r *replicaSet) {
	copy(row[1:], row)
	row[0] = r
}

// grow makes the table four times as large: what it has is not enough.
func (t *sets) grow() {
	old := t.table
	t.table, t.missed = make([]*replicaSet, min(4*len(old), maxSets)), 0
	for _, r := range old {
		if r != nil {
			put(t.row(r), r)
		}
	}
}

// hash mixes all parts of the set; the low bits are as good as the others (the multiplier is that of Knuth's linear congruential generator).
func (r *replicaSet) hash() uint64 {
	const k = 6364136223846793005
	h := uint64(r.norm)
	for _, v := range r.servers {
		h = (h ^ uint64(v)) * k
		h ^= h >> 32
	}
	return h
}
