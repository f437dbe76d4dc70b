// Package plan says where chunks go and what must be done so that each has the replicas that it should have, where it should have
// them: pure functions of the state and of what the leader knows about the servers.
//
// Placing a new chunk: Place, or, where there are many servers and chunks, the same by Sites. What would be if servers were lost: WhatIf. Everything else: a Planner, which the leader makes when it begins to lead, and asks again and again, once a second or when something has
// ended:
//
//	p := plan.NewPlanner()
//	for {
//		out := p.Next(plan.Input{State: clone, Servers: views, Budget: budget, Now: now, Hold: hold})
//		for _, a := range out.Actions {
//			// Join: make a.Target a joining replica and rebuild it from a.Source (ReplicaJoin, ..., ReplicaSync)
//			// Drop: take the joining replica on a.Target out (ReplicaDrop)
//			// Remove: take the in-sync replica on a.Target out, which the chunk can do without (ReplicaDrop, layouts recalled)
//		}
//	}
//
// An action is one step. A replica moves in two of them: a Join of the new one, and, when that is in sync, a Remove of the one that the chunk
// can best do without. Which one that is follows from the state alone, so a move that was begun under another leader is finished. Who executes says in the
// next call what is under way (ServerView.Load, Coming, Going; Hold), and the planner does not plan it again. What is better is told by the score of a replica
// set (want.go): a move makes it smaller, or, with an equal score, makes two servers' fill levels more alike without either crossing the mean.
//
// Actions come with a Class, most pressing first, a Reason, words, and how many bytes they move at most. A call returns no more than Budget has
// room for: what is left over is planned in later calls. It looks at Budget.Scan degraded chunks, fewest in-sync replicas first, which the state has an index of, and
// at Budget.Sweep of all others, from where the last call ended: so that drains, tiers, failure domains, fill levels and locality are looked after
// however many chunks there are, without looking at all of them at once.
//
// The order of classes is the order of repair: what has one replica left or cannot be written, what has fewer than it should, what costs
// nothing; then, only with room left, drains, what is in the wrong place, and what would be in a better one.
//
// An in-sync replica on a dead server is not the planner's business: after the grace period the leader gives the
// server up with the event ServerLost, and then its chunks are degraded.
//
// Everything is deterministic: the same calls give the same answers. A Planner is used by one goroutine at a time.
package plan
