package vhost

import (
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// table is the guest's memory, mapped. It is unmapped when the last of who holds it lets go: the device while it is the present one, and each request.
type table struct {
	regions []mapped
	refs    atomic.Int64
}

type mapped struct {
	region
	whole []byte // the mapping
	mem   []byte // size bytes of it
}

// mapTable maps the regions, each of its own descriptor, which it leaves open.
func mapTable(all []region, fds []int) (*table, error) {
	if len(fds) != len(all) {
		return nil, fmt.Errorf("%w: %d descriptors for %d regions of memory", ErrProtocol, len(fds), len(all))
	}
	t := &table{}
	t.refs.Store(1)
	for i, r := range all {
		var st unix.Stat_t
		if err := unix.Fstat(fds[i], &st); err != nil {
			return nil, errors.Join(fmt.Errorf("memory of the guest: %w", err), t.unmap())
		}
		// What lies beyond the end of the file would end this process when it is touched.
		if st.Mode&unix.S_IFMT == unix.S_IFREG && (r.offset > uint64(st.Size) || r.size > uint64(st.Size)-r.offset) {
			return nil, errors.Join(fmt.Errorf("%w: region %d of memory reaches to %#x of a file of %#x bytes", ErrProtocol, i, r.offset+r.size, st.Size), t.unmap())
		}
		for _, o := range t.regions {
			if r.guest < o.guest+o.size && o.guest < r.guest+r.size {
				return nil, errors.Join(fmt.Errorf("%w: regions of memory overlap at %#x", ErrProtocol, r.guest), t.unmap())
			}
		}
		p, err := unix.Mmap(fds[i], 0, int(r.offset+r.size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("map %#x bytes of the guest's memory (it must be shared: memory-backend-memfd with share=on): %w", r.size, err), t.unmap())
		}
		t.regions = append(t.regions, mapped{r, p, p[r.offset:]})
	}
	return t, nil
}

func (t *table) hold() { t.refs.Add(1) }

// release lets go of the table. An error means that memory stays mapped.
func (t *table) release() error {
	if t.refs.Add(-1) > 0 {
		return nil
	}
	return t.unmap()
}

func (t *table) unmap() error {
	var errs []error
	for i := range t.regions {
		errs = append(errs, unix.Munmap(t.regions[i].whole))
	}
	t.regions = nil
	return errors.Join(errs...)
}

// guest returns the memory from a physical address of the guest on, n bytes at most: as much as lies in the same region. It returns nil where there is none.
func (t *table) guest(addr, n uint64) []byte {
	for i := range t.regions {
		r := &t.regions[i]
		if off := addr - r.guest; addr >= r.guest && off < r.size {
			n = min(n, r.size-off)
			return r.mem[off : off+n : off+n]
		}
	}
	return nil
}

// front returns n bytes from an address of the front end on, which all lie in one region; nil if they do not.
func (t *table) front(addr, n uint64) []byte {
	for i := range t.regions {
		r := &t.regions[i]
		if off := addr - r.user; addr >= r.user && off < r.size && n <= r.size-off {
			return r.mem[off : off+n : off+n]
		}
	}
	return nil
}
