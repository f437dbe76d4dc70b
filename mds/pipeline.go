package mds

import (
	"bufio"
	"net"
	"time"

	"github.com/hashicorp/raft"
)

// appendPipeline sends requests without waiting for the answers of earlier ones. Two are under way at most: more would make
// batches smaller, not faster.
type appendPipeline struct {
	t    *transport
	to   raft.ServerID
	conn net.Conn
	buf  []byte

	sent chan *appendFuture
	done chan raft.AppendFuture
	stop chan struct{}
	over chan struct{} // closed by receive: Raft takes no more answers, after one that was not a success
}

var _ raft.AppendPipeline = (*appendPipeline)(nil)

func newAppendPipeline(t *transport, to raft.ServerID, conn net.Conn) *appendPipeline {
	p := &appendPipeline{t: t, to: to, conn: conn, sent: make(chan *appendFuture), done: make(chan raft.AppendFuture), stop: make(chan struct{}),
		over: make(chan struct{})}
	t.wg.Add(1)
	go p.receive()
	return p
}

// AppendEntries implements raft.AppendPipeline. Raft calls it from one goroutine.
func (p *appendPipeline) AppendEntries(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	f := &appendFuture{start: time.Now(), boot: bootNow(), args: args, resp: resp, ended: make(chan struct{})}
	p.buf = appendRequest(p.buf, args)
	if err := p.conn.SetWriteDeadline(f.start.Add(raftTimeout)); err != nil {
		return nil, err
	}
	if _, err := p.conn.Write(p.buf); err != nil {
		return nil, err
	}
	if cap(p.buf) > 4*maxBatchBytes {
		p.buf = nil
	}
	select {
	case p.sent <- f:
		return f, nil
	case <-p.stop:
	case <-p.over: // Raft may send on before it sees that its decoder has ended, which nobody would ever take the answer of
	}
	return nil, raft.ErrPipelineShutdown
}

// receive hands the answers on. That of a follower counts only when the entries are on this server's own stable media: Raft
// has counted the leader as soon as they were stored.
func (p *appendPipeline) receive() {
	defer p.t.wg.Done()
	r := bufio.NewReader(p.conn)
	for {
		var f *appendFuture
		select {
		case f = <-p.sent:
		case <-p.stop:
			return
		}
		f.err = p.answer(r, f)
		if f.err != nil {
			*f.resp = raft.AppendEntriesResponse{} // which ends the pipeline
		}
		last := !f.resp.Success || f.resp.Term > f.args.Term // with which Raft's decoder ends
		close(f.ended)
		select {
		case p.done <- f:
		case <-p.stop:
			return
		}
		if last {
			close(p.over)
			return
		}
	}
}

func (p *appendPipeline) answer(r *bufio.Reader, f *appendFuture) error {
	if err := p.conn.SetReadDeadline(time.Now().Add(raftTimeout)); err != nil {
		return err
	}
	b, err := readMessage(r, maxAnswer)
	if err != nil {
		return err
	}
	if err := decodeAnswer(b, f.resp); err != nil {
		return err
	}
	return p.t.answered(p.to, f.args, f.resp, f.boot)
}

// Consumer implements raft.AppendPipeline.
func (p *appendPipeline) Consumer() <-chan raft.AppendFuture { return p.done }

// Close implements raft.AppendPipeline. Raft calls it once.
func (p *appendPipeline) Close() error {
	close(p.stop)
	return p.conn.Close()
}

type appendFuture struct {
	start time.Time
	boot  time.Duration // bootNow at the start
	args  *raft.AppendEntriesRequest
	resp  *raft.AppendEntriesResponse
	err   error
	ended chan struct{}
}

var _ raft.AppendFuture = (*appendFuture)(nil)

func (f *appendFuture) Error() error {
	<-f.ended
	return f.err
}
func (f *appendFuture) Start() time.Time                      { return f.start }
func (f *appendFuture) Request() *raft.AppendEntriesRequest   { return f.args }
func (f *appendFuture) Response() *raft.AppendEntriesResponse { return f.resp }
