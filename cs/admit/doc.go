// Package admit decides which request goes on next, so that guests come before repair, no client can crowd out another, and
// no more is under way than there is memory and disk for.
//
// Use: make a Queue for a server, and a Flow for each client. Ask for each request before anything is read or allocated for it; then
// call Next until it returns nil: what it returns may go on. Done when a request has ended, and Next again. A request that waits is
// simply not gone on with: its connection is not read meanwhile. Wake says when to call Next again if nothing else happens.
//
// It is pure: time is an argument, and the caller has the lock.
//
// Guarantees. What is under way stays within Options.Ops and Options.Bytes. Of each class, the clients that wait take turns by what
// their requests cost, whatever the number of their requests (start-time fair queueing, Goyal, Vin and Cheng, SIGCOMM 1996); of one
// client, requests go on in the order in which they came. Classes share in the same way by weight, except for this:
//
//   - A client uses Options.PerFlow of the budget at most.
//   - A class has a reserve of the budget that no other can take, so that a server's guests, who may wait for another server, never
//     keep away what that server's guests wait for here.
//   - While guests or replication are active, and for Options.BusyFor afterwards, a class behind them goes on only as far as its weight
//     beside theirs allows, although there may be room, or as far as its Rate: that much it gets in any case. Once they are idle
//     it may take all but the reserves.
//
// Heartbeats never wait.
//
//	state of a request   leaves it by
//	idle                 Ask -> waiting
//	waiting              Next -> under way; Cancel -> idle
//	under way            Done -> idle
package admit
