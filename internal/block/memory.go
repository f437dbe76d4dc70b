package block

import (
	"math/bits"

	"varve/internal/disk"
)

const (
	minClass = 12 // 4 KiB
	maxClass = 25 // 32 MiB
	// MaxPayload is the largest buffer, in bytes.
	MaxPayload = 1 << maxClass
	// MinMemory is the least memory of a loop, in bytes: two requests of the largest kind.
	MinMemory = 2 * MaxPayload
)

// memory is aligned buffers of a few lengths, which are used again. It belongs to one thread.
type memory struct {
	limit int // bytes, of those that are out and those that are kept
	used  int
	free  [maxClass + 1][][]byte
}

func classOf(n int) int { return max(minClass, bits.Len(uint(max(n, 1)-1))) }

// Get returns n bytes, aligned to BlockSize, or nil if they are not to be had before something is given back. Preconditions: n is at most MaxPayload.
func (m *memory) Get(n int) []byte {
	c := classOf(n)
	if k := len(m.free[c]); k > 0 {
		p := m.free[c][k-1]
		m.free[c][k-1] = nil
		m.free[c] = m.free[c][:k-1]
		return p[:n]
	}
	for big := maxClass; m.used+1<<c > m.limit && big >= minClass; big-- {
		for k := len(m.free[big]); k > 0 && m.used+1<<c > m.limit; k-- {
			m.free[big][k-1] = nil
			m.free[big] = m.free[big][:k-1]
			m.used -= 1 << big
		}
	}
	if m.used+1<<c > m.limit {
		return nil
	}
	m.used += 1 << c
	return disk.AlignedBuffer(1 << c)[:n]
}

// Put gives back what Get returned.
func (m *memory) Put(p []byte) {
	c := classOf(cap(p))
	m.free[c] = append(m.free[c], p[:0])
}

// Limit is how much can be out at once, in bytes.
func (m *memory) Limit() int { return m.limit }
