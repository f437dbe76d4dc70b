package sim

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"varve/cs"
	"varve/cs/store"
	"varve/internal/disk"
	"varve/internal/id"
	"varve/mds"
)

// shape is what a cluster is made of.
type shape struct {
	metas, servers int
	replicas       string // NORM:MIN
}

// template is a cluster that was made and stopped in order; a run begins with copies of its disks.
type template struct {
	shape
	cluster     id.Cluster
	dir         string // of the metadata servers; on the real disk it holds empty directories for Raft's snapshots
	metaDisks   []*disk.Faulty
	serverDisks []*disk.Faulty
}

// Templates keeps what was made for later runs.
type Templates struct {
	dir string // a directory for what Raft writes past the simulated disks

	mu  sync.Mutex
	all map[shape]*template
}

// NewTemplates returns no templates. dir is an empty directory that Raft may use for snapshots.
func NewTemplates(dir string) *Templates {
	return &Templates{dir: dir, all: make(map[shape]*template)}
}

func (t *Templates) get(ctx context.Context, s shape) (*template, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if x := t.all[s]; x != nil {
		return x, nil
	}
	x := &template{shape: s, dir: filepath.Join(t.dir, fmt.Sprintf("%d-%d-%s", s.metas, s.servers, s.replicas))}
	if err := x.make(ctx); err != nil {
		return nil, fmt.Errorf("make a cluster of %d metadata and %d chunk servers: %w", s.metas, s.servers, err)
	}
	t.all[s] = x
	return x, nil
}

func metaIP(i int) string   { return fmt.Sprintf("10.0.0.%d", i+1) }
func serverIP(i int) string { return fmt.Sprintf("10.0.1.%d", i+1) }
func metaAddr(i int) string { return metaIP(i) + ":" + mds.DefaultPort }

func (x *template) metaOptions(i int, d disk.FS, h *host, log *slog.Logger) mds.Options {
	return mds.Options{
		FS: d, Dir: filepath.Join(x.dir, fmt.Sprint("m", i+1)), Addr: metaAddr(i), Name: "sim", Replicas: x.replicas, Logger: log, Network: h, Reserve: -1, UnknownGrace: 5 * time.Second,
		LogSegmentBytes: 64 << 10,
	}
}

func (x *template) serverOptions(i, boot int, d disk.FS, h *host, log *slog.Logger) cs.Options {
	return cs.Options{
		FS: d, Dir: "/cs", Addr: serverIP(i) + ":2511", Metas: []string{metaAddr(0)}, Host: serverIP(i), Logger: log, Network: h,
		Memory: cs.MinMemory, Reactors: -1, LocalChunks: -1, Store: store.Options{Stages: 2, ScrubRate: -1, Boot: fmt.Sprint("boot ", boot)},
	}
}

func (x *template) make(ctx context.Context) error {
	n := newNetwork(0, rules{}, func(string, ...any) {})
	log := slog.New(slog.DiscardHandler)
	var metas []*mds.Server
	var servers []*cs.Server
	defer n.close()
	defer func() {
		for _, s := range servers {
			s.Kill()
		}
		for _, m := range metas {
			m.Kill()
		}
	}()
	for i := range x.metas {
		d := new(disk.Faulty)
		o := x.metaOptions(i, d, n.start(metaIP(i)), log)
		if err := d.MkdirAll(o.Dir); err != nil {
			return err
		}
		var err error
		if i == 0 {
			x.cluster, err = mds.Init(o)
		} else {
			_, err = mds.Join(ctx, o, []string{metaAddr(0)})
		}
		if err != nil {
			return err
		}
		m, err := mds.Open(o)
		if err != nil {
			return err
		}
		metas, x.metaDisks = append(metas, m), append(x.metaDisks, d)
		for i == 0 && !m.Leads() {
			if err := pause(ctx, 10*time.Millisecond); err != nil {
				return err
			}
		}
	}
	for i := range x.servers {
		d := new(disk.Faulty)
		if err := d.MkdirAll("/cs"); err != nil {
			return err
		}
		o := x.serverOptions(i, 0, d, n.start(serverIP(i)), log)
		if _, err := cs.Init(ctx, o); err != nil {
			return err
		}
		s, err := cs.Open(o)
		if err != nil {
			return err
		}
		go s.Run(context.Background())
		servers, x.serverDisks = append(servers, s), append(x.serverDisks, d)
	}
	if err := pause(ctx, 5*time.Second); err != nil { // until learners are voters
		return err
	}
	for _, s := range servers {
		if err := s.Shutdown(ctx); err != nil {
			return err
		}
	}
	for _, m := range metas {
		m.Kill()
	}
	return nil
}
