package e2e

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"golang.org/x/sys/unix"

	"varve/internal/disk"
)

const (
	sharedBlocks = 6
	blockSize4k  = 4096
	sharedOps    = 6000 // of all workers
)

// blockOp is a write of a value that is written once, or a read, of one block.
type blockOp struct {
	block int
	write bool
	value uint64 // of a write
}

// blockModel is a block: reads see the newest write.
var blockModel = porcupine.Model{
	Partition: func(history []porcupine.Operation) (parts [][]porcupine.Operation) {
		parts = make([][]porcupine.Operation, sharedBlocks)
		for _, op := range history {
			b := op.Input.(blockOp).block
			parts[b] = append(parts[b], op)
		}
		return parts
	},
	Init: func() any { return uint64(0) },
	Step: func(state, input, output any) (bool, any) {
		if op := input.(blockOp); op.write {
			return true, op.value
		}
		return state.(uint64) == output.(uint64), state
	},
	DescribeOperation: func(input, output any) string {
		if op := input.(blockOp); op.write {
			return fmt.Sprintf("write %d", op.value)
		}
		return fmt.Sprintf("read %d", output.(uint64))
	},
}

// TestSharedBlocks: two mounts read and write the same blocks while chunk servers and metadata servers are killed, one of each at a time. For each block
// there is one order of all reads and writes that explains what every one of them saw.
func TestSharedBlocks(t *testing.T) {
	need(t)
	c := up(t, 3, 3, 2, "3:2")
	if err := os.WriteFile(filepath.Join(c.mounts[0], "shared"), make([]byte, sharedBlocks*blockSize4k), 0o644); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	stop := make(chan struct{})
	var mu sync.Mutex
	var history []porcupine.Operation
	var values, count atomic.Uint64
	errs := make(chan error, 16)
	var work sync.WaitGroup
	for w := range 6 {
		path := filepath.Join(c.mounts[w%2], "shared")
		work.Go(func() {
			fd, err := unix.Open(path, unix.O_RDWR|unix.O_DIRECT, 0)
			if err != nil {
				errs <- err
				return
			}
			defer unix.Close(fd)
			rng := rand.New(rand.NewPCG(uint64(w), 5))
			p := disk.AlignedBuffer(blockSize4k)
			for count.Add(1) <= sharedOps {
				select {
				case <-stop:
					return
				default:
				}
				op := blockOp{block: rng.IntN(sharedBlocks), write: rng.IntN(2) == 0}
				off := int64(op.block) * blockSize4k
				var out uint64
				if op.write {
					op.value = values.Add(1)
					for i := 0; i < blockSize4k; i += 8 {
						binary.LittleEndian.PutUint64(p[i:], op.value)
					}
				}
				call := time.Since(begun)
				if op.write {
					_, err = unix.Pwrite(fd, p, off)
				} else {
					_, err = unix.Pread(fd, p, off)
				}
				end := int64(time.Since(begun))
				if err != nil {
					if errs <- fmt.Errorf("%+v on %s: %w", op, path, err); !op.write {
						return
					}
					end = math.MaxInt64 // it may take effect later, or never
				} else if !op.write {
					out = binary.LittleEndian.Uint64(p)
					for i := 8; i < blockSize4k; i += 8 {
						if v := binary.LittleEndian.Uint64(p[i:]); v != out {
							errs <- fmt.Errorf("block %d has %d at 0 and %d at %d: half of one write and half of another", op.block, out, v, i)
							return
						}
					}
				}
				mu.Lock()
				history = append(history, porcupine.Operation{ClientId: w, Input: op, Call: int64(call), Output: out, Return: end})
				mu.Unlock()
				if err != nil {
					return
				}
				time.Sleep(time.Duration(rng.IntN(6000)) * time.Microsecond)
			}
		})
	}
	enough := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(history) >= 300 || len(errs) > 0
	}
	kills := 0
	for begin, long := time.Now(), soak(t, 6*time.Second); time.Since(begin) < long || !enough() && time.Since(begin) < long+2*time.Minute; {
		victim := fmt.Sprint("cs", 1+kills/2%3)
		if kills%2 == 1 {
			leader, err := c.leader()
			if err != nil {
				time.Sleep(100 * time.Millisecond)
				continue
			}
			victim = leader
		}
		time.Sleep(time.Duration(300+rand.IntN(500)) * time.Millisecond)
		old := c.kill(victim)
		c.waitRestart(victim, old)
		if kills++; kills%2 == 0 {
			c.wait(time.Minute, "every replica to be in sync", c.healthy)
		}
	}
	close(stop)
	work.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	if len(history) < 300 {
		t.Fatalf("%d operations say little", len(history))
	}
	t.Logf("%d reads and writes of %d blocks through two mounts, %d servers killed", len(history), sharedBlocks, kills)
	if res := porcupine.CheckOperationsTimeout(blockModel, history, 2*time.Minute); res != porcupine.Ok {
		path := filepath.Join(os.TempDir(), fmt.Sprintf("varve-blocks-%d.html", os.Getpid()))
		_, info := porcupine.CheckOperationsVerbose(blockModel, history, time.Minute)
		err := porcupine.VisualizePath(blockModel, info, path)
		t.Fatalf("what the mounts saw of a block cannot be explained: %v; see %s (%v)", res, path, err)
	}
	// The check that has passed would not have passed a read of what was there before.
	for i := len(history) - 1; i >= 0; i-- {
		if op := history[i].Input.(blockOp); !op.write && history[i].Output.(uint64) != 0 {
			history[i].Output = uint64(0)
			break
		}
	}
	if porcupine.CheckOperationsTimeout(blockModel, history, time.Minute) != porcupine.Illegal {
		t.Error("a history with a stale read was accepted")
	}
}
