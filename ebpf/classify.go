package ebpf

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Limits of the classifier, as in bpf/classify.c.
const (
	MaxClasses = 16 // classes are numbers below it
	MaxPorts   = 1024
)

// ErrNotSupported means that the kernel (TCX came with 6.6) or the privilege (CAP_BPF and CAP_NET_ADMIN) for the classifier is
// missing. The error that wraps it says which.
var ErrNotSupported = errors.New("traffic classes are not supported")

// Class is a kind of traffic; 0 is all that has no class of its own.
type Class uint32

// Direction says which way a frame goes.
type Direction uint8

// Directions, seen from this host.
const (
	Ingress Direction = iota
	Egress
)

func (d Direction) String() string {
	if d == Ingress {
		return "in"
	}
	return "out"
}

// Options of a classifier. The zero value counts everything as class 0 and changes nothing.
type Options struct {
	// Ports gives TCP ports their class, at most MaxPorts. A frame is of the class of its destination port, else of its
	// source port, else of class 0. Frames from and to them are also counted by peer.
	Ports map[uint16]Class
	// Marks gives values of the DSCP (RFC 2474: 0 to 63) a class, which then counts instead of that of the port. So who sends says by a socket
	// option (IP_TOS: DSCP<<2) which of several kinds of traffic a connection to one port is for.
	Marks map[uint8]Class
	// DSCP is what frames from or to Ports get as their DSCP when they are sent; classes without one keep what the socket says.
	DSCP map[Class]uint8
	// Priority is what skb->priority becomes when a frame of the class is sent: an HTB class as major<<16|minor, or a number for
	// other queues. Classes without one keep what the socket says.
	Priority map[Class]uint32
	// NoTCX does without TCX, as on a kernel before 6.6.
	NoTCX bool
}

func (o Options) validate() error {
	var faults []error
	if len(o.Ports) > MaxPorts {
		faults = append(faults, fmt.Errorf("%d ports: at most %d", len(o.Ports), MaxPorts))
	}
	for port, class := range o.Ports {
		if class >= MaxClasses {
			faults = append(faults, fmt.Errorf("port %d: class %d: at most %d", port, class, MaxClasses-1))
		}
	}
	for class := range o.Priority {
		if class >= MaxClasses {
			faults = append(faults, fmt.Errorf("priority of class %d: at most %d", class, MaxClasses-1))
		}
	}
	for dscp, class := range o.Marks {
		if dscp > maxDSCP || class >= MaxClasses {
			faults = append(faults, fmt.Errorf("mark %d of class %d: at most %d of class %d", dscp, class, maxDSCP, MaxClasses-1))
		}
	}
	for class, dscp := range o.DSCP {
		if dscp > maxDSCP || class >= MaxClasses {
			faults = append(faults, fmt.Errorf("class %d gets DSCP %d: at most class %d, %d", class, dscp, MaxClasses-1, maxDSCP))
		}
	}
	return errors.Join(faults...)
}

const maxDSCP = 63

// PeerKey is what of the frames from and to Options.Ports is counted apart.
type PeerKey struct {
	Peer netip.Addr // the other end
	Key
}

// Key is what is counted apart.
type Key struct {
	Class     Class
	Direction Direction
}

// Count is the traffic of one Key since Attach. A large frame that the network card cuts counts as what it becomes:
// bytes are those of the Ethernet frames, without their checksums.
type Count struct{ Packets, Bytes uint64 }

// Classifier counts the traffic of one interface and sets priorities on it, until Close.
type Classifier struct {
	mu     sync.Mutex // guards closing against Counters
	objs   classifyObjects
	hooks  []io.Closer
	closed bool
}

// Attach puts a classifier on the interface, which is looked up in the network namespace of the calling thread. It runs
// before what is attached already, and does not keep it from running.
func Attach(ifname string, o Options) (*Classifier, error) {
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("classifier of %s: %w", ifname, err)
	}
	dev, err := net.InterfaceByName(ifname)
	if err != nil {
		return nil, fmt.Errorf("classifier of %s: %w", ifname, err)
	}
	c := &Classifier{}
	if err := c.attach(dev.Index, o); err != nil {
		return nil, errors.Join(fmt.Errorf("classifier of %s: %w", ifname, typed(err)), c.Close())
	}
	return c, nil
}

func (c *Classifier) attach(ifindex int, o Options) error {
	if err := loadClassifyObjects(&c.objs, nil); err != nil {
		return err
	}
	for port, class := range o.Ports {
		if err := c.objs.Ports.Put(port, uint32(class)); err != nil {
			return fmt.Errorf("port %d: %w", port, err)
		}
	}
	for class, priority := range o.Priority {
		if err := c.objs.Priorities.Put(uint32(class), priority); err != nil {
			return fmt.Errorf("priority of class %d: %w", class, err)
		}
	}
	for dscp, class := range o.Marks {
		if err := c.objs.Marks.Put(uint32(dscp), uint32(class)+1); err != nil {
			return fmt.Errorf("mark %d: %w", dscp, err)
		}
	}
	for class, dscp := range o.DSCP {
		if err := c.objs.Dscps.Put(uint32(class), uint32(dscp)+1); err != nil {
			return fmt.Errorf("DSCP of class %d: %w", class, err)
		}
	}
	for _, hook := range []struct {
		at      ebpf.AttachType
		program *ebpf.Program
	}{
		{ebpf.AttachTCXIngress, c.objs.ClassifyIngress},
		{ebpf.AttachTCXEgress, c.objs.ClassifyEgress},
	} {
		l, err := attachAt(ifindex, hook.program, hook.at, o.NoTCX)
		if err != nil {
			return err
		}
		c.hooks = append(c.hooks, l)
	}
	return nil
}

// attachAt hooks a program in by TCX, or by a filter of the clsact queue where the kernel has no TCX. The first ends with the process, the second
// stays after a crash, and does nothing but count until somebody takes it off or Attach puts the next one in its place.
func attachAt(ifindex int, program *ebpf.Program, at ebpf.AttachType, noTCX bool) (io.Closer, error) {
	if !noTCX {
		l, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: program, Attach: at, Anchor: link.Head()})
		if err == nil || !errors.Is(err, ebpf.ErrNotSupported) {
			return l, err
		}
	}
	return attachFilter(ifindex, program, at == ebpf.AttachTCXIngress)
}

// typed makes errors that mean a missing kernel or privilege wrap ErrNotSupported.
func typed(err error) error {
	switch {
	case errors.Is(err, ebpf.ErrNotSupported), errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("%w by this kernel: %w", ErrNotSupported, err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w without CAP_BPF and CAP_NET_ADMIN: %w", ErrNotSupported, err)
	}
	return err
}

// Counters returns what was counted since Attach, without what is zero.
func (c *Classifier) Counters() (map[Key]Count, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, fmt.Errorf("counters: %w", net.ErrClosed)
	}
	out := map[Key]Count{}
	var perCPU []classifyCount
	for slot := range uint32(2 * MaxClasses) {
		if err := c.objs.Counts.Lookup(slot, &perCPU); err != nil {
			return nil, fmt.Errorf("counters: slot %d: %w", slot, err)
		}
		if n := sum(perCPU); n != (Count{}) {
			out[Key{Class(slot / 2), Direction(slot % 2)}] = n
		}
	}
	return out, nil
}

// Peers returns what was counted of the frames from and to Options.Ports since Attach, by the other end. Of many thousands of peers only the latest are
// remembered.
func (c *Classifier) Peers() (map[PeerKey]Count, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, fmt.Errorf("counters of peers: %w", net.ErrClosed)
	}
	out := map[PeerKey]Count{}
	var key classifyPeer
	var perCPU []classifyCount
	each := c.objs.Peers.Iterate()
	for each.Next(&key, &perCPU) {
		at := PeerKey{netip.AddrFrom16(key.Addr).Unmap(), Key{Class(key.Class), Direction(key.Direction)}}
		out[at] = sum(perCPU)
	}
	// An entry that is forgotten while it is looked at ends the look early; what was seen is right.
	if err := each.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return nil, fmt.Errorf("counters of peers: %w", err)
	}
	return out, nil
}

func sum(perCPU []classifyCount) (all Count) {
	for _, n := range perCPU {
		all.Packets += n.Packets
		all.Bytes += n.Bytes
	}
	return all
}

// Close takes the classifier off the interface. The second call does nothing.
func (c *Classifier) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	var err error
	for _, h := range c.hooks {
		err = errors.Join(err, h.Close())
	}
	return errors.Join(err, c.objs.Close())
}
