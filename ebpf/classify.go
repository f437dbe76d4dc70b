package ebpf

import (
	"errors"
	"fmt"
	"net"
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
	// source port, else of class 0.
	Ports map[uint16]Class
	// Priority is what skb->priority becomes when a frame of the class is sent: an HTB class as major<<16|minor, or a number for
	// other queues. Classes without one keep what the socket says.
	Priority map[Class]uint32
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
	return errors.Join(faults...)
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
	links  []link.Link
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
	for _, hook := range []struct {
		at      ebpf.AttachType
		program *ebpf.Program
	}{
		{ebpf.AttachTCXIngress, c.objs.ClassifyIngress},
		{ebpf.AttachTCXEgress, c.objs.ClassifyEgress},
	} {
		l, err := link.AttachTCX(link.TCXOptions{
			Interface: ifindex, Program: hook.program, Attach: hook.at, Anchor: link.Head(),
		})
		if err != nil {
			return err
		}
		c.links = append(c.links, l)
	}
	return nil
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
		var sum Count
		for _, n := range perCPU {
			sum.Packets += n.Packets
			sum.Bytes += n.Bytes
		}
		if sum != (Count{}) {
			out[Key{Class(slot / 2), Direction(slot % 2)}] = sum
		}
	}
	return out, nil
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
	for _, l := range c.links {
		err = errors.Join(err, l.Close())
	}
	return errors.Join(err, c.objs.Close())
}
