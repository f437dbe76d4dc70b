package repl

import (
	"varve/internal/id"
	"varve/internal/invariant"
)

// move is what a message does: a verdict, or a state that the replica is to have at the message's epoch.
type move struct {
	verdict Verdict
	next    State
}

// The moves, in the words of the package's table.
var (
	do       = move{verdict: Do}
	note     = move{verdict: DoNote}
	stale    = move{verdict: Stale}
	notReady = move{verdict: NotReady}
	serve    = move{next: Serving}
	track    = move{next: Tracking}
	copied   = move{next: Copied}
)

// row is what a message does whose epoch is below the replica's, equal to it, or above it.
type row [3]move

// never is the row of a message that a state does not take whatever its epoch is.
var never = row{notReady, notReady, notReady}

// table is the whole machine; the package's documentation shows it in words, and a test compares the two.
//
//   - Adopting by whatever comes with a higher epoch is what makes a new epoch spread: the metadata server gives it to none
//     that is not in the set, and a serving replica that is not was dropped before the epoch was raised, so nobody asks it.
//   - A joining replica adopts nothing: each epoch above its own is one at which it has to join again.
//   - A repair is let in while joining only: at any other time its rebuild is over, or was never this replica's.
var table = [states + 1][lastKind + 1]row{
	Serving: {
		Read:     {stale, do, serve},
		Write:    {stale, do, serve},
		Punch:    {stale, do, serve},
		Flush:    {stale, do, serve},
		Repair:   {stale, stale, stale},
		Adopt:    {stale, do, serve},
		Join:     {stale, stale, track},
		Complete: {stale, do, notReady},
		Promote:  {stale, do, notReady}, // above: to an epoch that was never joined
		Accept:   {stale, do, serve},
	},
	Tracking: {
		Read:     {stale, notReady, notReady},
		Write:    {stale, note, notReady},
		Punch:    {stale, note, notReady},
		Flush:    {stale, do, notReady},
		Repair:   {stale, do, notReady},
		Adopt:    {stale, notReady, notReady},
		Join:     {stale, do, track}, // at: the same message again finds the rebuild under way
		Complete: {stale, copied, notReady},
		Promote:  {stale, serve, notReady},
		Accept:   never,
	},
	Copied: {
		Read:     {stale, notReady, notReady},
		Write:    {stale, do, notReady},
		Punch:    {stale, do, notReady},
		Flush:    {stale, do, notReady},
		Repair:   {stale, stale, notReady},
		Adopt:    {stale, notReady, notReady},
		Join:     {stale, do, track},
		Complete: {stale, do, notReady},
		Promote:  {stale, serve, notReady},
		Accept:   never,
	},
	Lost: {
		Read: never, Write: never, Punch: never, Flush: never, Repair: never, Adopt: never,
		Join:     {stale, stale, track}, // at: what was fresh is lost, so this needs a join of its own
		Complete: never, Promote: never, Accept: never,
	},
	Unclean: {
		Read: never, Write: never, Punch: never, Flush: never, Repair: never, Adopt: never,
		Join:     {stale, stale, track},
		Complete: never, Promote: never,
		Accept: {stale, serve, serve},
	},
}

// lookup returns what the table says. A message or a state that it does not have is a bug of the caller.
func lookup(st State, in Input, own id.Epoch) move {
	if st == 0 || st > states || in.Kind == 0 || in.Kind > lastKind {
		invariant.Failf("replica: no rule for kind %d in state %d", in.Kind, st)
	}
	at := 1
	switch {
	case in.Epoch < own:
		at = 0
	case in.Epoch > own:
		at = 2
	}
	return table[st][in.Kind][at]
}
