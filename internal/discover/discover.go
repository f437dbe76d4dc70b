package discover

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"varve/internal/id"
)

// Ways to find metadata servers, in order of preference.
const (
	ByList = "bs.list"
	ByDNS  = "dns"
	ByMDNS = "mdns"
)

const (
	// limit bounds all of Find.
	limit = 3 * time.Second
	// headStart is how long the list alone is tried: who is on it needs no multicast.
	headStart = 300 * time.Millisecond
	// mdnsWait is how long answers to a multicast question are waited for, and mdnsMore how long for others after the first.
	mdnsWait = 1200 * time.Millisecond
	mdnsMore = 250 * time.Millisecond
	// maxChecks is how many addresses are asked at once.
	maxChecks = 8
)

// Options of Find. Name or UUID is needed; the zero value of the rest works.
type Options struct {
	Name string     // of the cluster; "": by UUID alone
	UUID id.Cluster // zero: not known yet
	List string     // path of bs.list; "": there is none

	// Check asks who is at an address; an error says why he does not count. It gets as long as is left. Default: none is asked, all count.
	Check func(ctx context.Context, addr string) error
	// Failed are addresses that did not answer a moment ago, and why: they are not asked again.
	Failed map[string]error
	// All has every way tried to its end, for who wants to see them all.
	All bool

	Limit    time.Duration // of all; default 3 s
	Resolver Resolver      // default net.DefaultResolver
	MDNSPort int           // default 5353; -1: multicast is not used

	head time.Duration // default headStart
}

// Resolver is what DNS is asked by.
type Resolver interface {
	LookupSRV(ctx context.Context, service, proto, name string) (string, []*net.SRV, error)
	LookupTXT(ctx context.Context, name string) ([]string, error)
}

var _ Resolver = (*net.Resolver)(nil)

// Found is one address that a way yielded.
type Found struct {
	Addr string
	From string // what named it: a file, a record, the server that answered
	Err  error  // why it does not count
}

// Attempt is what came of one way.
type Attempt struct {
	Way   string
	Found []Found
	Notes []string // what was refused
	Err   error    // why there is nothing
	Took  time.Duration
}

// Good returns the addresses that count.
func (a *Attempt) Good() (addrs []string) {
	for _, f := range a.Found {
		if f.Err == nil {
			addrs = append(addrs, f.Addr)
		}
	}
	return addrs
}

// Result is what Find found.
type Result struct {
	Addrs []string  // in order of preference; none if there is an error
	Way   string    // that they are from
	Tried []Attempt // in order of preference
}

// Error says which ways were tried, in order, and why each failed.
type Error struct {
	Name  string
	Tried []Attempt
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "no metadata server of cluster %s found", e.Name)
	for i := range e.Tried {
		a := &e.Tried[i]
		fmt.Fprintf(&b, "; %s: %s", a.Way, a.Why())
	}
	return b.String()
}

// Unwrap returns why each way, and each address, failed.
func (e *Error) Unwrap() (errs []error) {
	for i := range e.Tried {
		if err := e.Tried[i].Err; err != nil {
			errs = append(errs, err)
		}
		for _, f := range e.Tried[i].Found {
			if f.Err != nil {
				errs = append(errs, f.Err)
			}
		}
	}
	return errs
}

// shown bounds the addresses that an error names of one way.
const shown = 6

// Why says in words what came of it.
func (a *Attempt) Why() string {
	var parts []string
	if a.Err != nil {
		parts = append(parts, a.Err.Error())
	}
	good := 0
	for i, f := range a.Found {
		switch {
		case f.Err == nil:
			good++
		case i == shown:
			parts = append(parts, fmt.Sprintf("and %d more", len(a.Found)-shown))
		case i < shown:
			parts = append(parts, f.Addr+": "+f.Err.Error())
		}
	}
	if good > 0 {
		parts = append([]string{fmt.Sprintf("%d found", good)}, parts...)
	}
	return strings.Join(append(parts, a.Notes...), ", ")
}

// way is one of the ways.
type way struct {
	name string
	look func(ctx context.Context) ([]Found, []string, error)
}

// Find returns addresses of metadata servers by the first way, in order of preference, by which one was found that counts.
func Find(ctx context.Context, o Options) (*Result, error) {
	if o.Name == "" && o.UUID.IsZero() {
		return nil, errors.New("discover: neither the name nor the UUID of the cluster is known")
	}
	if o.Resolver == nil {
		o.Resolver = net.DefaultResolver
	}
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(o.Limit, limit))
	defer cancel()
	ways := o.ways()
	done := make([]chan Attempt, len(ways))
	first := make(chan struct{}) // closed when the first way has ended
	var enough atomic.Bool       // the first way has found some
	var wg sync.WaitGroup
	defer wg.Wait() // after cancel
	defer cancel()
	for i, w := range ways {
		done[i] = make(chan Attempt, 1)
		wg.Go(func() {
			if i > 0 {
				select {
				case <-first:
				case <-time.After(cmp.Or(o.head, headStart)):
				case <-ctx.Done():
				}
			} else {
				defer close(first)
			}
			if enough.Load() {
				return
			}
			a := o.try(ctx, w)
			enough.Store(i == 0 && !o.All && len(a.Good()) > 0 || enough.Load())
			done[i] <- a
		})
	}
	r := new(Result)
	for i := range ways {
		a := <-done[i]
		r.Tried = append(r.Tried, a)
		if good := a.Good(); len(good) > 0 && r.Addrs == nil {
			r.Addrs, r.Way = good, a.Way
			if !o.All {
				return r, nil
			}
		}
	}
	if r.Addrs == nil {
		return r, &Error{Name: cmp.Or(o.Name, o.UUID.String()), Tried: r.Tried}
	}
	return r, nil
}

func (o *Options) ways() []way {
	ways := []way{{ByList, o.byList}, {ByDNS, o.byDNS}, {ByMDNS, o.byMDNS}}
	if !o.All && o.atHome() {
		return ways[:1]
	}
	if o.MDNSPort < 0 {
		ways = ways[:2]
	}
	return ways
}

// atHome reports whether the list names addresses of loopback alone: such a cluster is on this host, and nobody else knows of it.
func (o *Options) atHome() bool {
	if o.List == "" {
		return false
	}
	addrs, err := ReadList(o.List)
	for _, a := range addrs {
		if ap, perr := netip.ParseAddrPort(a); perr != nil || !ap.Addr().IsLoopback() {
			return false
		}
	}
	return err == nil
}

// try looks by one way and asks those it found.
func (o *Options) try(ctx context.Context, w way) Attempt {
	start := time.Now()
	a := Attempt{Way: w.name}
	if err := ctx.Err(); err != nil {
		a.Err = fmt.Errorf("not tried: %w", err)
		return a
	}
	a.Found, a.Notes, a.Err = w.look(ctx)
	if over := len(a.Found) - MaxServers; over > 0 {
		a.Found = a.Found[:MaxServers]
		a.Notes = append(a.Notes, fmt.Sprintf("%d more than %d addresses refused", over, MaxServers))
	}
	if o.Check != nil {
		o.check(ctx, a.Found)
	}
	a.Took = time.Since(start)
	return a
}

func (o *Options) check(ctx context.Context, found []Found) {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, maxChecks)
	for i := range found {
		f := &found[i]
		if f.Err != nil {
			continue
		}
		if f.Err = o.Failed[f.Addr]; f.Err != nil {
			continue
		}
		slots <- struct{}{} // checks end with ctx
		wg.Go(func() {
			defer func() { <-slots }()
			f.Err = o.Check(ctx, f.Addr)
		})
	}
}

func (o *Options) byList(context.Context) ([]Found, []string, error) {
	if o.List == "" {
		return nil, nil, errors.New("there is no cluster directory")
	}
	addrs, err := ReadList(o.List)
	if err != nil {
		return nil, nil, err
	}
	var out []Found
	for _, a := range addrs {
		out = append(out, Found{Addr: a, From: o.List})
	}
	return out, nil, nil
}

// matches reports whether a server that says that it is of a cluster is of this one. What it does not say is "".
func (o *Options) matches(name, uuid string) error {
	if uuid != "" && !o.UUID.IsZero() {
		if u, err := id.ParseCluster(uuid); err != nil || u != o.UUID {
			return fmt.Errorf("is of the cluster with the UUID %s, not %s", printable(uuid), o.UUID)
		}
		return nil // a cluster may be known here by another name
	}
	if name != "" && o.Name != "" && name != o.Name {
		return fmt.Errorf("is of the cluster %s, not %s", printable(name), o.Name)
	}
	return nil
}

// printable returns what a stranger said for people: short, without control characters.
func printable(s string) string {
	const most = 64
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strings.Trim(fmt.Sprintf("%+q", s), `"`)
}

// addFound appends an address that is not there yet.
func addFound(list []Found, f Found) []Found {
	if slices.ContainsFunc(list, func(x Found) bool { return x.Addr == f.Addr }) {
		return list
	}
	return append(list, f)
}
