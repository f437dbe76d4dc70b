package mds

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"varve/internal/fserr"
	"varve/internal/wire/msg"
)

// BenchmarkCreate is what the leader does for a durable change, on three servers of one process that have a disk each below the
// temporary directory, with so many requests under way.
func BenchmarkCreate(b *testing.B) {
	for _, under := range []int{1, 8, 256} {
		b.Run(fmt.Sprintf("servers=3/requests=%d", under), func(b *testing.B) {
			c := newCluster(b, 3, nil)
			l := c.lead()
			var n atomic.Int64
			b.SetParallelism(max(under/2, 1)) // times GOMAXPROCS
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(p *testing.PB) {
				for p.Next() {
					req := &msg.MetaRequest{Cred: &msg.Cred{}, Op: &msg.MetaRequest_Create{Create: &msg.Create{
						Parent: 1, Name: fmt.Append(nil, n.Add(1)), Type: msg.FileType_DIRECTORY, Perm: 0o755}}}
					if out, err := l.request(context.Background(), req, true); err != nil || out.Code != fserr.OK {
						b.Errorf("%v %v", out.Code, err)
						return
					}
				}
			})
		})
	}
}
