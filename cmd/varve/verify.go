package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"

	"varve/internal/id"
	"varve/journal"
	"varve/mds/event"
	"varve/mds/history"
	"varve/mds/state"

	"github.com/spf13/cobra"
)

// verifyJSON is what `journal verify --json` prints. Fields about files are there with -r only.
type verifyJSON struct {
	Records     uint64 `json:"records"`
	First       uint64 `json:"first"`
	Last        uint64 `json:"last"`
	Segments    int    `json:"segments,omitempty"`
	Checkpoints int    `json:"checkpoints,omitempty"`
	Bytes       int64  `json:"bytes,omitempty"`
	Gaps        int    `json:"gaps"`
	Torn        int64  `json:"torn_bytes"`
	Digests     int    `json:"digests_compared"` // recorded in the journal, in checkpoints, or of the running server
	Digest      string `json:"digest"`           // of the state at last
	// Of a running cluster: the metadata servers whose own states were compared, and those that could not be.
	Servers int      `json:"servers_compared,omitempty"`
	Silent  []string `json:"servers_not_compared,omitempty"`

	said []serverDigest
}

func (a *app) journalVerifyCommand() *cobra.Command {
	var f journalFlags
	cmd := &cobra.Command{
		Use: "verify", Short: "Check every record, the chain of hashes, checkpoints, and that replay gives the recorded digests", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			h, err := a.openHistory(cmd.Context(), f)
			if err != nil {
				return rebuildHint(err, f.dir)
			}
			defer h.Close()
			slackenGC(replaySlack)
			v, err := a.verifyHistory(cmd.Context(), h, f.dir)
			if err != nil {
				return rebuildHint(err, f.dir)
			}
			if a.json {
				return a.printJSON(v)
			}
			fmt.Fprintf(a.out, "%s, %d to %d", count(v.Records, "record"), v.First, v.Last)
			if f.dir != "" {
				fmt.Fprintf(a.out, "; %s, %s, %s", count(uint64(v.Segments), "segment"), a.size(uint64(v.Bytes)), count(uint64(v.Checkpoints), "checkpoint"))
			}
			fmt.Fprintf(a.out, "; %s, %s torn at the end\n", count(uint64(v.Gaps), "hole"), a.size(uint64(v.Torn)))
			if v.Torn > 0 {
				fmt.Fprintln(a.out, "the torn end was not yet known to be on stable media: a server that opens this journal cuts it off")
			}
			fmt.Fprintf(a.out, "checksums and chain are right; replay gives all %d digests that were recorded\ndigest at %d: %s\n", v.Digests, v.Last, v.Digest)
			if v.Servers > 0 {
				fmt.Fprintf(a.out, "%s compared, each at its own index: equal\n", count(uint64(v.Servers), "metadata server"))
			}
			for _, addr := range v.Silent {
				fmt.Fprintf(a.out, "%s was not compared: it does not answer, or is far behind; see varve list-services\n", addr)
			}
			return nil
		},
	}
	return f.add(cmd)
}

// verifyHistory checks the files in dir, if there is one, and replays h.
func (a *app) verifyHistory(ctx context.Context, h history.Source, dir string) (*verifyJSON, error) {
	v := new(verifyJSON)
	want := map[id.Index][]byte{}
	if dir != "" {
		jdir, err := history.Find(dir)
		if err != nil {
			return nil, err
		}
		step, done := a.byteProgress("checking")
		rep, err := journal.Verify(journal.Options{Dir: jdir}, step)
		done()
		if err != nil {
			return nil, fmt.Errorf("verified up to index %d: %w", rep.Last, err)
		}
		v.Segments, v.Checkpoints, v.Bytes, v.Torn = rep.Segments, rep.Checkpoints, rep.Bytes, rep.Torn
	}
	var marks []id.Index
	switch h := h.(type) {
	case *history.Dir:
		points, err := h.Checkpoints(ctx)
		if err != nil {
			return nil, err
		}
		marks = points
	case *online:
		v.said, v.Silent = h.digests(ctx)
		if err := h.reach(ctx, v.said); err != nil {
			return nil, err
		}
	}
	first, last, err := h.Bounds(ctx)
	if err != nil {
		return nil, err
	}
	if err := v.collect(ctx, h, first, last, want); err != nil {
		return nil, err
	}
	return v, a.verifyReplay(ctx, v, h, first, last, want, marks)
}

// collect counts the records and notes the digests that events carry.
func (v *verifyJSON) collect(ctx context.Context, h history.Source, first, last id.Index, want map[id.Index][]byte) error {
	for from := first; from <= last; {
		err := h.Records(ctx, from, func(rec journal.Record) error {
			if rec.Index > last {
				return history.ErrStop
			}
			if v.Records == 0 {
				v.First = uint64(rec.Index)
			}
			v.Records++
			v.Last, from = uint64(rec.Index), rec.Index+1
			ev := new(event.Event)
			if err := ev.UnmarshalVT(rec.Payload); err != nil {
				return fmt.Errorf("record %d is no event: %w", rec.Index, err)
			}
			if d := ev.GetDigest(); d != nil {
				want[id.Index(d.Index)] = d.Digest
			}
			return nil
		})
		var gap *journal.GapError
		if !errors.As(err, &gap) {
			return err
		}
		v.Gaps++
		from = gap.Next
	}
	return nil
}

// verifyReplay applies all events and compares digests with want and with the checkpoints at marks.
func (a *app) verifyReplay(ctx context.Context, v *verifyJSON, h history.Source, first, last id.Index, want map[id.Index][]byte, marks []id.Index) error {
	for _, m := range marks {
		s, err := h.Checkpoint(ctx, m)
		if err != nil {
			return err
		}
		if s == nil || s.Index() != m {
			return fmt.Errorf("checkpoint at %d cannot be read: %w", m, journal.ErrCorrupt)
		}
		if w, ok := want[m]; ok {
			if d := digestLike(s, w); !bytes.Equal(w, d) {
				return digestError(m, w, d)
			}
		}
		sum := s.Sum()
		want[m] = sum[:]
	}
	_, s, err := history.Earliest(ctx, h)
	if err != nil {
		return err
	}
	servers := func(s *state.State) error {
		if len(v.said) == 0 {
			return nil
		}
		n, err := checkServers(s, v.said)
		v.Servers += n
		v.Digests += n
		return err
	}
	compare := func(s *state.State, _ *event.Event) error {
		if err := servers(s); err != nil {
			return err
		}
		w, ok := want[s.Index()]
		if !ok {
			return nil
		}
		if d := digestLike(s, w); !bytes.Equal(w, d) {
			return digestError(s.Index(), w, d)
		}
		v.Digests++
		return nil
	}
	begin := id.Index(0)
	if s != nil {
		begin = s.Index()
		if err := servers(s); err != nil {
			return err
		}
	}
	step, done := a.progress("replaying", begin, last)
	defer done()
	if s, err = history.Advance(ctx, h, s, last, history.Hooks{After: compare, Progress: step}); err != nil {
		return err
	}
	for _, d := range v.said {
		if d.index < begin || d.index > s.Index() {
			v.Silent = append(v.Silent, d.addr)
		}
	}
	d := s.Digest()
	v.Digest = hex.EncodeToString(d[:])
	return nil
}

// digestLike returns the digest of s of the kind that w, which was recorded, is of: the length tells.
func digestLike(s *state.State, w []byte) []byte {
	if len(w) == len(state.Sum{}) {
		d := s.Sum()
		return d[:]
	}
	d := s.Digest()
	return d[:]
}

func digestError(at id.Index, want, got []byte) error {
	return fmt.Errorf("state at index %d: digest %x was recorded, replay gives %x: %w", at, want, got, journal.ErrCorrupt)
}
