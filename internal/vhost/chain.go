package vhost

import "fmt"

// Flags of a descriptor.
const (
	descNext     = 1
	descWrite    = 2
	descIndirect = 4
	descSize     = 16
)

// chain is the memory of one request: what the guest has filled, then what it wants filled.
type chain struct {
	out, in   [][]byte // pieces, none of them empty
	nOut, nIn int      // bytes
}

func (c *chain) reset() {
	clear(c.out)
	clear(c.in)
	c.out, c.in = c.out[:0], c.in[:0]
	c.nOut, c.nIn = 0, 0
}

// maxPieces bounds the pieces of a chain, of which a region's end can make two of one segment.
const maxPieces = 2 * (maxSegments + 2)

// walk follows the descriptors from head on. desc is a queue's table of num descriptors, which the guest may change meanwhile: each is read once.
func (c *chain) walk(t *table, desc []byte, num uint16, head uint16, indirect bool) error {
	c.reset()
	count, at, tableOf := int(num), head, desc
	nested := false
	for steps := 0; ; steps++ {
		if int(at) >= count || steps >= count {
			return fmt.Errorf("%w: descriptor %d of %d, after %d steps", ErrProtocol, at, count, steps)
		}
		var d [descSize]byte
		copy(d[:], tableOf[int(at)*descSize:])
		addr, n, flags, next := le.Uint64(d[:]), le.Uint32(d[8:]), le.Uint16(d[12:]), le.Uint16(d[14:])
		if flags&descIndirect != 0 {
			if nested || !indirect || flags&descNext != 0 || n == 0 || n%descSize != 0 || n/descSize > maxQueueSize {
				return fmt.Errorf("%w: an indirect descriptor of %d bytes with flags %#x, nested: %v", ErrProtocol, n, flags, nested)
			}
			if tableOf = t.guest(addr, uint64(n)); len(tableOf) != int(n) {
				return fmt.Errorf("%w: an indirect table of %d bytes at %#x is not in the guest's memory", ErrProtocol, n, addr)
			}
			nested, count, at, steps = true, int(n/descSize), 0, -1
			continue
		}
		if err := c.add(t, addr, n, flags&descWrite != 0); err != nil {
			return err
		}
		if flags&descNext == 0 {
			return nil
		}
		at = next
	}
}

// add takes one descriptor's memory into the chain.
func (c *chain) add(t *table, addr uint64, n uint32, in bool) error {
	if !in && c.nIn > 0 {
		return fmt.Errorf("%w: memory to read behind memory to fill", ErrProtocol)
	}
	for n > 0 {
		p := t.guest(addr, uint64(n))
		if p == nil {
			return fmt.Errorf("%w: %d bytes at %#x are not in the guest's memory", ErrProtocol, n, addr)
		}
		if len(c.out)+len(c.in) >= maxPieces || c.nOut+c.nIn+len(p) > maxRequest+4096 {
			return fmt.Errorf("%w: a request of more than %d pieces or %d bytes", ErrProtocol, maxPieces, maxRequest)
		}
		if in {
			c.in = appendPiece(c.in, p)
			c.nIn += len(p)
		} else {
			c.out = appendPiece(c.out, p)
			c.nOut += len(p)
		}
		addr, n = addr+uint64(len(p)), n-uint32(len(p))
	}
	return nil
}

// appendPiece adds p, to the last piece if it follows that in memory. Pieces are of the same region then, or of two that are mapped side by side.
func appendPiece(all [][]byte, p []byte) [][]byte {
	if k := len(all); k > 0 && address(all[k-1])+uintptr(len(all[k-1])) == address(p) {
		all[k-1] = join(all[k-1], p)
		return all
	}
	return append(all, p)
}

// cut takes n bytes off the front of pieces and copies them to p, if p is not nil. Preconditions: there are so many.
func cut(all [][]byte, n int, p []byte) [][]byte {
	for n > 0 {
		k := min(n, len(all[0]))
		copy(p, all[0][:k])
		if p != nil {
			p = p[k:]
		}
		if all[0] = all[0][k:]; len(all[0]) == 0 {
			all = all[1:]
		}
		n -= k
	}
	return all
}

// gather copies pieces to p, which has room.
func gather(p []byte, all [][]byte) {
	for _, q := range all {
		p = p[copy(p, q):]
	}
}

// scatter copies p to pieces.
func scatter(all [][]byte, p []byte) {
	for _, q := range all {
		p = p[copy(q, p):]
	}
}
