package raftlog

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"

	"varve/internal/disk"
)

// BenchmarkStore stores durable batches in this log and in bbolt, which was used before.
func BenchmarkStore(b *testing.B) {
	for _, store := range []string{"raftlog", "bbolt"} {
		for _, batch := range []int{1, 8} {
			b.Run(fmt.Sprintf("store=%s/batch=%d/size=600", store, batch), func(b *testing.B) {
				l := benchStore(b, store)
				b.ReportAllocs()
				index := uint64(0)
				for b.Loop() {
					logs := make([]*raft.Log, batch)
					for i := range logs {
						index++
						logs[i] = entry(index, 1, 600)
					}
					if err := l.StoreLogs(logs); err != nil {
						b.Fatal(err)
					}
					if index%8192 < uint64(batch) && index > 8192 {
						if err := l.DeleteRange(1, index-4096); err != nil {
							b.Fatal(err)
						}
					}
				}
			})
		}
	}
}

func benchStore(b *testing.B, name string) raft.LogStore {
	dir := b.TempDir()
	if name == "raftlog" {
		return open(b, Options{FS: disk.OS{}, Dir: dir, Cluster: testCluster})
	}
	s, err := raftboltdb.New(raftboltdb.Options{
		Path:        filepath.Join(dir, "raft.db"),
		BoltOptions: &bbolt.Options{NoFreelistSync: true, FreelistType: bbolt.FreelistMapType},
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	return s
}
