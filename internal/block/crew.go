package block

import "sync"

// maxCrew bounds the operations of a disk that wait at once; more wait in line.
const maxCrew = 128

// crew are goroutines that carry out what waits. They are kept until the disk is closed, for their stacks.
type crew struct {
	d      *Disk
	mu     sync.Mutex
	cond   *sync.Cond
	queue  opList
	n      int // goroutines
	idle   int // of these
	closed bool
	wg     sync.WaitGroup
}

func (c *crew) init(d *Disk) {
	c.d = d
	c.cond = sync.NewCond(&c.mu)
}

func (c *crew) add(op *Op) {
	c.mu.Lock()
	c.queue.push(op)
	if c.queue.n > c.idle && c.n < maxCrew {
		c.n++
		c.wg.Go(c.work)
	}
	c.mu.Unlock()
	c.cond.Signal()
}

func (c *crew) work() {
	c.mu.Lock()
	for {
		for c.queue.first == nil && !c.closed {
			c.idle++
			c.cond.Wait()
			c.idle--
		}
		op := c.queue.pop()
		if op == nil {
			break // closed
		}
		c.mu.Unlock()
		if err, ended := op.do(); ended {
			op.end(err)
		}
		c.mu.Lock()
	}
	c.mu.Unlock()
}

func (c *crew) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cond.Broadcast()
	c.wg.Wait()
}

// opList is a first-in first-out list.
type opList struct {
	first, last *Op
	n           int
}

func (q *opList) push(op *Op) {
	op.next = nil
	if q.last == nil {
		q.first = op
	} else {
		q.last.next = op
	}
	q.last = op
	q.n++
}

func (q *opList) pop() *Op {
	op := q.first
	if op == nil {
		return nil
	}
	if q.first = op.next; q.first == nil {
		q.last = nil
	}
	op.next = nil
	q.n--
	return op
}

// take empties the list and returns what was in it, linked by next.
func (q *opList) take() *Op {
	op := q.first
	*q = opList{}
	return op
}
