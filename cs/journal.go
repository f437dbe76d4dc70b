package cs

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"syscall"

	"varve/cs/ssd"
	"varve/cs/store"
	"varve/internal/disk"
	"varve/internal/fserr"
	"varve/internal/wire/msg"
)

// NoJournal is what Options.Journal is to go on without a journal after one was lost.
const NoJournal = "none"

// journalIdentity is the server's side of its write journal.
type journalIdentity struct {
	Dir        string `json:"dir"`
	UUID       string `json:"uuid"`
	Bytes      int64  `json:"bytes"`
	Generation uint64 `json:"generation"` // counts the starts with it; the journal counts them too
}

func newJournalIdentity(dir string, bytes int64) *journalIdentity {
	var u ssd.UUID
	rand.Read(u[:])
	return &journalIdentity{Dir: dir, UUID: u.String(), Bytes: bytes}
}

// check says what is wrong with what was read.
func (j *journalIdentity) check() error {
	if b, err := hex.DecodeString(j.UUID); j.Dir == "" || err != nil || len(b) != len(ssd.UUID{}) {
		return fmt.Errorf("write journal: directory %q, uuid %q: want a path and 32 hexadecimal digits", j.Dir, j.UUID)
	}
	return nil
}

// ssdOptions returns the options of the server's journal. Preconditions: it has one.
func (d identity) ssdOptions(o Options) ssd.Options {
	so := o.SSD
	so.Fast, so.Slow, so.Dir, so.Root = o.JournalFS, o.FS, d.Journal.Dir, o.Dir
	b, _ := hex.DecodeString(d.Journal.UUID) // checked when it was read
	so.Journal, so.Server, so.Cluster = ssd.UUID(b), ssd.UUID(d.uuid()), d.cluster()
	so.Bytes, so.Generation = d.Journal.Bytes, d.Journal.Generation
	so.Logger = o.Logger
	if d.Server != 0 {
		so.Logger = o.Logger.With("cs", d.Server)
	}
	return so
}

// journalBytes returns the length of the journal that the server has, or is to have.
func (d *identity) journalBytes(o Options) int64 {
	n := o.JournalBytes
	if d.Journal != nil && o.Journal != NoJournal {
		n = max(n, d.Journal.Bytes)
	}
	return n
}

// makeJournal makes the journal that o asks for, and the server's side of it first, so that an interrupted Init finds it again.
func (d *identity) makeJournal(o Options) error {
	switch {
	case o.Journal == "" && d.Journal == nil:
		return nil
	case o.Journal == "":
		d.Journal = nil // an interrupted Init was told to make one, and this one is not
		return d.write(o.FS, o.Dir)
	case d.Journal == nil || d.Journal.Dir != o.Journal || d.Journal.Bytes != o.JournalBytes:
		d.Journal = newJournalIdentity(o.Journal, o.JournalBytes)
		if err := d.write(o.FS, o.Dir); err != nil {
			return err
		}
	}
	// A journal with another UUID that is this server's own is what an interrupted Init made.
	if err := ssd.Replace(d.ssdOptions(o)); err != nil {
		return fmt.Errorf("make the write journal in %s: %w", o.Journal, err)
	}
	return nil
}

// openJournal opens the server's journal, if it has one, and returns the FS that the store is to use. The journal writes to the disk at
// once, so the directory must be the right one before.
func (d *identity) openJournal(o Options) (disk.FS, *ssd.FS, error) {
	if d.Journal == nil {
		if o.LostJournal {
			return nil, nil, fmt.Errorf("%s has no write journal that could be lost; start it without --lost-journal: %w", o.Dir, fserr.Invalid)
		}
		return o.FS, nil, nil
	}
	if err := store.Owned(d.storeOptions(o)); err != nil {
		return nil, nil, err
	}
	if !o.LostJournal && o.Journal != "" {
		d.Journal.Dir = o.Journal // it was moved
	}
	so := d.ssdOptions(o)
	so.Commit = func(generation uint64) error {
		d.Journal.Generation = generation
		return d.write(o.FS, o.Dir)
	}
	if o.LostJournal {
		probe := so
		probe.ReadOnly = true
		j, err := ssd.Open(probe)
		switch {
		case err == nil:
			return nil, nil, errors.Join(fmt.Errorf("the write journal in %s is there and sound; start the server without --lost-journal: %w",
				d.Journal.Dir, fserr.Exist), j.Close())
		case errors.Is(err, syscall.EWOULDBLOCK):
			return nil, nil, err
		}
		o.Logger.Error("going on without the write journal that the server had", "cs", d.Server, "dir", d.Journal.Dir, "err", err)
		if err := d.replaceJournal(o); err != nil || d.Journal == nil {
			return o.FS, nil, err
		}
		so = d.ssdOptions(o)
		so.Commit = func(generation uint64) error {
			d.Journal.Generation = generation
			return d.write(o.FS, o.Dir)
		}
	}
	j, err := ssd.Open(so)
	if errors.Is(err, ssd.ErrLost) || errors.Is(err, ssd.ErrDamaged) {
		err = fmt.Errorf("%w; writes that were flushed may be only there, so the server does not start without it. Bring the right one back "+
			"(with -j DIR if it has moved), or give it up: `varve cs -r %s --lost-journal` has every chunk of this server rebuilt from other replicas", err, o.Dir)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("open the write journal in %s: %w", d.Journal.Dir, err)
	}
	return j, j, nil
}

// replaceJournal gives the journal up: no chunk is trusted before it was rebuilt, and the server gets an empty journal, or none. If it is
// interrupted the server still does not start without being told so again.
func (d *identity) replaceJournal(o Options) error {
	n, err := store.Distrust(d.storeOptions(o))
	if err != nil {
		return fmt.Errorf("mark the chunks of the lost journal: %w", err)
	}
	o.Logger.Warn("no chunk of this server is read before it was rebuilt from another replica, since its write journal is lost", "cs", d.Server, "chunks", n)
	if o.Journal == NoJournal {
		d.Journal = nil
		return d.write(o.FS, o.Dir)
	}
	dir, bytes := d.Journal.Dir, d.Journal.Bytes
	if o.Journal != "" {
		dir = o.Journal
	}
	if o.JournalBytes != 0 {
		bytes = o.JournalBytes
	}
	d.Journal = newJournalIdentity(dir, bytes)
	if err := ssd.Replace(d.ssdOptions(o)); err != nil {
		return fmt.Errorf("make the write journal in %s: %w", dir, err)
	}
	return d.write(o.FS, o.Dir)
}

// OpenDisk returns the disk of a server that is stopped, to look at: with what is in its write journal, if it has one. Nothing can be
// changed through it then.
func OpenDisk(o Options) (fsys disk.FS, done func() error, err error) {
	if o, err = o.withDefaults(); err != nil {
		return nil, nil, err
	}
	d, err := readIdentity(o.FS, o.Dir)
	if err != nil {
		return nil, nil, err
	}
	if d.Journal == nil {
		return o.FS, func() error { return nil }, nil
	}
	so := d.ssdOptions(o)
	so.ReadOnly = true
	j, err := ssd.Open(so)
	if err != nil {
		return nil, nil, fmt.Errorf("open the write journal in %s: %w", d.Journal.Dir, err)
	}
	return j, j.Close, nil
}

// DumpJournal writes the write journal of a server that is stopped in a form for people.
func DumpJournal(w io.Writer, o Options) error {
	o, err := o.withDefaults()
	if err != nil {
		return err
	}
	d, err := readIdentity(o.FS, o.Dir)
	if err != nil {
		return err
	}
	if d.Journal == nil {
		return fmt.Errorf("%s has no write journal: %w", o.Dir, fserr.NotExist)
	}
	return ssd.Dump(w, o.JournalFS, d.Journal.Dir)
}

// journalMessage is what is told of the journal; nil if there is none.
func (s *Server) journalMessage() *msg.SSDJournal {
	if s.journal == nil {
		return nil
	}
	j := s.journal.Stats()
	return &msg.SSDJournal{
		Size: j.Size, Used: j.Used, Dirty: j.Dirty, Journaled: j.Journaled, Bypassed: j.Bypassed, Overflowed: j.Overflowed,
		Hits: j.Hits, Misses: j.Misses, Destaged: j.Destaged, DestageRate: j.DestageRate, SlowSyncs: j.SlowSyncs,
		PacedMs: uint64(j.Paced.Milliseconds()), Full: j.Full,
	}
}
