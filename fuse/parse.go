package fuse

import (
	"bytes"
	"fmt"
	"syscall"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
)

// parseHeader reads the in header of b and returns the arguments, cut to the length that the header says and
// without extensions. An error means that the message makes no sense, so that it cannot even be answered
// (unique is 0) or only with an error.
func parseHeader(b []byte) (h header, args []byte, err error) {
	if len(b) < inHeaderSize {
		return h, nil, fmt.Errorf("request of %d bytes: shorter than a header: %w", len(b), fserr.Protocol)
	}
	length := int(le.Uint32(b))
	h = header{
		op: opcode(le.Uint32(b[4:])), unique: le.Uint64(b[8:]), ino: id.Ino(le.Uint64(b[16:])),
		uid: le.Uint32(b[24:]), gid: le.Uint32(b[28:]), pid: le.Uint32(b[32:]),
	}
	extensions := int(le.Uint16(b[36:])) * 8
	if length > len(b) || length-extensions < inHeaderSize {
		return h, nil, fmt.Errorf("request %v: header says %d bytes, %d of them extensions, got %d: %w",
			h.op, length, extensions, len(b), fserr.Protocol)
	}
	return h, b[inHeaderSize : length-extensions], nil
}

// split cuts args into the fixed arguments of op and the rest.
func split(op opcode, args []byte) (fixed, rest []byte, err error) {
	if op >= opLimit {
		return nil, args, nil
	}
	n := ops[op].fixed
	if len(args) < n {
		return nil, nil, fmt.Errorf("request %v: %d bytes of arguments, want %d: %w", op, len(args), n, fserr.Protocol)
	}
	return args[:n:n], args[n:], nil
}

// maxName is the longest name in bytes, without its zero byte.
const maxName = 255

// cutString takes a string that ends with a zero byte off b.
func cutString(b []byte) (s, rest []byte, err error) {
	i := bytes.IndexByte(b, 0)
	if i < 0 {
		return nil, nil, fmt.Errorf("string of %d bytes without its end: %w", len(b), fserr.Invalid)
	}
	return b[:i:i], b[i+1:], nil
}

// cutName takes the name of a directory entry off b.
func cutName(b []byte) (name, rest []byte, err error) {
	name, rest, err = cutString(b)
	switch {
	case err != nil:
		return nil, nil, err
	case len(name) > maxName:
		return nil, nil, fserr.NameTooLong
	case len(name) == 0 || bytes.IndexByte(name, '/') >= 0:
		return nil, nil, fserr.Invalid
	}
	return name, rest, nil
}

// position reads an offset or a length.
func (r *request) position(at int) (int64, error) {
	v := r.u64(at)
	if v > chunk.MaxFileSize {
		return 0, fserr.FileTooBig
	}
	return int64(v), nil
}

// nanos joins the two parts of a time. Seconds may be negative.
func nanos(sec uint64, nsec uint32) int64 { return int64(sec)*1e9 + int64(nsec) }

// parseSetattr turns struct fuse_setattr_in into a request to the Backend. A change of owner takes
// the setuid and setgid bits away from everything but directories, whoever asks: the kernel leaves that
// to us (FUSE_HANDLE_KILLPRIV_V2).
func parseSetattr(r *request, isDir bool) (*msg.SetAttr, error) {
	valid := r.u32(0)
	req := &msg.SetAttr{Ino: uint64(r.ino)}
	if valid&fattrMode != 0 {
		perm := r.u32(68) & 0o7777
		req.Perm = &perm
	}
	if valid&fattrUID != 0 {
		uid := r.u32(76)
		req.Uid = &uid
	}
	if valid&fattrGID != 0 {
		gid := r.u32(80)
		req.Gid = &gid
	}
	if valid&fattrSize != 0 {
		size := r.u64(16)
		if size > chunk.MaxFileSize {
			return nil, fserr.FileTooBig
		}
		req.Size = &size
	}
	if valid&fattrAtimeNow != 0 {
		req.AtimeNow = true
	} else if valid&fattrAtime != 0 {
		t := nanos(r.u64(32), r.u32(56))
		req.Atime = &t
	}
	if valid&fattrMtimeNow != 0 {
		req.MtimeNow = true
	} else if valid&fattrMtime != 0 {
		t := nanos(r.u64(40), r.u32(60))
		req.Mtime = &t
	}
	chown := valid&(fattrUID|fattrGID) != 0 && valid&fattrMode == 0 && !isDir
	req.KillPriv = valid&fattrKillSuidgd != 0 || chown
	return req, nil
}

// parseLock turns struct fuse_lk_in into a request to the Backend.
func parseLock(r *request) (*msg.Lock, error) {
	req := &msg.Lock{
		Ino: uint64(r.ino), Owner: r.u64(8), Start: r.u64(16), End: r.u64(24), Pid: r.u32(36),
		Flock: r.u32(40)&lkFlock != 0, Wait: r.op == opSetlkw, Test: r.op == opGetlk,
	}
	switch r.u32(32) {
	case syscall.F_RDLCK:
		req.Type = msg.LockType_READ_LOCK
	case syscall.F_WRLCK:
		req.Type = msg.LockType_WRITE_LOCK
	case syscall.F_UNLCK:
		req.Type = msg.LockType_UNLOCK
		req.Wait = false
	default:
		return nil, fserr.Invalid
	}
	if req.Start > req.End {
		return nil, fserr.Invalid
	}
	return req, nil
}
