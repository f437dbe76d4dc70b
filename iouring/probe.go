package iouring

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Probe tells what the running kernel has. It asks once: by set-up flags, IORING_REGISTER_PROBE, the features that io_uring_setup returns,
// and by trying. A feature that is a flag of an operation and cannot be tried without side effects is taken to be there if an opcode
// of the same release is.
func Probe() (Feature, error) { return probeOnce() }

var probeOnce = sync.OnceValues(func() (Feature, error) {
	type answer struct {
		has Feature
		err error
	}
	c := make(chan answer)
	go func() { // a thread of its own, which ends with it: rings belong to threads
		runtime.LockOSThread()
		has, err := probeKernel()
		c <- answer{has, err}
	}()
	a := <-c
	return a.has, a.err
})

func probeKernel() (Feature, error) {
	p := params{}
	fd, err := setupCall(4, &p)
	if err != nil {
		return 0, unavailable(err)
	}
	has, err := probeOps(fd, p.features)
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return 0, err
	}
	if has, err = probeSetup(has); err != nil {
		return 0, err
	}
	return probeByTrying(has)
}

// probeOps finds what the opcodes and the features of a plain ring say.
func probeOps(fd int, features uint32) (Feature, error) {
	const need = featSingleMmap | featNoDrop | featSubmitStable | featFastPoll | featExtArg | featRsrcTags
	pr := new(probe)
	if err := registerProbe(fd, pr); err == unix.EPERM || err == unix.EACCES || err == unix.ENOSYS {
		return 0, unavailable(err)
	} else if err != nil || features&need != need || pr.ops[opLinkat].flags&opSupported == 0 {
		return 0, fmt.Errorf("%w: the kernel is older than 5.15 (features %#x)", ErrUnavailable, features)
	}
	var has Feature
	for _, t := range []struct {
		op Opcode
		f  Feature
	}{
		{OpMsgRing, MsgRing | CQESkip}, // 5.18; CQESkip is of 5.17
		{OpSocket, MultishotAccept | CancelMany | DirectAlloc},
		{OpUringCmd, UringCmd},
		{OpSendZC, SendZC | MultishotRecv | CancelFixed},
		{OpSendmsgZC, SendmsgZC},
	} {
		if pr.ops[t.op].flags&opSupported != 0 {
			has |= t.f
		}
	}
	if features&featRegRegRing != 0 { // 6.3
		has |= ReportUsage
	}
	if features&featNoIOWait != 0 {
		has |= NoIOWait
	}
	return has, nil
}

// probeSetup tries the flags of io_uring_setup: all at once, since most kernels have all, else one by one.
func probeSetup(has Feature) (Feature, error) {
	try := func(f Feature) bool {
		flags := setupFlags(Options{SQE128: f.Has(SQE128), CQE32: f.Has(CQE32)}, f)
		p := params{flags: flags, cqEntries: 4}
		fd, err := setupCall(4, &p)
		return err == nil && unix.Close(fd) == nil
	}
	const all = SubmitAll | NoSQArray | SingleIssuer | DeferTaskrun | SQE128 | CQE32
	if try(all) && try(CoopTaskrun) {
		return has | all | CoopTaskrun, nil
	}
	for _, f := range []Feature{SubmitAll, CoopTaskrun, SQE128, CQE32, NoSQArray, SingleIssuer, SingleIssuer | DeferTaskrun} {
		if try(f) {
			has |= f
		}
	}
	return has, nil
}

// probeByTrying finds what can only be found by use, on a ring of the best mode, and registrations.
func probeByTrying(has Feature) (Feature, error) {
	o := Options{Entries: 8}
	if err := o.check(); err != nil {
		return 0, err
	}
	r, err := setup(o, has|SparseTables)
	if err != nil {
		return 0, err
	}
	hold(r)
	if _, err = r.Nop(0); err == nil {
		err = r.Submit(1)
	}
	var c [1]Completion
	if d := r.Reap(c[:0], 1); err != nil || len(d) != 1 {
		return 0, errors.Join(unavailable(err), r.Close())
	}
	r.has = has | RingFD
	if r.registerSelf(); r.enterFl&enterRegistered != 0 {
		has |= RingFD
	}
	r.has = has | SparseTables | BufferRing | MultishotTimeout
	if r.registerFiles(1) == nil && r.registerBuffers(1) == nil {
		has |= SparseTables
	}
	if _, err := r.NewBufferGroup(0, 1, 1); err == nil {
		has |= BufferRing
	}
	if r.ticks() {
		has |= MultishotTimeout
	}
	m := &SQE{Opcode: OpMsgRing, FD: int32(r.fd), Off: tagMessage}
	if syncMessage(m) == nil && r.gotMessage() {
		has |= SyncMsgRing
	}
	if has.Has(MsgRing) {
		if ok, err := r.messages(); err != nil || !ok {
			has &^= MsgRing
		}
	}
	r.has = has
	return has, r.Close()
}

// ticks tells whether a time-out fires twice.
func (r *Ring) ticks() bool {
	if _, err := r.Timeout(minRepeat, Repeat, 0); err != nil {
		return false
	}
	var c [1]Completion
	if r.SubmitWait(1, time.Second) != nil {
		return false
	}
	d := r.Reap(c[:0], 1)
	return len(d) == 1 && d[0].More()
}

// gotMessage tells whether a message has come.
func (r *Ring) gotMessage() bool {
	var c [8]Completion
	for range 100 {
		if r.SubmitWait(1, 100*time.Millisecond) != nil {
			return false
		}
		for _, d := range r.Reap(c[:0], len(c)) {
			if d.Flags&Message != 0 {
				return true
			}
		}
	}
	return false
}

// messages tells whether another ring can send a message to this one in its mode, which 6.1 and 6.2 began to allow.
func (r *Ring) messages() (bool, error) {
	o := Options{Entries: 8}
	if err := o.check(); err != nil {
		return false, err
	}
	from, err := setup(o, r.has)
	if err != nil {
		return false, err
	}
	hold(from)
	if _, err = from.Message(r, 0, 0, 0); err == nil {
		err = from.SubmitWait(1, time.Second)
	}
	var c [1]Completion
	d := from.Reap(c[:0], 1)
	ok := err == nil && len(d) == 1 && d[0].Err == nil && r.gotMessage()
	return ok, errors.Join(err, from.Close())
}
