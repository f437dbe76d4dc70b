package wire

import "sync"

// maxIdle bounds the goroutines that wait for requests.
const maxIdle = 256

// workers are goroutines that serve requests one after the other: their stacks have grown already, which costs a new goroutine
// more than many a request. The one that was idle last is used first.
var workers pool

// DropIdle ends the goroutines that wait for requests of any connection, for whoever wants none left behind. Later requests get new ones.
func DropIdle() { workers.drop() }

type job struct {
	c *Conn
	f *Frame
}

type pool struct {
	mu   sync.Mutex
	idle []chan job
}

// run serves f on a goroutine.
func (p *pool) run(c *Conn, f *Frame) {
	p.mu.Lock()
	n := len(p.idle)
	if n == 0 {
		p.mu.Unlock()
		go p.work(job{c, f})
		return
	}
	w := p.idle[n-1]
	p.idle = p.idle[:n-1]
	p.mu.Unlock()
	w <- job{c, f}
}

func (p *pool) work(j job) {
	w := make(chan job, 1)
	for {
		j.c.serve(j.f)
		p.mu.Lock()
		if len(p.idle) >= maxIdle {
			p.mu.Unlock()
			return
		}
		p.idle = append(p.idle, w)
		p.mu.Unlock()
		var ok bool
		if j, ok = <-w; !ok {
			return
		}
	}
}

func (p *pool) drop() {
	p.mu.Lock()
	idle := p.idle
	p.idle = nil
	p.mu.Unlock()
	for _, w := range idle { // nobody else can find them any more
		close(w)
	}
}
