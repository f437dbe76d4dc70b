package bondsim

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	bonding "varve/ebpf"
)

// maxSlaves is MAX_SLAVES of bpf/bond.c.
const maxSlaves = 16

// Options of a bond.
type Options struct {
	Policy bonding.Policy // how a slave is chosen
	// MIIMon is how often the slaves' carriers are looked at. Default: 100 ms.
	MIIMon time.Duration
	// Dir is where a file of the interface's name says what /proc/net/bonding/NAME would. Default: nowhere.
	Dir string
}

// Link is what a slave has carried.
type Link struct{ SentPackets, SentBytes, ReceivedPackets, ReceivedBytes uint64 }

// Bond is an interface that sends through others, until Close.
type Bond struct {
	o      Options
	name   string
	dev    int
	slaves []slave
	objs   bondObjects
	hooks  []link.Link
	nl     *netlink.Handle
	stop   chan struct{}
	done   sync.WaitGroup
}

type slave struct {
	name  string
	index int
	mac   string

	// Of watch's goroutine.
	up       bool
	failures int
}

// New joins interfaces, which are looked up in the network namespace of the calling thread.
func New(name string, slaves []string, o Options) (*Bond, error) {
	if len(slaves) == 0 || len(slaves) > maxSlaves {
		return nil, fmt.Errorf("bond %s: %d slaves: want 1 to %d", name, len(slaves), maxSlaves)
	}
	if o.MIIMon == 0 {
		o.MIIMon = 100 * time.Millisecond
	}
	b := &Bond{o: o, name: name, stop: make(chan struct{})}
	if err := b.open(slaves); err != nil {
		return nil, errors.Join(fmt.Errorf("bond %s: %w", name, err), b.Close())
	}
	b.done.Go(b.watch)
	return b, nil
}

func (b *Bond) open(slaves []string) (err error) {
	if b.nl, err = netlink.NewHandle(); err != nil { // it stays in this namespace
		return err
	}
	dev, err := b.nl.LinkByName(b.name)
	if err != nil {
		return err
	}
	b.dev = dev.Attrs().Index
	if err := loadBondObjects(&b.objs, nil); err != nil {
		return err
	}
	hook := func(index int, p *ebpf.Program, where ebpf.AttachType) error {
		l, err := link.AttachTCX(link.TCXOptions{Interface: index, Program: p, Attach: where})
		if err == nil {
			b.hooks = append(b.hooks, l)
		}
		return err
	}
	for _, name := range slaves {
		l, err := b.nl.LinkByName(name)
		if err != nil {
			return fmt.Errorf("slave %s: %w", name, err)
		}
		index := l.Attrs().Index
		b.slaves = append(b.slaves, slave{name: name, index: index, mac: l.Attrs().HardwareAddr.String(), up: true})
		if err := b.objs.Links.Put(uint32(index), bondLink{}); err != nil {
			return err
		}
		if err := hook(index, b.objs.BondReceive, ebpf.AttachTCXIngress); err != nil {
			return fmt.Errorf("slave %s: %w", name, err)
		}
	}
	if _, err := b.look(); err != nil {
		return err
	}
	if err := b.write(); err != nil {
		return err
	}
	return hook(b.dev, b.objs.BondXmit, ebpf.AttachTCXEgress)
}

// watch does what the driver's monitor does.
func (b *Bond) watch() {
	tick := time.NewTicker(b.o.MIIMon)
	defer tick.Stop()
	for {
		select {
		case <-b.stop:
			return
		case <-tick.C:
			if changed, err := b.look(); err == nil && changed {
				_ = b.write() // the file then says what was, as after a late look
			}
		}
	}
}

// look finds out which slaves are usable and has the program send through them.
func (b *Bond) look() (changed bool, err error) {
	v := bondBond{Ifindex: uint32(b.dev), Policy: uint32(b.o.Policy)}
	for i := range b.slaves {
		s := &b.slaves[i]
		l, err := b.nl.LinkByIndex(s.index)
		up := err == nil && l.Attrs().OperState == netlink.OperUp
		if up != s.up {
			changed = true
			s.up = up
			if !up {
				s.failures++
			}
		}
		if up {
			v.Slaves[v.Count] = uint32(s.index)
			v.Count++
		}
	}
	return changed, b.objs.Bonds.Put(uint32(0), v)
}

// write writes the file.
func (b *Bond) write() error {
	if b.o.Dir == "" {
		return nil
	}
	var s strings.Builder
	fmt.Fprintf(&s, "Ethernet Channel Bonding Driver: bondsim\n\nBonding Mode: load balancing (xor)\nTransmit Hash Policy: %v (%d)\n", b.o.Policy, b.o.Policy)
	fmt.Fprintf(&s, "MII Status: up\nMII Polling Interval (ms): %d\nUp Delay (ms): 0\nDown Delay (ms): 0\nPeer Notification Delay (ms): 0\n", b.o.MIIMon.Milliseconds())
	for _, l := range b.slaves {
		status := "up"
		if !l.up {
			status = "down"
		}
		fmt.Fprintf(&s, "\nSlave Interface: %s\nMII Status: %s\nSpeed: 10000 Mbps\nDuplex: full\nLink Failure Count: %d\nPermanent HW addr: %s\nSlave queue ID: 0\n",
			l.name, status, l.failures, l.mac)
	}
	path := filepath.Join(b.o.Dir, b.name)
	if err := os.WriteFile(filepath.Join(b.o.Dir, "."+b.name), []byte(s.String()), 0o644); err != nil {
		return err
	}
	return os.Rename(filepath.Join(b.o.Dir, "."+b.name), path)
}

// Cut has nothing that is sent to a slave arrive any more, or again.
func (b *Bond) Cut(name string, cut bool) error {
	for i := range b.slaves {
		s := &b.slaves[i]
		if s.name != name {
			continue
		}
		var l bondLink
		if err := b.objs.Links.Lookup(uint32(s.index), &l); err != nil {
			return err
		}
		l.Cut = 0
		if cut {
			l.Cut = 1
		}
		return b.objs.Links.Put(uint32(s.index), l) // what is counted meanwhile is lost
	}
	return fmt.Errorf("bond %s has no slave %s", b.name, name)
}

// Links returns what each slave has carried, in their order.
func (b *Bond) Links() ([]Link, error) {
	out := make([]Link, len(b.slaves))
	for i := range b.slaves {
		var l bondLink
		if err := b.objs.Links.Lookup(uint32(b.slaves[i].index), &l); err != nil {
			return nil, err
		}
		out[i] = Link{SentPackets: l.SentPackets, SentBytes: l.SentBytes, ReceivedPackets: l.ReceivedPackets, ReceivedBytes: l.ReceivedBytes}
	}
	return out, nil
}

// hash returns the program's hash of a frame.
func (b *Bond) hash(p bonding.Policy, frame []byte) (uint32, error) {
	if err := b.objs.Bonds.Put(uint32(0), bondBond{Policy: uint32(p)}); err != nil {
		return 0, err
	}
	if _, _, err := b.objs.BondHash.Test(frame); err != nil {
		return 0, err
	}
	var h uint32
	err := b.objs.Hashes.Lookup(uint32(0), &h)
	return h, err
}

// Close takes the bond apart. It may be called once.
func (b *Bond) Close() error {
	close(b.stop)
	b.done.Wait()
	var errs []error
	for _, h := range b.hooks {
		errs = append(errs, h.Close())
	}
	errs = append(errs, b.objs.Close())
	if b.nl != nil {
		b.nl.Close()
	}
	return errors.Join(errs...)
}
