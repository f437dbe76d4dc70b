// Package replicas compares what chunk servers have on their disks: every block of every chunk of a cluster that nobody writes to.
package replicas

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// copyOf is one replica of a chunk as a server has it on disk.
type copyOf struct {
	chunk  uint64
	server uint32
	epoch  uint64
	blocks int
	digest string
}

// Compare reads every block of every chunk on every server of the cluster whose leader answered st, and returns how many there are. It
// fails unless each chunk has exactly norm replicas with equal checksum tables and no bad block.
func Compare(st *msg.StatusReply, norm int, network wire.Network) (chunks, blocks int, err error) {
	lists, errs := make([][]copyOf, len(st.Servers)), make([]error, len(st.Servers))
	var wg sync.WaitGroup
	for i, s := range st.Servers {
		if s.State == "retired" { // it was removed, and does not answer
			continue
		}
		wg.Go(func() { lists[i], errs[i] = verifyServer(st.Cluster, s, network) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return 0, 0, err
	}
	copies := make(map[uint64][]copyOf)
	for _, list := range lists {
		for _, x := range list {
			copies[x.chunk] = append(copies[x.chunk], x)
			blocks += x.blocks
		}
	}
	if uint64(len(copies)) != st.Chunks {
		return 0, 0, fmt.Errorf("servers hold %d different chunks, the metadata servers know %d", len(copies), st.Chunks)
	}
	for id, cs := range copies {
		if len(cs) != norm {
			return 0, 0, fmt.Errorf("chunk %016x has %d replicas, want %d: %v", id, len(cs), norm, servers(cs))
		}
		for _, x := range cs[1:] {
			if x.digest != cs[0].digest {
				return 0, 0, fmt.Errorf("chunk %016x differs between cs%d and cs%d", id, cs[0].server, x.server)
			}
		}
	}
	return len(copies), blocks, nil
}

// verifyServer reads every block of every chunk that a server holds.
func verifyServer(cluster []byte, s *msg.ChunkServer, network wire.Network) ([]copyOf, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	conn, _, err := wire.Dial(ctx, s.Addr, &msg.Hello{Role: msg.Hello_ADMIN, Cluster: cluster}, nil, wire.Options{Class: wire.ClassMeta, Network: network})
	if err != nil {
		return nil, fmt.Errorf("cs%d: %w", s.Server, err)
	}
	defer conn.Close()
	call := func(t wire.Type, req, reply wire.Message) error {
		code, err := conn.CallMessage(ctx, t, wire.ClassMeta, req, reply)
		if err == nil {
			err = code.Err()
		}
		return err
	}
	var copies []copyOf
	for after, last := uint64(0), false; !last; {
		list := new(msg.ChunkListReply)
		if err := call(wire.ChunkList, &msg.ChunkList{After: after, Max: 1000}, list); err != nil {
			return nil, fmt.Errorf("list of cs%d: %w", s.Server, err)
		}
		for _, ch := range list.Chunks {
			after = ch.Id
			if ch.Joining || ch.Unclean {
				return nil, fmt.Errorf("chunk %016x on cs%d is joining or unclean", ch.Id, s.Server)
			}
			v := new(msg.ChunkVerifyReply)
			if err := call(wire.ChunkVerify, &msg.ChunkVerify{Chunk: ch.Id}, v); err != nil {
				return nil, fmt.Errorf("verify chunk %016x on cs%d: %w", ch.Id, s.Server, err)
			}
			if v.Bad > 0 {
				return nil, fmt.Errorf("chunk %016x on cs%d: %d of %d blocks are bad", ch.Id, s.Server, v.Bad, v.Blocks)
			}
			copies = append(copies, copyOf{ch.Id, s.Server, ch.Epoch, int(v.Blocks), string(v.Digest)})
		}
		last = list.Last || len(list.Chunks) == 0
	}
	return copies, nil
}

func servers(cs []copyOf) (out []string) {
	for _, c := range cs {
		out = append(out, fmt.Sprintf("cs%d@%d", c.server, c.epoch))
	}
	return out
}
