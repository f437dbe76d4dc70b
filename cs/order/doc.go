// Package order remembers which ordered changes (writes and punches under a shared-write lease) a replica has, so that each is done once.
//
// Use: the first replica asks Missing which bytes of a change it does not have, has the other replicas do them, does them itself, and notes it with
// Own; the others note what was forwarded to them. All under the lock of the blocks. What another replica may not have is Loose: whoever is to
// show or change it makes the blocks equal on all replicas first, and tells the others which changes are in them (Within, and Cut and Note there).
//
// # Why each change is done once
//
// A change has a name, (session, seq), and keeps it until its session says that it is over (Low, Recent), which it does not before all replicas have
// it, or none will ever be asked for it again. The first replica of an epoch has the others do a change before it does it itself, and it alone
// answers reads. So what it shows is on all replicas of the set, but for what came to it when it was not the first. Of that it cannot know
// whether the others have it: these are the entries of lower epochs that are not its own, the loose ones. They are made equal before they are shown or
// changed, and from then on the rule holds for them too.
//
//   - A change is sent again to the same first replica: what it has of it, all have. It answers without doing it.
//   - To another, since the first has died: if it has the change, the change is loose there, is made equal, and is not done again. If it has not,
//     nobody has ever seen the change, as the first had not done it, or this one would have it: it is done, on all replicas, for the first time. One of those may have
//     it, under what was written since; there it is done again, in the order of the first replica, and nobody has read there.
//   - A replica that is made equal in some blocks has in them the changes that the first has, and no others (Cut, Note): what it had besides is undone there and
//     may be sent again. So an entry has the bytes that it counts for, and a change may be had in part.
//   - A replica that joins forgets what it had (Rejoin), and takes the source's entries with the source's blocks. They have the epoch of the join, so that they are
//     loose if it ever becomes the first.
//   - A process that dies leaves the entries in a file that it writes as it makes them. The file counts unless the machine has lost power, when
//     what was answered may be gone as well.
//   - A session that is over sends nothing again. What it has left behind the metadata server settles.
//
// The package is pure, and callers lock. It gives each entry a slot of the file, and says which slots have changed (Changes).
package order
