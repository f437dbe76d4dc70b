package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"varve/internal/chunk"
	"varve/internal/disk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/local"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// localGrant asks a chunk server for one of its chunks, as a mount on its host does.
func (c *cluster) localGrant(cluster []byte, s *msg.ChunkServer, ch *msg.ChunkInfo) (*local.Grant, error) {
	uuid, server := id.Cluster(cluster), id.ServerID(s.Server)
	conn, err := local.Dial(uuid, server, s.Addr)
	if err != nil {
		return nil, err
	}
	c.t.Cleanup(func() { conn.Close() })
	exchange := func(p local.Packet) (reply local.Packet, f *os.File, err error) {
		if err = errors.Join(conn.Deadline(time.Now().Add(10*time.Second)), conn.Send(&p, -1)); err == nil {
			f, err = conn.Receive(&reply)
		}
		if err == nil && (reply.Code != fserr.OK || f == nil) {
			err = fmt.Errorf("%+v is answered with %+v", p, reply)
		}
		return reply, f, err
	}
	welcome, board, err := exchange(local.Packet{Kind: local.Hello, Cluster: uuid, Server: server, Session: 1 << 40})
	if err != nil {
		return nil, err
	}
	view, err := local.Map(board)
	if err != nil {
		return nil, err
	}
	granted, f, err := exchange(local.Packet{Kind: local.Ask, Chunk: id.ChunkID(ch.Id), Epoch: id.Epoch(ch.Epoch)})
	if err != nil {
		return nil, err
	}
	g, err := local.NewGrant(local.Seat{View: view, Place: welcome.Place, Stamp: welcome.Stamp}, granted.Place, granted.Stamp, f, granted.Time)
	if err == nil {
		c.t.Cleanup(g.Close)
	}
	return g, err
}

// TestLocalGrantEnds has a process that reads by itself lose its grant when the chunk server is stopped, and for good when it is killed.
func TestLocalGrantEnds(t *testing.T) {
	need(t)
	c := up(t, 1, 1, 1, "1:1", "--insecure") // a session that has no client shows no capability
	if err := os.WriteFile(filepath.Join(c.mounts[0], "file"), make([]byte, 10*chunk.BlockSize), 0o644); err != nil {
		t.Fatal(err)
	}
	st, err := c.status()
	if err != nil {
		t.Fatal(err)
	}
	list := new(msg.ChunkListReply)
	if err := c.ask(st.Servers[0].Addr, &msg.Hello{Role: msg.Hello_ADMIN, Cluster: st.Cluster}, wire.ChunkList, &msg.ChunkList{}, list); err != nil || len(list.Chunks) != 1 {
		t.Fatal(list, err)
	}
	var g *local.Grant
	c.wait(time.Minute, "the server to grant its chunk", func() (err error) {
		g, err = c.localGrant(st.Cluster, st.Servers[0], list.Chunks[0])
		return err
	})
	read := func() error {
		op := new(local.Op)
		if err := g.Begin(op, disk.AlignedBuffer(chunk.BlockSize), 0); err != nil {
			return err
		}
		return op.Do()
	}
	until := func(what string, want error) {
		t.Helper()
		c.wait(time.Minute, what, func() error {
			if err := read(); !errors.Is(err, want) || (want == nil) != (err == nil) {
				return errors.Join(errors.New("not yet"), err)
			}
			return nil
		})
	}
	until("a read", nil)
	resume := c.pause("cs1")
	until("the end of what a stopped server has granted", local.ErrLapsed)
	if err := read(); err == nil {
		t.Fatal("a stopped server is read again")
	}
	resume()
	until("the server that goes on to be read", nil)
	old := c.kill("cs1")
	until("the end of what a killed server has granted", local.ErrLapsed)
	c.waitRestart("cs1", old)
	c.wait(60*time.Second, "the cluster to be healthy", c.healthy)
	if err := read(); !errors.Is(err, local.ErrLapsed) {
		t.Fatalf("by the board of a dead server: %v", err)
	}
	c.wait(60*time.Second, "the successor to grant the chunk", func() (err error) { // it was active, so the leader has to accept it first
		next, err := c.localGrant(st.Cluster, st.Servers[0], list.Chunks[0])
		if err == nil {
			g = next
		}
		return err
	})
	until("a read from the successor", nil)
}
