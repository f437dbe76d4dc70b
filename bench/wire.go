package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dustin/go-humanize"

	"varve/internal/fserr"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// session is one client of the metadata servers, with one request under way.
type session struct {
	conn   *wire.Conn
	number uint64
	seq    uint64
	dir    uint64 // a directory of its own
	made   []uint64
}

// ask sends a request to the leader and returns its answer.
func (s *session) ask(ctx context.Context, req *msg.MetaRequest, change bool) (*msg.MetaReply, error) {
	req.Session, req.Cred = s.number, &msg.Cred{}
	if change {
		s.seq++
		req.Seq, req.Acked = s.seq, s.seq-1
	}
	reply := new(msg.MetaReply)
	code, err := s.conn.CallMessage(ctx, wire.Meta, wire.ClassMeta, req, reply)
	if err == nil && code != fserr.OK {
		err = fmt.Errorf("%w: %s", code, reply.Detail)
	}
	return reply, err
}

// Serve implements wire.Handler: a session that caches nothing has nothing to give back.
func (s *session) Serve(_ context.Context, c *wire.Conn, f *wire.Frame) {
	code := fserr.OK
	if f.Type != wire.Callback {
		code = fserr.NotSupported
	}
	_ = c.ReplyMessage(f, code, &msg.CallbackReply{}) // the connection has ended: ask will say so
}

func openSession(ctx context.Context, addr string, cluster []byte, n int) (*session, error) {
	s := new(session)
	conn, _, err := wire.Dial(ctx, addr, &msg.Hello{Cluster: cluster, Role: msg.Hello_CLIENT}, s, wire.Options{})
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, 16)
	_, _ = rand.Read(nonce) // never fails
	reply := new(msg.OpenSessionReply)
	code, err := conn.CallMessage(ctx, wire.OpenSession, wire.ClassMeta, &msg.OpenSession{Host: "bench", Mount: fmt.Sprint(n), Nonce: nonce}, reply)
	if err != nil || code != fserr.OK {
		return nil, errors.Join(err, code, conn.Close())
	}
	s.conn, s.number = conn, reply.Session
	made, err := s.ask(ctx, create(1, fmt.Sprint("bench", n), msg.FileType_DIRECTORY), true)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	s.dir = made.Attr.Ino
	return s, nil
}

func create(parent uint64, name string, typ msg.FileType) *msg.MetaRequest {
	return &msg.MetaRequest{Op: &msg.MetaRequest_Create{Create: &msg.Create{Parent: parent, Name: []byte(name), Type: typ, Perm: 0o755, Exclusive: true}}}
}

// runWire asks the leader with many sessions at once.
func runWire(ctx context.Context, o options) (err error) {
	o.cs = max(o.cs, 1)
	c, err := startCluster(ctx, o, 1)
	if err != nil {
		return err
	}
	defer func() { err = c.stop(err) }()
	st, err := c.status(ctx)
	if err != nil {
		return err
	}
	uuid, err := hex.DecodeString(strings.ReplaceAll(st.UUID, "-", ""))
	if err != nil {
		return err
	}
	sessions := make([]*session, o.clients)
	for i := range sessions {
		if sessions[i], err = openSession(ctx, st.Leader, uuid, i); err != nil {
			return err
		}
		defer sessions[i].conn.Close()
	}
	go renew(ctx, sessions)
	fmt.Printf("%d MDS on this machine, %d sessions with one request each under way, %v each\n\n", o.mds, o.clients, o.duration)
	fmt.Printf("| operation | ops/s | p50 | p99 | CPU of the servers per op | CPUs busy | waiting for the disk |\n| --- | --: | --: | --: | --: | --: | --: |\n")
	for _, l := range []struct {
		name string
		do   func(context.Context, *session, int) error
	}{
		{"create, durable", func(ctx context.Context, s *session, i int) error {
			r, err := s.ask(ctx, create(s.dir, fmt.Sprint("f", i), msg.FileType_REGULAR), true)
			if err == nil {
				s.made = append(s.made, r.Attr.Ino)
			}
			return err
		}},
		{"lookup", func(ctx context.Context, s *session, i int) error {
			name := fmt.Append(nil, "f", i%len(s.made))
			_, err := s.ask(ctx, &msg.MetaRequest{Op: &msg.MetaRequest_Lookup{Lookup: &msg.Lookup{Parent: s.dir, Name: name}}}, false)
			return err
		}},
		{"getattr", func(ctx context.Context, s *session, i int) error {
			_, err := s.ask(ctx, &msg.MetaRequest{Op: &msg.MetaRequest_GetAttr{GetAttr: &msg.GetAttr{Ino: s.made[i%len(s.made)]}}}, false)
			return err
		}},
	} {
		if err := wireRound(ctx, o, c, sessions, l.name, l.do); err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
		}
	}
	return nil
}

// renew keeps the sessions alive.
func renew(ctx context.Context, sessions []*session) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(2 * time.Second):
		}
		for _, s := range sessions {
			if _, err := s.conn.CallMessage(ctx, wire.RenewSession, wire.ClassMeta, &msg.RenewSession{Session: s.number}, nil); err != nil {
				return // the cluster is being stopped
			}
		}
	}
}

func wireRound(ctx context.Context, o options, c *cluster, sessions []*session, name string, do func(context.Context, *session, int) error) error {
	var wg sync.WaitGroup
	var failed atomic.Pointer[error]
	all := make([][]time.Duration, len(sessions))
	cpu, idle, begin := c.cpu(), machineTime(), time.Now()
	for n, s := range sessions {
		wg.Go(func() {
			for i := 0; time.Since(begin) < o.duration && failed.Load() == nil; i++ {
				start := time.Now()
				if err := do(ctx, s, i); err != nil {
					failed.CompareAndSwap(nil, &err)
					return
				}
				all[n] = append(all[n], time.Since(start))
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	took, used, now := time.Since(begin), c.cpu()-cpu, machineTime()
	lat := slices.Concat(all...)
	if len(lat) == 0 {
		return errors.New("nothing was done")
	}
	slices.Sort(lat)
	total := float64(now.total - idle.total)
	fmt.Printf("| %s | %s | %v | %v | %v | %.0f %% | %.0f %% |\n", name, humanize.Comma(int64(float64(len(lat))/took.Seconds())),
		lat[len(lat)/2].Round(time.Microsecond), lat[len(lat)*99/100].Round(time.Microsecond), (used / time.Duration(len(lat))).Round(100*time.Nanosecond),
		100*(1-float64(now.idle+now.wait-idle.idle-idle.wait)/total), 100*float64(now.wait-idle.wait)/total)
	return nil
}

// machine is what the machine's CPUs did since it started, in ticks.
type machine struct{ total, idle, wait int64 }

func machineTime() (m machine) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return m
	}
	line, _, _ := strings.Cut(string(b), "\n")
	for i, f := range strings.Fields(line)[1:] {
		var n int64
		_, _ = fmt.Sscan(f, &n) // numbers all
		m.total += n
		switch i {
		case 3:
			m.idle = n
		case 4:
			m.wait = n
		}
	}
	return m
}
