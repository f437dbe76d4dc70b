// Package throttle decides how fast repair may go, and which chunk servers count as slow: pure functions of what servers and clients report.
//
// A Budget is what all rebuilds of the cluster together may copy. It is asked once a second with what was met since, and answers with a rate:
//
//   - Guests that wait longer than they usually do, short memory, a full link and late heartbeats are pressure: the rate is halved.
//   - Without pressure it grows: quickly up to a little below where there was pressure last, slowly from there on; where no guests are at work,
//     it doubles. So it is additive increase and multiplicative decrease, as of TCP (Chiu and Jain, 1989), with a memory of where it broke.
//   - It never goes below Limits.Least, so that repair comes to its end, nor above Limits.Most.
//
// What guests usually wait is learned while nothing is copied. Who begins in the middle of a repair (a new leader) first holds the rate at its least for a
// few seconds. While the rate is at its least and they still wait longer, that is not repair's doing, and what is usual slowly follows.
//
// A Watch finds servers that answer late though they live. Slow is not dead: such a server gets no new data, and reads go elsewhere, but what it has counts.
// A server is slow when those who ask it have waited much longer for it than for the others, for some seconds; it is not any more when that
// has not been so for longer. At most a third of the servers are: if many are late, it is something else.
//
//	state of a server   leaves it by
//	normal              late in slowAfter of the last slowWindow looks -> slow, if there is room
//	slow                not late for calmAfter looks, or not met for calmAfter looks -> normal
//
// Both are deterministic, and used by one goroutine at a time.
package throttle
