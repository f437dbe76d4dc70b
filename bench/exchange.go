package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"varve/perf"
)

// overhead is what a message of varve has beside its data: header, body and checksums.
const overhead = 128

// exchange does what a load on one connection costs at the very least: requests and answers of the sizes that reads or writes of a row have, as many
// under way as it has, over loopback and package net, with nothing behind them.
func exchange(ctx context.Context, r loadRow, d time.Duration) (layerSample, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return layerSample{}, err
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return layerSample{}, err
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		return layerSample{}, err
	}
	defer server.Close()
	stop := context.AfterFunc(ctx, func() { client.Close() })
	defer stop()
	ask, answer := overhead, overhead+int(r.bs)
	if r.rw == perf.Write || r.rw == perf.RandWrite {
		ask, answer = answer, ask
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		in, p, q := bufio.NewReaderSize(server, 64<<10), make([]byte, ask), make([]byte, answer)
		for {
			if _, err := io.ReadFull(in, p); err != nil {
				return
			}
			if _, err := server.Write(q); err != nil {
				return
			}
		}
	})
	x, err := ping(client, r.qd, ask, answer, d)
	client.Close()
	serving.Wait()
	return x, errors.Join(ctx.Err(), err)
}

// ping sends requests, as many under way as depth, and takes the answers, which come in order.
func ping(c net.Conn, depth, ask, answer int, d time.Duration) (x layerSample, err error) {
	sent := make(chan time.Time, depth)
	free := make(chan struct{}, depth)
	for range depth {
		free <- struct{}{}
	}
	start, cpu := time.Now(), ownTime()
	failed := make(chan error, 1)
	go func() {
		defer close(sent)
		p := make([]byte, ask)
		begun := false
		for range free {
			now := time.Now()
			if now.Sub(start) >= d && begun { // one at least
				return
			}
			begun = true
			sent <- now
			if _, err := c.Write(p); err != nil {
				failed <- err
				return
			}
		}
	}()
	in, p, h := bufio.NewReaderSize(c, 64<<10), make([]byte, answer), hdrhistogram.New(1, int64(time.Hour), 2)
	for at := range sent {
		if _, err = io.ReadFull(in, p); err != nil {
			c.Close()
			break
		}
		_ = h.RecordValue(int64(max(time.Since(at), 1))) // an hour is in range
		free <- struct{}{}
	}
	elapsed := time.Since(start)
	close(free)
	for range sent { // the sender ends before the figures are taken
	}
	select {
	case other := <-failed:
		err = errors.Join(err, other)
	default:
	}
	n := float64(max(h.TotalCount(), 1))
	return layerSample{
		IOPS: float64(h.TotalCount()) / elapsed.Seconds(), P50: time.Duration(h.ValueAtPercentile(50)), P99: time.Duration(h.ValueAtPercentile(99)),
		CPU: time.Duration(float64(ownTime()-cpu) / n),
	}, err
}
