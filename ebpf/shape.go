package ebpf

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// shapeMajor is the number of our queues ("va"), by which they are known again.
const shapeMajor = 0x7661

// shapeRest is the minor number of what has no class.
const shapeRest = 0xfffe

// quantum is how many bytes a class sends before the next one of its priority has its turn.
const quantum = 60000

// Share is what a class has of a link.
type Share struct {
	Class     Class
	Guarantee uint64 // bits a second that it gets whenever it has something to send
	Ceiling   uint64 // bits a second that it gets at most, of what others leave; 0: all of the link
	Urgency   uint8  // who gets first what others leave: 0 before 7
}

// Shaper has the kernel share an interface's way out among classes, by HTB, until Close.
type Shaper struct {
	h      *netlink.Handle // of the namespace in which Shape was called
	link   netlink.Link
	shares []Share

	mu     sync.Mutex
	closed bool
}

// Shape makes queues on an interface, looked up in the network namespace of the calling thread: link is its speed in bits a second. What has no class gets
// what is left of the guarantees, at least a hundredth of the link. Which class a frame is in the classifier says: Options.Priority is to be Priorities. Queues
// that an administrator has made are refused; ours, which a crashed process left, are made anew. They do no harm meanwhile: without
// the classifier all is of no class and has the whole link.
func Shape(ifname string, link uint64, shares []Share) (*Shaper, error) {
	var guaranteed uint64
	for _, s := range shares {
		if s.Class >= MaxClasses || s.Guarantee == 0 || s.Guarantee > link || s.Ceiling > link || s.Ceiling > 0 && s.Ceiling < s.Guarantee || s.Urgency > 7 {
			return nil, fmt.Errorf("queues of %s: class %d has %d of %d bits a second guaranteed, %d at most, urgency %d: want some, up to the link, and 0 to 7",
				ifname, s.Class, s.Guarantee, link, s.Ceiling, s.Urgency)
		}
		guaranteed += s.Guarantee
	}
	if guaranteed > link-link/100 {
		return nil, fmt.Errorf("queues of %s: %d bits a second are guaranteed, of a link of %d of which a hundredth is to be left", ifname, guaranteed, link)
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("queues of %s: %w", ifname, typed(err))
	}
	dev, err := h.LinkByName(ifname)
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("queues of %s: %w", ifname, err)
	}
	s := &Shaper{h: h, link: dev, shares: slices.Clone(shares)}
	if err := s.begin(link, guaranteed); err != nil {
		h.Close()
		return nil, fmt.Errorf("queues of %s: %w", ifname, typed(err))
	}
	return s, nil
}

// ErrForeign means that an interface has queues that are not ours.
var ErrForeign = errors.New("the interface has queues of its own")

func (s *Shaper) begin(link, guaranteed uint64) error {
	ours, err := s.mine()
	if err != nil {
		return err
	}
	if ours {
		if err := s.remove(); err != nil {
			return err
		}
	}
	index := s.link.Attrs().Index
	root := netlink.NewHtb(netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(shapeMajor, 0), Parent: netlink.HANDLE_ROOT})
	root.Defcls = shapeRest
	if err := s.h.QdiscAdd(root); err != nil {
		return fmt.Errorf("HTB: %w", err)
	}
	add := func(parent, minor uint16, rate, ceil uint64, urgency uint8) error {
		attrs := netlink.ClassAttrs{LinkIndex: index, Parent: netlink.MakeHandle(shapeMajor, parent), Handle: netlink.MakeHandle(shapeMajor, minor)}
		return s.h.ClassAdd(netlink.NewHtbClass(attrs, netlink.HtbClassAttrs{Rate: rate, Ceil: ceil, Prio: uint32(urgency), Quantum: quantum}))
	}
	const trunk = 0xffff
	if err = add(0, trunk, link, link, 0); err == nil {
		err = add(trunk, shapeRest, max(link-guaranteed, link/100), link, 7)
	}
	for _, c := range s.shares {
		ceil := c.Ceiling
		if ceil == 0 {
			ceil = link
		}
		if err == nil {
			err = add(trunk, minorOf(c.Class), c.Guarantee, ceil, c.Urgency)
		}
	}
	if err != nil {
		return errors.Join(fmt.Errorf("HTB class: %w", err), s.remove())
	}
	return nil
}

func minorOf(c Class) uint16 { return uint16(c) + 1 }

// mine reports whether the interface has our queues, and fails if it has an administrator's.
func (s *Shaper) mine() (bool, error) {
	all, err := s.h.QdiscList(s.link)
	if err != nil {
		return false, fmt.Errorf("list queues: %w", err)
	}
	for _, q := range all {
		a := q.Attrs()
		switch {
		case a.Parent != netlink.HANDLE_ROOT:
		case a.Handle == netlink.MakeHandle(shapeMajor, 0):
			return true, nil
		case a.Handle != 0: // the kernel's own have no number
			return false, fmt.Errorf("%w (%s %x)", ErrForeign, q.Type(), a.Handle>>16)
		}
	}
	return false, nil
}

// Priorities returns what the classifier is to set, see Options.Priority.
func (s *Shaper) Priorities() map[Class]uint32 {
	m := map[Class]uint32{}
	for _, c := range s.shares {
		m[c.Class] = netlink.MakeHandle(shapeMajor, minorOf(c.Class))
	}
	return m
}

// Sent returns the bytes of each class that the queues have let go, and how many frames they had to drop.
func (s *Shaper) Sent() (bytes map[Class]uint64, drops map[Class]uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil, fmt.Errorf("queues: %w", net.ErrClosed)
	}
	classes, err := s.h.ClassList(s.link, netlink.MakeHandle(shapeMajor, 0))
	if err != nil {
		return nil, nil, fmt.Errorf("list HTB classes: %w", err)
	}
	bytes, drops = map[Class]uint64{}, map[Class]uint64{}
	for _, c := range classes {
		a := c.Attrs()
		minor := uint16(a.Handle)
		if minor == 0 || minor > MaxClasses || a.Statistics == nil {
			continue
		}
		if a.Statistics.Basic != nil {
			bytes[Class(minor-1)] = a.Statistics.Basic.Bytes
		}
		if a.Statistics.Queue != nil {
			drops[Class(minor-1)] = uint64(a.Statistics.Queue.Drops)
		}
	}
	return bytes, drops, nil
}

// Close takes the queues off; the kernel puts its own in their place. The interface may be gone.
func (s *Shaper) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	defer s.h.Close()
	return s.remove()
}

func (s *Shaper) remove() error {
	root := netlink.NewHtb(netlink.QdiscAttrs{LinkIndex: s.link.Attrs().Index, Handle: netlink.MakeHandle(shapeMajor, 0), Parent: netlink.HANDLE_ROOT})
	err := s.h.QdiscDel(root)
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	return err
}
