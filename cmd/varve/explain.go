package main

import (
	"context"
	"fmt"
	"sort"
	"strings"
	"time"

	"varve/internal/id"
	"varve/mds/event"
	"varve/mds/history"
	"varve/mds/state"

	"github.com/spf13/cobra"
)

func (a *app) explainCommand() *cobra.Command {
	var f journalFlags
	cmd := &cobra.Command{
		Use: "explain PATH|CHUNK|CS", Short: "Say how a file, a chunk (its 16 digits) or a chunk server (such as cs2) came to be as it is",
		Args: exactArgs("PATH|CHUNK|CS"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			return a.withHistory(ctx, f, func(src history.Source) error {
				_, hi, err := src.Bounds(ctx)
				if err != nil {
					return err
				}
				s, err := a.stateAt(ctx, src, hi)
				if err != nil {
					return err
				}
				e := &explainer{a: a, p: a.newPrinter(), src: src, now: s, to: hi}
				if server, ok := parseServer(args[0]); ok {
					return e.p.flush(e.server(ctx, server))
				}
				if chunk, ok := parseChunk(args[0]); ok {
					return e.p.flush(e.chunk(ctx, chunk))
				}
				return e.p.flush(e.path(ctx, cleanPath(args[0])))
			})
		},
	}
	return f.add(cmd)
}

// explainer answers one question.
type explainer struct {
	a   *app
	p   *printer
	src history.Source
	now *state.State
	to  id.Index
}

// fact prints one line of what is so now; with --json an object.
func (e *explainer) fact(name, format string, args ...any) {
	if e.a.json {
		_ = e.p.enc.Encode(map[string]string{"fact": name, "value": fmt.Sprintf(format, args...)}) // the writer keeps its error
		return
	}
	fmt.Fprintf(e.p.w, "%-10s %s\n", name, fmt.Sprintf(format, args...))
}

func (e *explainer) history() {
	if !e.a.json {
		fmt.Fprintln(e.p.w, "\nhow it came about:")
	}
}

func (e *explainer) event(s *state.State, ev *event.Event) error {
	defer e.p.text.Note(ev)
	return e.p.print(s, ev)
}

func (e *explainer) path(ctx context.Context, path string) error {
	ino, there, err := history.FindInode(ctx, e.src, path, e.to)
	if err != nil {
		return err
	}
	n, ok := e.now.Inode(ino)
	switch {
	case !ok:
		e.fact("now", "%s was removed: inode %d is gone", history.Quote(path), ino)
	default:
		name := history.Quote(path)
		if !there {
			var names history.Names
			if p, live := names.Path(e.now, ino); live {
				name = fmt.Sprintf("%s is called %s now", name, history.Quote(p))
			} else {
				name += " has no name any more"
			}
		}
		e.fact("now", "%s: %s %04o, owner %d:%d, %s, changed %s, inode %d", name, typeText(n.Type()), n.Perm(), n.UID, n.GID,
			e.a.size(n.Size), time.Unix(0, n.Mtime).Format("2006-01-02 15:04:05"), ino)
		for _, h := range history.Holders(e.now, ino) {
			e.fact("held by", "%s", h)
		}
		e.policy(ino)
		e.chunks(n)
	}
	e.history()
	return history.Blame(ctx, e.src, ino, e.to, e.event, e.p.missing)
}

func (e *explainer) policy(ino id.Ino) {
	p := e.now.Policy(ino)
	e.fact("replicas", "%d, writes need %d", p.Norm, p.Min)
	if p.Tier == 0 && p.Domain == 0 && p.Prefer == "" {
		return
	}
	where := fmt.Sprintf("no two on one %v", p.Level())
	if tier, ok := p.OnTier(); ok {
		where += fmt.Sprintf(", on tier %d", tier)
	}
	if hosts := p.Prefers(); len(hosts) > 0 {
		where += ", one on each of " + strings.Join(hosts, " ")
	}
	e.fact("placed", "%s", where)
}

// maxExplained is how many chunks of a file are shown one by one.
const maxExplained = 16

func (e *explainer) chunks(n *state.Inode) {
	if !n.IsRegular() {
		return
	}
	shown, degraded := 0, 0
	e.now.Chunks(n.Ino, 0, 1<<31, func(c *state.Chunk) bool {
		if c.Degraded() {
			degraded++
		}
		if c.Degraded() || shown < maxExplained {
			shown++
			e.chunkFact(c)
		}
		return shown < 4*maxExplained
	})
	if total := int(n.Chunks()); total > shown {
		e.fact("chunks", "%d in all, %d of those looked at have too few replicas", total, degraded)
	}
	if n.Unsettled() {
		e.fact("note", "its last writer died: its replicas are being made equal before anyone reads them")
	}
	if _, pending := n.Punch(); pending {
		e.fact("note", "a truncate left a tail that is still to be punched")
	}
}

func (e *explainer) chunkFact(c *state.Chunk) {
	state := "all in sync"
	if c.Degraded() {
		state = fmt.Sprintf("%d in sync, %d wanted", c.InSync(), c.Norm())
	}
	e.fact("chunk", "#%d %v on %s, epoch %d, %s", c.Index(), c.ID, history.Replicas(c), c.Epoch(), state)
}

func (e *explainer) chunk(ctx context.Context, chunk id.ChunkID) error {
	c, ok := e.now.ChunkByID(chunk)
	if ok {
		var names history.Names
		if p, _ := names.Path(e.now, c.Ino); p != "" {
			e.fact("file", "%s, inode %d", history.Quote(p), c.Ino)
		} else {
			e.fact("file", "inode %d, without a name", c.Ino)
		}
		e.chunkFact(c)
	} else {
		e.fact("now", "chunk %v is not in use", chunk)
	}
	e.history()
	any := false
	err := history.Chunk(ctx, e.src, chunk, e.to, func(s *state.State, ev *event.Event) error {
		any = true
		return e.event(s, ev)
	}, e.p.missing)
	if err == nil && !any && !ok {
		err = fmt.Errorf("chunk %v is in no event that this journal has", chunk)
	}
	return err
}

func (e *explainer) server(ctx context.Context, server id.ServerID) error {
	v, ok := e.now.Server(server)
	if !ok {
		return fmt.Errorf("%v: there is no such chunk server; varve list-services lists them", server)
	}
	what := "member"
	if v.Mode != event.ServerMode_ACTIVE {
		what += ", " + strings.ToLower(v.Mode.String())
		if at := e.now.ModeSince(server); at > 0 {
			what += " since " + isoTime(at)
		}
		if at := e.now.StandbyUntil(server); at > 0 {
			what += " until " + isoTime(at)
		}
	}
	if v.Retired {
		what = "retired"
	}
	e.fact("now", "%v: %s, at %s, host %s, tier %d", server, what, v.Addr, v.Host, v.Tier)
	var chunks, joining uint64
	e.now.ChunksOf(server, func(c *state.Chunk) bool {
		if r, _ := c.Find(server); r.Joining {
			joining++
		}
		chunks++
		return true
	})
	e.fact("replicas", "%s, %d of them joining; %s to delete", count(chunks, "chunk"), joining, count(uint64(len(e.now.Garbage(server, 1<<20))), "chunk"))
	e.history()
	c, err := history.Server(ctx, e.src, server, e.to, e.event, e.p.missing)
	if err != nil {
		return err
	}
	if e.a.json {
		return e.p.enc.Encode(c)
	}
	fmt.Fprintf(e.p.w, "\n%s made there, %d left, %d joined again, %d came in sync, %d deleted\n", count(c.Allocated, "replica"), c.Dropped, c.Joined, c.Synced, c.Deleted)
	reasons := make([]string, 0, len(c.Reasons))
	for r := range c.Reasons {
		reasons = append(reasons, r)
	}
	sort.Slice(reasons, func(i, j int) bool { return c.Reasons[reasons[i]] > c.Reasons[reasons[j]] })
	for _, r := range reasons {
		fmt.Fprintf(e.p.w, "%8d × %s\n", c.Reasons[r], r)
	}
	return nil
}
