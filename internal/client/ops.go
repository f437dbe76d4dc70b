package client

import (
	"context"
	"fmt"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
)

// lockWait is how long the metadata server holds a lock request before the client asks again.
const lockWait = time.Second

// attrOf returns the attributes in an answer that must have them.
func (c *Client) attrOf(reply *msg.MetaReply, err error) (*msg.Attr, error) {
	if err != nil {
		return nil, err
	}
	if reply.Attr == nil {
		return nil, fmt.Errorf("answer without attributes: %w", fserr.Protocol)
	}
	return c.overlay(reply.Attr), nil
}

// Lookup finds a name in a directory. The attributes, here and elsewhere, may be those in the cache: they must not be changed.
func (c *Client) Lookup(ctx context.Context, cred *msg.Cred, parent id.Ino, name []byte) (*msg.Attr, error) {
	if a, err, ok := c.lookup(cred, parent, name); ok {
		return c.overlay(a), err
	}
	reply, err := c.do(ctx, nil, &msg.MetaRequest{Cred: cred, Op: &msg.MetaRequest_Lookup{Lookup: &msg.Lookup{Parent: uint64(parent), Name: name}}})
	if !c.o.NoCache && reply.GetGrant().GetNames() && (err != nil || reply.Grant.Attr) {
		c.missed(parent)
	}
	return c.attrOf(reply, err)
}

// GetAttr returns the attributes of an inode.
func (c *Client) GetAttr(ctx context.Context, ino id.Ino) (*msg.Attr, error) {
	if c.cache.usable() {
		if a := c.cache.attr(ino); a != nil {
			return c.overlay(a), nil
		}
	}
	ask := func(ctx context.Context) (*msg.Attr, error) {
		return c.attrOf(c.do(ctx, nil, &msg.MetaRequest{Op: &msg.MetaRequest_GetAttr{GetAttr: &msg.GetAttr{Ino: uint64(ino)}}}))
	}
	if ino == id.Root {
		return orLast(ctx, &c.last.root, ask)
	}
	return ask(ctx)
}

// SetAttr changes attributes. A size truncates or extends the file.
func (c *Client) SetAttr(ctx context.Context, cred *msg.Cred, req *msg.SetAttr) (*msg.Attr, error) {
	if req.Size != nil && !req.Flush {
		ctx, cancel := c.limit(ctx)
		defer cancel()
		attr, err := c.setSize(ctx, cred, req)
		return c.overlay(attr), err
	}
	reply, err := c.do(ctx, nil, &msg.MetaRequest{Cred: cred, Op: &msg.MetaRequest_SetAttr{SetAttr: req}})
	if err == nil && reply.Attr != nil && (req.Mtime != nil || req.MtimeNow) {
		c.mtimeSet(reply.Attr)
	}
	return c.attrOf(reply, err)
}

// mtimeSet notes that an application chose the modification time, which takes the place of what writes made of it.
func (c *Client) mtimeSet(a *msg.Attr) {
	s := c.sess.Load()
	in := s.peek(id.Ino(a.Ino))
	if in == nil {
		return
	}
	in.mu.Lock()
	in.mtime, in.timeDirty = a.Mtime, false
	if !in.sizeDirty {
		s.markDirty(in, false)
	}
	in.mu.Unlock()
	s.unpin(in)
}

// Create makes a file, directory, symlink or special file. With req.Open it also opens the file for writing.
func (c *Client) Create(ctx context.Context, cred *msg.Cred, req *msg.Create) (*msg.Attr, *File, error) {
	if !req.Open {
		attr, err := c.attrOf(c.do(ctx, nil, &msg.MetaRequest{Cred: cred, Op: &msg.MetaRequest_Create{Create: req}}))
		return attr, nil, err
	}
	s, err := c.current(ctx)
	if err != nil {
		return nil, nil, err
	}
	s.creating(1)
	defer s.creating(-1)
	reply, err := c.do(ctx, nil, &msg.MetaRequest{Cred: cred, Op: &msg.MetaRequest_Create{Create: req}})
	if err != nil {
		return nil, nil, err
	}
	if reply.Attr == nil {
		return nil, nil, fmt.Errorf("create answered without attributes: %w", fserr.Protocol)
	}
	ino := id.Ino(reply.Attr.Ino)
	in := s.pin(ino)
	in.mu.Lock()
	recalls := in.recalls
	in.mu.Unlock()
	var f *File
	if reply.GetOpen() != nil && !s.recalledEarly(ino) && c.sess.Load() == s && s.ctx.Err() == nil {
		f = in.grant(reply, recalls, msg.Want_WANT_WRITE, in.layoutGeneration(), true)
	}
	if f == nil { // the lease was called back before it was seen, or the session has changed
		s.unpin(in)
		if f, err = c.open(ctx, cred, ino, true, 0); err != nil {
			return nil, nil, err
		}
	}
	return reply.Attr, f, nil // nothing was written yet, and Hold knows what is granted by the object
}

// Open opens a regular file. trunc empties it, and takes its setuid and setgid bits away unless the caller is root or the
// kernel has checked, which asks for that itself.
func (c *Client) Open(ctx context.Context, cred *msg.Cred, ino id.Ino, write, trunc bool) (*File, error) {
	mask := uint32(0)
	if cred != nil && !cred.Checked {
		mask = 4
		if write {
			mask = 2
		}
	}
	f, err := c.open(ctx, cred, ino, write || trunc, mask)
	if err != nil {
		return nil, err
	}
	if write || trunc { // from here on, the kernel may not keep attributes of the file
		c.cache.fresh(ino)
		c.forgetAttrs([]id.Ino{ino})
	}
	if trunc {
		if err := c.truncateOpen(ctx, f, 0, !cred.GetChecked() && cred.GetUid() != 0); err != nil {
			_ = f.Release(ctx) // the truncate's error is the one to tell
			return nil, err
		}
	}
	return f, nil
}

// open opens under the session of the moment; if that is lost meanwhile, under the next.
func (c *Client) open(ctx context.Context, cred *msg.Cred, ino id.Ino, write bool, mask uint32) (*File, error) {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	for {
		s, err := c.current(ctx)
		if err != nil {
			return nil, err
		}
		in := s.pin(ino)
		f, err := in.open(ctx, cred, write, mask)
		if err == nil {
			return f, nil
		}
		s.unpin(in)
		if s.ctx.Err() == nil || ctx.Err() != nil || c.ctx.Err() != nil {
			return nil, err
		}
	}
}

func (c *Client) truncateOpen(ctx context.Context, f *File, size int64, killPriv bool) error {
	if size < 0 {
		return fserr.Invalid
	}
	ctx, cancel := c.limit(ctx)
	defer cancel()
	n := uint64(size)
	_, err := f.in.truncate(ctx, &msg.Cred{Checked: true}, &msg.SetAttr{Ino: uint64(f.in.ino), Size: &n, MtimeNow: true, KillPriv: killPriv})
	return err
}

// Link gives an inode another name.
func (c *Client) Link(ctx context.Context, cred *msg.Cred, ino, parent id.Ino, name []byte) (*msg.Attr, error) {
	return c.attrOf(c.do(ctx, nil, &msg.MetaRequest{Cred: cred, Op: &msg.MetaRequest_Link{Link: &msg.Link{
		Ino: uint64(ino), Parent: uint64(parent), Name: name}}}))
}

// Remove takes a name away: of a directory if dir, else of anything else.
func (c *Client) Remove(ctx context.Context, cred *msg.Cred, parent id.Ino, name []byte, dir bool) error {
	reply, err := c.do(ctx, nil, &msg.MetaRequest{Cred: cred, Op: &msg.MetaRequest_Remove{Remove: &msg.Remove{
		Parent: uint64(parent), Name: name, Dir: dir}}})
	if err == nil {
		c.overlay(reply.Attr) // sees that the last link is gone
	}
	return err
}

// Rename moves or exchanges names.
func (c *Client) Rename(ctx context.Context, cred *msg.Cred, req *msg.Rename) error {
	_, err := c.do(ctx, nil, &msg.MetaRequest{Cred: cred, Op: &msg.MetaRequest_Rename{Rename: req}})
	return err
}

// ReadDir returns up to max entries after cookie. They must not be changed.
func (c *Client) ReadDir(ctx context.Context, cred *msg.Cred, ino id.Ino, cookie uint64, max int, plus bool) (*msg.ReadDirReply, error) {
	ask := max
	if !plus && cred.GetChecked() && c.cache.usable() {
		if r := c.cache.readDir(ino, cookie, max); r != nil {
			return r, nil
		}
		ask = dirPage // what is too much is kept for the next call
	}
	reply, err := c.do(ctx, nil, &msg.MetaRequest{Cred: cred, Op: &msg.MetaRequest_ReadDir{ReadDir: &msg.ReadDir{
		Ino: uint64(ino), Cookie: cookie, Max: uint32(ask), Plus: plus}}})
	if err != nil {
		return nil, err
	}
	r := reply.GetReadDir()
	if r == nil {
		return &msg.ReadDirReply{End: true}, nil
	}
	if len(r.Entries) > max {
		r = &msg.ReadDirReply{Entries: r.Entries[:max], Parent: r.Parent}
	}
	if plus {
		for _, e := range r.Entries {
			e.Attr = c.overlay(e.Attr)
		}
	}
	return r, nil
}

// ReadLink returns the target of a symlink.
func (c *Client) ReadLink(ctx context.Context, ino id.Ino) ([]byte, error) {
	reply, err := c.do(ctx, nil, &msg.MetaRequest{Op: &msg.MetaRequest_ReadLink{ReadLink: &msg.ReadLink{Ino: uint64(ino)}}})
	return reply.GetData(), err
}

// GetXattr returns an extended attribute.
func (c *Client) GetXattr(ctx context.Context, cred *msg.Cred, ino id.Ino, name []byte) ([]byte, error) {
	reply, err := c.do(ctx, nil, &msg.MetaRequest{Cred: cred, Op: &msg.MetaRequest_GetXattr{GetXattr: &msg.GetXattr{Ino: uint64(ino), Name: name}}})
	return reply.GetData(), err
}

// SetXattr sets an extended attribute.
func (c *Client) SetXattr(ctx context.Context, cred *msg.Cred, req *msg.SetXattr) error {
	_, err := c.do(ctx, nil, &msg.MetaRequest{Cred: cred, Op: &msg.MetaRequest_SetXattr{SetXattr: req}})
	return err
}

// ListXattr returns the names of the extended attributes.
func (c *Client) ListXattr(ctx context.Context, cred *msg.Cred, ino id.Ino) ([][]byte, error) {
	reply, err := c.do(ctx, nil, &msg.MetaRequest{Cred: cred, Op: &msg.MetaRequest_ListXattr{ListXattr: &msg.ListXattr{Ino: uint64(ino)}}})
	return reply.GetNames().GetNames(), err
}

// RemoveXattr removes an extended attribute.
func (c *Client) RemoveXattr(ctx context.Context, cred *msg.Cred, ino id.Ino, name []byte) error {
	_, err := c.do(ctx, nil, &msg.MetaRequest{Cred: cred, Op: &msg.MetaRequest_RemoveXattr{RemoveXattr: &msg.RemoveXattr{Ino: uint64(ino), Name: name}}})
	return err
}

// Access checks permissions: 4 read, 2 write, 1 execute.
func (c *Client) Access(ctx context.Context, cred *msg.Cred, ino id.Ino, mask uint32) error {
	_, err := c.do(ctx, nil, &msg.MetaRequest{Cred: cred, Op: &msg.MetaRequest_Access{Access: &msg.Access{Ino: uint64(ino), Mask: mask}}})
	return err
}

// StatFS returns the space of the cluster.
func (c *Client) StatFS(ctx context.Context) (*msg.StatFSReply, error) {
	return orLast(ctx, &c.last.space, c.statFS)
}

func (c *Client) statFS(ctx context.Context) (*msg.StatFSReply, error) {
	reply, err := c.do(ctx, nil, &msg.MetaRequest{Op: &msg.MetaRequest_StatFs{StatFs: &msg.StatFS{}}})
	if err != nil {
		return nil, err
	}
	if reply.GetStatFs() == nil {
		return nil, fmt.Errorf("statfs answered without figures: %w", fserr.Protocol)
	}
	return reply.GetStatFs(), nil
}

// GetPolicy returns the replication policy that an inode has and, of a file, its layout.
func (c *Client) GetPolicy(ctx context.Context, ino id.Ino) (*msg.PolicyReply, error) {
	reply, err := c.do(ctx, nil, &msg.MetaRequest{Op: &msg.MetaRequest_GetPolicy{GetPolicy: &msg.GetPolicy{Ino: uint64(ino)}}})
	if err != nil {
		return nil, err
	}
	if reply.GetPolicy() == nil {
		return nil, fmt.Errorf("policy answered without one: %w", fserr.Protocol)
	}
	return reply.GetPolicy(), nil
}

// SetPolicy sets the replication policy of an inode.
func (c *Client) SetPolicy(ctx context.Context, cred *msg.Cred, ino id.Ino, p *msg.Policy) error {
	_, err := c.do(ctx, nil, &msg.MetaRequest{Cred: cred, Op: &msg.MetaRequest_SetPolicy{SetPolicy: &msg.SetPolicy{Ino: uint64(ino), Policy: p}}})
	return err
}

// Lock sets, clears or tests a lock. With req.Wait it waits until the lock is granted or ctx ends; a lock that was
// granted when ctx had ended is kept and reported as granted.
func (c *Client) Lock(ctx context.Context, req *msg.Lock) (*msg.LockReply, error) {
	s, err := c.current(ctx)
	if err != nil {
		return nil, err
	}
	if !req.Wait {
		return lockOf(c.do(ctx, s, &msg.MetaRequest{Op: &msg.MetaRequest_Lock{Lock: req}}))
	}
	for {
		try := &msg.Lock{Ino: req.Ino, Owner: req.Owner, Pid: req.Pid, Type: req.Type, Start: req.Start, End: req.End, Flock: req.Flock,
			Wait: true, WaitMs: uint32(lockWait.Milliseconds())}
		type answer struct {
			r   *msg.LockReply
			err error
		}
		ch := make(chan answer, 1)
		// Each request is seen to its end, so that no lock is granted that nobody knows of.
		if !c.background(func() {
			r, err := lockOf(c.do(s.ctx, s, &msg.MetaRequest{Op: &msg.MetaRequest_Lock{Lock: try}}))
			ch <- answer{r, err}
		}) {
			return nil, fserr.Stale
		}
		var a answer
		select {
		case a = <-ch:
		case <-c.ctx.Done():
			return nil, fserr.Stale
		case <-ctx.Done():
			select {
			case a = <-ch:
			case <-time.After(2 * lockWait): // the cluster cannot be reached: give back what it grants later
				c.background(func() {
					if a := <-ch; a.err == nil {
						free := &msg.Lock{Ino: req.Ino, Owner: req.Owner, Pid: req.Pid, Type: msg.LockType_UNLOCK, Start: req.Start, End: req.End, Flock: req.Flock}
						_, _ = c.do(s.ctx, s, &msg.MetaRequest{Op: &msg.MetaRequest_Lock{Lock: free}}) // fails only with the session
					}
				})
				return nil, ended(ctx)
			}
		}
		if fserr.Of(a.err) != fserr.Again {
			return a.r, a.err
		}
		if ctx.Err() != nil {
			return nil, ended(ctx)
		}
	}
}

func lockOf(reply *msg.MetaReply, err error) (*msg.LockReply, error) {
	if err != nil {
		return nil, err
	}
	if l := reply.GetLock(); l != nil {
		return l, nil
	}
	return &msg.LockReply{}, nil
}
