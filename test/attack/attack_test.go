package attack

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"varve/internal/wire/msg"
	"varve/test/netns"
)

// Bounds of what an attack may do. The machine of the tests is slow, and does both sides' work.
const (
	maxGrown   = 160 << 20 // bytes of memory that a server may need more, at any time
	maxFiles   = 2500      // descriptors more, while a flood lasts
	maxLogged  = 96 << 10  // bytes in the log of a server, of all that is done to it in half a minute
	slowestOp  = 10 * time.Second
	leastRate  = 0.01 // of the victim's rate without an attack, in which both sides share the processors
	leastTries = 12   // before a victim that is slow is taken for one that is slowed
)

// TestAttacks: nothing that somebody who is not part of the cluster can do from its network is answered, harms data, or slows the cluster.
func TestAttacks(t *testing.T) {
	if os.Getenv(netns.Binary) == "" {
		if os.Getenv("VARVE_E2E") == "" {
			t.Skip("end-to-end tests run with VARVE_E2E=1 (make test)")
		}
		if os.Getuid() != 0 {
			t.Skip("needs root: it makes network namespaces, and mounts")
		}
		netns.Again(t, 20*time.Minute)
		return
	}
	each := 1200 * time.Millisecond
	if s := os.Getenv("VARVE_SOAK"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil {
			t.Fatal(err)
		}
		each = min(d, 30*time.Second)
	}
	begin := time.Now()
	netns.Hub(t)
	c := up(t, 3)
	a := newAttacker(t, c, 9)
	v, err := newVictim(c.mnt)
	if err != nil {
		t.Fatal(err)
	}
	go v.run()
	before, err := c.status()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("cluster and attacker are there after %v", time.Since(begin).Round(time.Millisecond))
	if err := v.begun(patience); err != nil {
		t.Fatal(err)
	}
	usual, err := v.look(func() { time.Sleep(each) })
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("without an attack: %v", usual)
	w := c.watch()
	c.more(t, 10)
	c.quiet = netns.New(t, 11)
	a.scan()
	l := a.loot()
	both := c.servers[:2]
	a.strike(v, []strike{
		{"strangers", both, a.strangers()},
		{"members of another node, frames", both, a.frames(l)},
		{"members of another node, metadata", both[:1], a.onMeta(l)},
		{"members of another node, data", both[1:], a.onData(l)},
	})
	for _, server := range both {
		if !server.logged(0, `connection refused" peer=10.88.9.`) {
			t.Errorf("the log of %s says nothing about the attacker", server.name)
		}
	}
	a.drown(v, usual, each)
	a.revoked()
	w.end()
	c.unharmed(before)
	if err := v.end(); err != nil {
		t.Errorf("the victim: %v", err)
	}
	c.journal()
	t.Logf("all in %v", time.Since(begin).Round(time.Millisecond))
}

// strike is attacks, each on each of some servers.
type strike struct {
	who     string
	on      []*process
	attacks []attack
}

// strike makes attacks, all at once.
func (a *attacker) strike(v *victim, all []strike) {
	begin := time.Now()
	var wg sync.WaitGroup
	n := 0
	p, err := v.look(func() {
		for _, s := range all {
			for _, x := range s.attacks {
				for _, server := range s.on {
					n++
					wg.Go(func() {
						if err := x.do(server.addr); err != nil {
							a.t.Errorf("%s: %s, to %s: %v", s.who, x.name, server.name, err)
						}
					})
				}
			}
		}
		wg.Wait()
	})
	if err != nil {
		a.t.Errorf("the victim of %d attacks: %v", n, err)
	}
	a.t.Logf("%d attacks in %v: %v", n, time.Since(begin).Round(time.Millisecond), p)
}

// drown floods all servers with one thing after the other.
func (a *attacker) drown(v *victim, usual pace, each time.Duration) {
	var to []string
	for _, s := range a.c.servers {
		to = append(to, s.addr)
	}
	for n, kind := range floods {
		many := "one address"
		from := a.addrs[n : n+1]
		if n%2 == 1 {
			many, from = fmt.Sprint(attackerAddrs/2, " addresses"), a.addrs[:attackerAddrs/2]
		}
		for try := 1; ; try++ {
			said := a.flood(kind.name, to, from, each)
			var what string
			p, err := v.look(func() {
				if kind.name == "wrong passwords" && try == 1 {
					a.newcomer()
				}
				what = said()
			})
			a.t.Logf("%s, from %s: %s; the victim: %v", kind.name, many, what, p)
			if err != nil {
				a.t.Errorf("the victim of %s: %v", kind.name, err)
				return
			}
			if p.rate >= leastRate*usual.rate && p.max < slowestOp {
				break
			}
			if try == leastTries {
				a.t.Errorf("%s slows the victim: %v, without it %v", kind.name, p, usual)
				break
			}
		}
	}
}

// newcomer is the name of a node that joins while others guess passwords.
const newcomer = "newcomer"

// newcomer has a machine that was never seen join with the right password, whatever goes on.
func (a *attacker) newcomer() {
	begin := time.Now()
	dir := filepath.Join(a.t.TempDir(), "prey")
	varve(a.t, a.c.quiet, password+"\n", "-c", dir, "auth-node", "--mds", a.c.meta.addr, "--node", newcomer, "--password-fd", "0")
	a.t.Logf("another machine joined in %v", time.Since(begin).Round(time.Millisecond))
	a.joined = dir
}

// watch is what servers need while they are attacked.
type watch struct {
	c            *cluster
	begin        time.Time
	stop         chan struct{}
	done         chan struct{}
	before, most map[string]use
	after        map[string]use
}

func (c *cluster) watch() *watch {
	w := &watch{c: c, begin: time.Now(), stop: make(chan struct{}), done: make(chan struct{}), before: c.uses()}
	w.most = maps.Clone(w.before)
	go func() {
		defer close(w.done)
		for {
			select {
			case <-w.stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
			for name, u := range c.uses() {
				m := w.most[name]
				w.most[name] = use{max(m.resident, u.resident), max(m.files, u.files), max(m.threads, u.threads), max(m.log, u.log)}
			}
		}
	}()
	return w
}

func (c *cluster) uses() map[string]use {
	all := make(map[string]use)
	for _, p := range append(c.servers, c.mounted) {
		u, err := p.use()
		if err != nil {
			c.t.Errorf("%s is gone: %v", p.name, err)
			continue
		}
		all[p.name] = u
	}
	return all
}

// end says what was too much.
func (w *watch) end() {
	t := w.c.t
	close(w.stop)
	<-w.done
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		w.after = w.c.uses()
		over := 0
		for name, u := range w.after {
			over = max(over, u.files-w.before[name].files)
		}
		if over <= 16 {
			break
		}
		if time.Now().After(end) {
			t.Errorf("a server keeps %d descriptors", over)
			break
		}
	}
	for _, p := range append(w.c.servers, w.c.mounted) {
		b, m, a := w.before[p.name], w.most[p.name], w.after[p.name]
		t.Logf("%-5s memory %.1f MiB, at most %.1f, after it %.1f; descriptors %d, %d, %d; threads %d, %d, %d; log %d KiB", p.name,
			mib(b.resident), mib(m.resident), mib(a.resident), b.files, m.files, a.files, b.threads, m.threads, a.threads, (a.log-b.log)>>10)
		if m.resident-b.resident > maxGrown {
			t.Errorf("the memory of %s grew by %.1f MiB", p.name, mib(m.resident-b.resident))
		}
		if m.files-b.files > maxFiles {
			t.Errorf("%s had %d descriptors more", p.name, m.files-b.files)
		}
		if spent := time.Since(w.begin); a.log-b.log > maxLogged+int64(maxLogged*spent.Seconds()/30) {
			t.Errorf("the log of %s grew by %d bytes", p.name, a.log-b.log)
		}
	}
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

// unharmed compares what the cluster is with what it was.
func (c *cluster) unharmed(before *msg.StatusReply) {
	c.t.Helper()
	var after *msg.StatusReply
	c.await("cluster as it was", func(st *msg.StatusReply) bool { // after a machine that stood still it may need a moment
		after = st
		return live(st) == live(before) && st.Degraded == 0 && st.UnderMin == 0
	})
	if after.Term != before.Term || after.Leader != before.Leader {
		c.t.Errorf("the leader was %s in term %d, and is %s in term %d", before.Leader, before.Term, after.Leader, after.Term)
	}
	if len(after.Metas) != len(before.Metas) || len(after.Servers) != len(before.Servers) {
		c.t.Errorf("servers were %v %v, and are %v %v", before.Metas, before.Servers, after.Metas, after.Servers)
	}
}

// journal looks for the attacker in what is recorded.
func (c *cluster) journal() {
	for line := range strings.Lines(varve(c.t, nil, "", "-c", c.dir, "journal", "cat")) {
		if strings.Contains(line, "attacker") || strings.Contains(line, "10.88.9.") {
			c.t.Errorf("in the journal: %s", line)
		}
	}
}
