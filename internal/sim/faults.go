package sim

import (
	"context"
	"fmt"
	"math/rand"
	"slices"
	"strings"
	"time"

	"varve/internal/fserr"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// fault is something that goes wrong at a time, and is over a while later.
type fault struct {
	at, lasts time.Duration
	what      string
	begin     func()
	end       func()
}

// kind is what a fault is, without whose it is and how long it lasts.
func (f *fault) kind() string {
	return strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r == '.' {
			return -1
		}
		return r
	}, f.what)
}

// owner is a client's place: who uses its files now, one app after another.
type owner struct {
	w     *world
	i     int
	ip    string
	n     int // apps that there were
	app   *app
	files []int // that it writes
	op    chan struct{}
	old   []*app // cut off from the metadata servers for good, and still at work
}

// metaIPs and serverIPs are everybody's.
func (w *world) metaIPs() (ips []string) {
	for _, m := range w.metas {
		ips = append(ips, m.ip)
	}
	return ips
}

func (w *world) serverIPs() (ips []string) {
	for _, s := range w.servers {
		ips = append(ips, s.ip)
	}
	return ips
}

// apart cuts an IP off from others, and returns what undoes it.
func (w *world) apart(ip string, others []string) (undo func()) {
	others = slices.DeleteFunc(slices.Clone(others), func(o string) bool { return o == ip })
	for _, o := range others {
		w.net.cut(ip, o)
	}
	return func() {
		for _, o := range others {
			w.net.heal(ip, o)
		}
	}
}

// Kinds of faults that tests ask for.
const (
	handFence = 14
	quick     = 18
)

// plan draws what goes wrong.
func (w *world) plan(rng *rand.Rand, owners []*owner) []*fault {
	var all []*fault
	lone := w.servers[rng.Intn(len(w.servers))]
	for range w.cfg.faults {
		f := &fault{at: time.Duration(rng.Int63n(int64(w.cfg.active))), lasts: time.Duration(rng.Int63n(int64(draw(rng, 300*time.Millisecond, 3*time.Second, 12*time.Second, 40*time.Second))))}
		s, m, o := w.servers[rng.Intn(len(w.servers))], w.metas[rng.Intn(len(w.metas))], owners[rng.Intn(len(owners))]
		power := false
		if w.cfg.family == loneFamily {
			s, power = lone, rng.Intn(2) == 0
		}
		kind := rng.Intn(19)
		if len(w.cfg.kinds) > 0 {
			kind = draw(rng, w.cfg.kinds...)
		}
		if kind == 13 && !w.cfg.full {
			kind = 0
		}
		if w.cfg.family == loneFamily && (kind >= 10 && kind <= 12 || kind >= handFence && kind < quick) {
			// After a client's death one replica counts until the others have joined it again. Should its server lose power then, what was not
			// flushed is lost, as ARCHITECTURE 10 says.
			kind = 0
		}
		switch kind {
		case 0, 1, 2:
			f.what = s.name + " down"
			f.begin, f.end = func() { s.crash(power) }, s.start
		case 3:
			f.what = s.name + " stopped in order"
			f.begin, f.end = s.shutdown, s.start
		case 4:
			f.what = s.name + " cut off from all"
			f.begin = func() {
				undo := w.apart(s.ip, slices.Concat(w.metaIPs(), w.serverIPs(), w.clientIPs(owners)))
				f.end = undo
			}
		case 5:
			f.what = s.name + " cut off from the metadata servers"
			f.begin = func() { f.end = w.apart(s.ip, w.metaIPs()) }
		case 6:
			f.what = s.name + " cut off from other chunk servers"
			f.begin = func() { f.end = w.apart(s.ip, w.serverIPs()) }
		case 7:
			ip := o.ip
			f.what = s.name + " cut off from " + ip
			f.begin = func() { f.end = w.apart(s.ip, []string{ip}) }
		case 8:
			d := draw(rng, 20*time.Millisecond, 700*time.Millisecond, 6*time.Second)
			f.what = fmt.Sprintf("%s slow by %v", s.name, d)
			f.begin, f.end = func() { w.net.delay(s.ip, d) }, func() { w.net.delay(s.ip, 0) }
		case 9:
			f.what = m.name + " down"
			mp := power
			f.begin, f.end = func() { m.crash(mp) }, m.start
		case 10:
			f.what = fmt.Sprintf("client %d cut off from the metadata servers", o.i)
			f.begin = func() { f.end = w.apart(o.ip, w.metaIPs()) }
		case 11:
			quick := rng.Intn(2) == 0
			f.what = fmt.Sprintf("client %d is killed", o.i)
			f.begin = func() { o.replace(w.ctx, !quick, false) }
		case 12:
			if w.cfg.shared || o.n > 6 {
				f.what = fmt.Sprintf("client %d is killed", o.i)
				f.begin = func() { o.replace(w.ctx, false, false) }
				break
			}
			f.what = fmt.Sprintf("client %d is cut off from the metadata servers for good, and another takes its files", o.i)
			f.begin = func() { o.replace(w.ctx, false, true) }
		case quick: // before anybody misses it
			f.lasts = time.Duration(rng.Int63n(int64(50 * time.Millisecond)))
			f.what = s.name + " down and up"
			f.begin, f.end = func() { s.crash(power) }, s.start
		case handFence, handFence + 1:
			if w.cfg.shared || o.n > 6 {
				f.what = fmt.Sprintf("an administrator fences client %d", o.i)
				f.begin = func() { w.fence(o.current()) }
				break
			}
			f.what = fmt.Sprintf("client %d is cut off from the metadata servers for good, an administrator fences it, and another takes its files", o.i)
			apart := rng.Intn(2) == 0 && w.cfg.family != loneFamily // there only the one server may leave replica sets
			f.begin = func() {
				var heal []func()
				if apart { // so that the servers cannot be told of the fence
					for _, ip := range w.serverIPs() {
						heal = append(heal, w.apart(ip, w.metaIPs()))
					}
				}
				f.end = func() {
					for _, h := range heal {
						h()
					}
				}
				go w.fence(o.current())
				o.replace(w.ctx, false, true)
			}
			f.end = func() {}
		case 16, 17:
			ip := draw(rng, s.ip, s.ip, m.ip, o.ip)
			f.what = ip + " is stopped"
			f.begin, f.end = func() { w.net.freeze(ip) }, func() { w.net.thaw(ip) }
		case 13:
			room := int64(rng.Intn(40)) * 4096
			f.what = fmt.Sprintf("disk of %s has %d bytes left", s.name, room)
			f.begin, f.end = func() { s.d.SetCapacity(s.d.Used() + room) }, func() { s.d.SetCapacity(0) }
		}
		all = append(all, f)
	}
	slices.SortStableFunc(all, func(a, b *fault) int { return int(a.at - b.at) })
	return all
}

// fence ends the session of an app, which lives on: it has another session when it hears of that.
func (w *world) fence(a *app) {
	if a == nil {
		return
	}
	ctx, cancel := context.WithTimeout(w.ctx, 30*time.Second)
	defer cancel()
	h := w.net.start("10.0.2.240")
	defer w.net.stop(h, false)
	session := a.c.Session()
	for ctx.Err() == nil && !a.isDead() {
		for i := range w.metas {
			conn, _, err := wire.Dial(ctx, metaAddr(i), &msg.Hello{Role: msg.Hello_ADMIN, Cluster: w.x.cluster[:]}, nil, wire.Options{Network: h})
			if err != nil {
				continue
			}
			code, err := conn.CallMessage(ctx, wire.FenceSession, wire.ClassMeta, &msg.FenceSession{Session: uint64(session), Reason: "simulated"}, new(msg.FenceSessionReply))
			conn.Close()
			if err == nil && code != fserr.NotLeader {
				w.note("session %d of %s fenced: %v", session, a.name, code)
				if code == fserr.OK {
					w.mu.Lock()
					w.fenced[uint64(session)] = w.clockLocked()
					w.mu.Unlock()
				}
				return
			}
		}
		_ = pause(ctx, 100*time.Millisecond)
	}
}

func (w *world) clientIPs(owners []*owner) (ips []string) {
	for _, o := range owners {
		ips = append(ips, o.ip)
	}
	return ips
}

// next starts the owner's next app with its workers; the last one's network is gone, or it has another IP.
func (o *owner) next(ctx context.Context) error {
	o.n++
	a, err := o.w.newApp(ctx, fmt.Sprintf("c%d.%d", o.i+1, o.n), o.ip)
	if err != nil {
		return err
	}
	o.app = a
	for k := range o.w.cfg.workers {
		file := o.files[k%len(o.files)]
		o.w.load.Go(func() { a.worker(o.w.loading, o.w.ctx, k, file, true) })
	}
	return nil
}

// current returns the owner's app, nil if there is none.
func (o *owner) current() *app {
	o.op <- struct{}{}
	defer func() { <-o.op }()
	return o.app
}

// cutOff cuts an owner's app off from the metadata servers. It is never undone: the IP is not used again.
func (w *world) cutOff(o *owner) {
	w.note("%s: cut off for good", o.ip)
	w.apart(o.ip, w.metaIPs())
}

// replace ends the owner's app, and starts another on the same files: a guest that is taken over at once. With cutOff the old one lives on, without
// metadata servers.
func (o *owner) replace(ctx context.Context, power, cutOff bool) {
	o.op <- struct{}{}
	defer func() { <-o.op }()
	if o.app == nil || o.w.loading.Err() != nil {
		return
	}
	if cutOff {
		o.w.cutOff(o)
		o.old = append(o.old, o.app)
		o.ip = fmt.Sprintf("10.0.2.%d", 10*(o.i+1)+o.n)
	} else {
		o.app.kill(power)
	}
	o.app = nil
	if err := o.next(ctx); err != nil && ctx.Err() == nil {
		o.w.fault("client %d does not come back: %v", o.i, err)
	}
}
