package iouring

import (
	"fmt"
	"strings"
)

// Feature is a set of what newer kernels have. The zero value is the floor: a kernel 5.15.
type Feature uint64

// Features.
const (
	CQESkip          Feature = 1 << iota // operations that complete without a completion
	SubmitAll                            // a batch is submitted to its end although one entry is faulty
	RingFD                               // the ring's own descriptor is registered: no look-up on each call
	MsgRing                              // a ring posts a completion to another ring
	CoopTaskrun                          // completions interrupt nobody
	SparseTables                         // tables of files and buffers that begin empty
	DirectAlloc                          // the kernel chooses the place of an accepted file in the table
	BufferRing                           // buffers are provided through shared memory
	MultishotAccept                      // one submission, many connections
	CancelMany                           // cancellation by descriptor, or of everything
	SQE128                               // submissions of 128 bytes
	CQE32                                // completions of 32 bytes
	UringCmd                             // commands of a file's own
	SingleIssuer                         // one thread submits
	MultishotRecv                        // one submission, many receptions
	SendZC                               // the network sends from the caller's pages
	CancelFixed                          // cancellation by the place in the table of files
	DeferTaskrun                         // completions are made when the owner waits for them
	SendmsgZC                            // the same with several buffers
	ReportUsage                          // a zero-copy send says whether it copied
	MultishotTimeout                     // one submission, many ticks
	NoSQArray                            // no indirection in the submission ring
	SyncMsgRing                          // a thread without a ring posts a completion to a ring
	NoIOWait                             // a wait is not counted as waiting for a disk
	endFeatures
)

// AllFeatures is every feature that the package knows of.
const AllFeatures = endFeatures - 1

// Version is a kernel's version.
type Version struct{ Major, Minor int }

// Before tells whether v is older than w.
func (v Version) Before(w Version) bool {
	return v.Major < w.Major || v.Major == w.Major && v.Minor < w.Minor
}

func (v Version) String() string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

// features says in which kernel a feature appeared first. Distributions move features to older kernels: New asks the kernel, not its version.
var features = []struct {
	f     Feature
	name  string
	since Version
}{
	{CQESkip, "cqe-skip", Version{5, 17}},
	{SubmitAll, "submit-all", Version{5, 18}},
	{RingFD, "ring-fd", Version{5, 18}},
	{MsgRing, "msg-ring", Version{5, 18}},
	{CoopTaskrun, "coop-taskrun", Version{5, 19}},
	{SparseTables, "sparse-tables", Version{5, 19}},
	{DirectAlloc, "direct-alloc", Version{5, 19}},
	{BufferRing, "buffer-ring", Version{5, 19}},
	{MultishotAccept, "multishot-accept", Version{5, 19}},
	{CancelMany, "cancel-many", Version{5, 19}},
	{SQE128, "sqe128", Version{5, 19}},
	{CQE32, "cqe32", Version{5, 19}},
	{UringCmd, "uring-cmd", Version{5, 19}},
	{SingleIssuer, "single-issuer", Version{6, 0}},
	{MultishotRecv, "multishot-recv", Version{6, 0}},
	{SendZC, "send-zc", Version{6, 0}},
	{CancelFixed, "cancel-fixed", Version{6, 0}},
	{DeferTaskrun, "defer-taskrun", Version{6, 1}},
	{SendmsgZC, "sendmsg-zc", Version{6, 1}},
	{ReportUsage, "report-usage", Version{6, 2}},
	{MultishotTimeout, "multishot-timeout", Version{6, 4}},
	{NoSQArray, "no-sqarray", Version{6, 6}},
	{SyncMsgRing, "sync-msg-ring", Version{6, 13}},
	{NoIOWait, "no-iowait", Version{6, 15}},
}

// NewerThan is the set of the features that a kernel of version v lacks. Options.Without makes a ring behave as on that kernel.
func NewerThan(v Version) Feature {
	var set Feature
	for _, f := range features {
		if v.Before(f.since) {
			set |= f.f
		}
	}
	return set
}

// Has tells whether all of g are in f.
func (f Feature) Has(g Feature) bool { return f&g == g }

// String is the names of the features, with a space between them, in the order in which kernels got them.
func (f Feature) String() string {
	var names []string
	for _, t := range features {
		if f.Has(t.f) {
			names = append(names, t.name)
		}
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, " ")
}
