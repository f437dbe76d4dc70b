package store

// The file `label` says whose the directory is, where it was made, and whether its disk was retired. It is 8192 bytes long and is made
// at its full length, so that the retirement needs neither room nor a change of the directory.
//
//	offset  bytes  what
//	0       4096   identity; written when the store is made and by Readmit, never else
//	4096    4096   retirement; zeros while the store is in service. Anything else, torn or not, means retired
//
// Identity:
//
//	offset  bytes  what
//	0       8      magic "VRVLABL1"
//	8       4      version, 1
//	12      1      1: the directory was the root of a mounted filesystem
//	13      3      reserved
//	16      16     cluster
//	32      16     UUID of the server, zeros: none was given
//	48      16     UUID of the filesystem, zeros: it has none
//	64      8      inode of the directory, 0: not stable there
//	72      16     type of the filesystem, padded with zeros
//	88      4004   reserved
//	4092    4      checksum of bytes 0 to 4091
//
// Retirement:
//
//	offset  bytes  what
//	0       8      magic "VRVGONE1"
//	8       4      version, 1
//	12      4      length of the text
//	16      8      nanoseconds since 1970 UTC
//	24      4068   text: what failed; zeros behind it
//	4092    4      checksum of bytes 0 to 4091

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"varve/internal/chunk"
	"varve/internal/disk"
	"varve/internal/fserr"
	"varve/internal/id"
)

const (
	labelName  = "label"
	labelMagic = "VRVLABL1"
	goneMagic  = "VRVGONE1"
	labelSize  = 2 * slotSize

	labelMounted = 1
	typeSize     = 16
	goneText     = 24
	maxGoneText  = slotSize - 4 - goneText
)

// ErrRetired says that the disk failed in the past, so that the directory must not be used again.
var ErrRetired = errors.New("the disk was retired")

// ErrMoved says that the directory is not where, or not what, it was when the store was made.
var ErrMoved = errors.New("not the directory in which the store was made")

// label is the decoded identity.
type label struct {
	cluster id.Cluster
	server  [16]byte
	at      disk.Identity
}

// encode fills b, one slot long.
func (l *label) encode(b []byte) {
	clear(b[:slotSize])
	copy(b, labelMagic)
	binary.LittleEndian.PutUint32(b[8:], formatVersion)
	if l.at.Mount {
		b[12] = labelMounted
	}
	copy(b[16:], l.cluster[:])
	copy(b[32:], l.server[:])
	copy(b[48:], l.at.UUID[:])
	binary.LittleEndian.PutUint64(b[64:], l.at.Inode)
	copy(b[72:72+typeSize], l.at.Type)
	seal(b)
}

// decodeLabel reads the identity. Its errors wrap ErrCorrupt.
func decodeLabel(b []byte) (label, error) {
	if err := unseal(b, labelMagic); err != nil {
		return label{}, err
	}
	typ, rest, _ := bytes.Cut(b[72:72+typeSize], []byte{0})
	l := label{
		cluster: id.Cluster(b[16:32]), server: [16]byte(b[32:48]),
		at: disk.Identity{UUID: [16]byte(b[48:64]), Inode: binary.LittleEndian.Uint64(b[64:]), Mount: b[12] == labelMounted, Type: string(typ)},
	}
	if b[12] > labelMounted || !chunk.IsZero(b[13:16]) || !chunk.IsZero(rest) || !chunk.IsZero(b[72+typeSize:slotSize-4]) {
		return label{}, fmt.Errorf("reserved bytes are not zero: %w", ErrCorrupt)
	}
	return l, nil
}

// Retirement is why and when a store was taken out of service for good.
type Retirement struct {
	Cause string
	Time  time.Time // zero: what was written is damaged
}

// encode fills b, one slot long.
func (r *Retirement) encode(b []byte) {
	clear(b[:slotSize])
	copy(b, goneMagic)
	binary.LittleEndian.PutUint32(b[8:], formatVersion)
	text := r.Cause[:min(len(r.Cause), maxGoneText)]
	binary.LittleEndian.PutUint32(b[12:], uint32(len(text)))
	binary.LittleEndian.PutUint64(b[16:], uint64(r.Time.UnixNano()))
	copy(b[goneText:], text)
	seal(b)
}

// decodeRetirement returns nil if the slot says that the store is in service. A damaged slot is a retirement with an unknown cause.
func decodeRetirement(b []byte) *Retirement {
	if chunk.IsZero(b[:slotSize]) {
		return nil
	}
	err := unseal(b, goneMagic)
	n := binary.LittleEndian.Uint32(b[12:])
	if err == nil && (n > maxGoneText || !chunk.IsZero(b[goneText+min(n, maxGoneText):slotSize-4])) {
		err = fmt.Errorf("text of %d bytes, limit %d: %w", n, maxGoneText, ErrCorrupt)
	}
	if err != nil {
		return &Retirement{Cause: fmt.Sprintf("the reason is not known, since its record is damaged: %v", err)}
	}
	return &Retirement{Cause: string(b[goneText : goneText+n]), Time: time.Unix(0, int64(binary.LittleEndian.Uint64(b[16:]))).UTC()}
}

// refusal says what a retirement means for who wants to use the directory.
func (r *Retirement) refusal(dir string) error {
	when := ""
	if !r.Time.IsZero() {
		when = " on " + r.Time.Format("2006-01-02 15:04:05 UTC")
	}
	return fmt.Errorf("%s: %w%s: %s; replace the disk, make a new chunk server on the new one and remove this one; "+
		"if it was not the disk and `varve cs check -r %s` finds it sound, `varve cs readmit -r %s` lets it start", dir, ErrRetired, when, r.Cause, dir, dir)
}

// openLabel opens the label of the directory and refuses a directory that is another one, or retired. A store that has none yet gets
// one, unless o.Existing says that there must be a store: then only one that was made before there were labels.
func openLabel(o *Options) (disk.File, error) {
	path := filepath.Join(o.Dir, labelName)
	at, err := disk.Identify(o.FS, o.Dir)
	if err != nil {
		return nil, err
	}
	_, err = o.FS.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := mayLabel(o, at); err != nil {
			return nil, err
		}
		return makeLabel(o, label{cluster: o.Cluster, server: o.Server, at: at})
	}
	if err != nil {
		return nil, err
	}
	l, gone, err := readLabel(o.FS, path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; `varve cs check -r %s` tells more", path, err, o.Dir)
	}
	if err := l.belongs(o); err != nil {
		return nil, err
	}
	if gone != nil {
		return nil, gone.refusal(o.Dir)
	}
	if err := l.moved(o.Dir, at); err != nil {
		return nil, err
	}
	return o.FS.Open(path, disk.ReadWrite)
}

// mayLabel says why a directory without label is not to become a store.
func mayLabel(o *Options, at disk.Identity) error {
	if !o.Existing {
		return nil
	}
	if _, err := o.FS.Stat(filepath.Join(o.Dir, "active.log")); err == nil {
		return nil // made by a version without labels
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	hint := ""
	if !at.Mount {
		hint = fmt.Sprintf(" and %s is no mount point: is its filesystem mounted?", o.Dir)
	}
	return fmt.Errorf("%s holds no chunks%s: %w", o.Dir, hint, ErrMoved)
}

// belongs says whether the store is one of the cluster and server that o names.
func (l *label) belongs(o *Options) error {
	if l.cluster != o.Cluster {
		return fmt.Errorf("%s holds chunks of cluster %v, want %v; give the directory of a server of that cluster: %w", o.Dir, l.cluster, o.Cluster, fserr.WrongCluster)
	}
	var none [16]byte
	if o.Server != none && l.server != none && l.server != o.Server {
		return fmt.Errorf("%s holds the chunks of another server (uuid %s, want %s): put cs.json and the chunks that belong together in one place: %w",
			o.Dir, hex.EncodeToString(l.server[:]), hex.EncodeToString(o.Server[:]), ErrMoved)
	}
	return nil
}

// moved says how the directory differs from the one in which the store was made. What either does not know is not compared.
func (l *label) moved(dir string, at disk.Identity) error {
	var none [16]byte
	var how []string
	same := l.at.Type == at.Type
	if l.at.UUID != none && at.UUID != none && l.at.UUID != at.UUID {
		how = append(how, fmt.Sprintf("it was made on the filesystem %s (%s) and is on %s (%s)", uuidString(l.at.UUID), l.at.Type, uuidString(at.UUID), at.Type))
		same = false
	} else if l.at.Type != "" && at.Type != "" && !same {
		how = append(how, fmt.Sprintf("it was made on %s and is on %s", l.at.Type, at.Type))
	}
	if l.at.Mount && !at.Mount && at.Type != "" {
		how = append(how, "it was a mount point and is none: is its filesystem mounted?")
	}
	if same && l.at.Inode != 0 && at.Inode != 0 && l.at.Inode != at.Inode {
		how = append(how, fmt.Sprintf("it is a copy: the directory has inode %d, the original %d", at.Inode, l.at.Inode))
	}
	if how == nil {
		return nil
	}
	return fmt.Errorf("%s: %w: %s; two servers must never run from copies of one directory; if it was moved on purpose and the original is gone, "+
		"`varve cs readmit -r %s` says so", dir, ErrMoved, strings.Join(how, ", "), dir)
}

func uuidString(u [16]byte) string { return id.Cluster(u).String() }

// makeLabel writes a label durably and returns it open.
func makeLabel(o *Options, l label) (disk.File, error) {
	path := filepath.Join(o.Dir, labelName)
	f, err := o.FS.Open(path+".new", disk.ReadWrite|disk.Create)
	if err != nil {
		return nil, err
	}
	b := make([]byte, labelSize)
	l.encode(b)
	if _, err = f.WriteAt(b, 0); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	if err := o.FS.Rename(path+".new", path); err != nil {
		return nil, err
	}
	if err := o.FS.SyncDir(o.Dir); err != nil {
		return nil, err
	}
	return o.FS.Open(path, disk.ReadWrite)
}

// readLabel reads a label. gone is not nil if the store was retired, whatever err says of the identity.
func readLabel(fsys disk.FS, path string) (l label, gone *Retirement, err error) {
	f, err := fsys.Open(path, disk.ReadOnly)
	if err != nil {
		return label{}, nil, err
	}
	defer f.Close()
	b := make([]byte, labelSize)
	if n, err := f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return label{}, nil, err
	} else if n < len(b) {
		return label{}, nil, fmt.Errorf("%d bytes, want %d: %w", n, len(b), ErrCorrupt)
	}
	l, err = decodeLabel(b)
	return l, decodeRetirement(b[slotSize:]), err
}

// retire leaves in the directory, if the disk still lets it, that it must not be used again.
func (s *Store) retire(cause error) {
	b := disk.AlignedBuffer(slotSize)
	(&Retirement{Cause: cause.Error(), Time: time.Now()}).encode(b)
	_, err := s.label.WriteAt(b, slotSize)
	if err == nil {
		err = s.label.Sync()
	}
	if err != nil {
		s.o.Logger.Error("the store could not be marked as retired: see that it is not started again", "dir", s.o.Dir, "err", err)
	}
}

// RetirementOf returns why the store in a directory was retired, nil if it was not or there is no store.
func RetirementOf(fsys disk.FS, dir string) (*Retirement, error) {
	if fsys == nil {
		fsys = disk.OS{}
	}
	_, gone, err := readLabel(fsys, filepath.Join(dir, labelName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if gone != nil {
		return gone, nil
	}
	return nil, err
}

// Readmit makes a store usable again that was retired, or was moved to another directory or filesystem. It is for an administrator who knows
// that the disk is sound and the original, if this is a copy, gone. What it says about was returns what had kept the store out.
func Readmit(o Options) (was []string, err error) {
	if o, err = o.withDefaults(); err != nil {
		return nil, err
	}
	if _, err := o.FS.Stat(filepath.Join(o.Dir, "active.log")); err != nil {
		return nil, fmt.Errorf("%s holds no store: %w", o.Dir, err)
	}
	unlock, err := o.FS.Lock(filepath.Join(o.Dir, "lock"))
	if err != nil {
		return nil, err
	}
	defer unlock()
	at, err := disk.Identify(o.FS, o.Dir)
	if err != nil {
		return nil, err
	}
	l, gone, err := readLabel(o.FS, filepath.Join(o.Dir, labelName))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		l = label{cluster: o.Cluster, server: o.Server, at: at}
	case errors.Is(err, ErrCorrupt):
		was = append(was, "the label was damaged: "+err.Error())
		l = label{cluster: o.Cluster, server: o.Server, at: at}
	case err != nil:
		return nil, err
	}
	if err := l.belongs(&o); err != nil {
		return nil, err
	}
	if gone != nil {
		was = append(was, "retired: "+gone.Cause)
	}
	if err := l.moved(o.Dir, at); err != nil {
		was = append(was, "moved: "+err.Error())
	}
	if was == nil {
		return nil, nil
	}
	l.at = at
	f, err := makeLabel(&o, l)
	if err != nil {
		return nil, err
	}
	return was, f.Close()
}
