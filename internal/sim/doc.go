// Package sim runs whole clusters in virtual time, one for each seed, and has go wrong in them what the seed says: metadata servers (with Raft),
// chunk servers on simulated disks (disk.Faulty) and core clients, all of it the code that runs in production, over a network in memory.
//
// Run makes one run, in a bubble of package testing/synctest: time goes on when every goroutine waits, so minutes of leases, time-outs and
// repair take milliseconds. A run has a configuration (how many servers, clients and files, one writer a file or several, how many replicas), a
// load (writes, punches, truncates, reads, flushes) on a few blocks at the beginning of a chunk, across two extents of the activity log and across two
// chunks, and faults: servers, metadata servers and clients that are killed, stopped in order, restarted, back before anybody missed them, cut off from all
// or some of the others, slow, or stand still, as far as others see, and go on; a client whose files another takes over at once, while the first
// one lives on and reaches the chunk servers only, with the chunk servers cut off from who would tell them so; sessions that an administrator
// fences; disks that fill up; power that one chunk server
// loses, or all at one instant, with any subset of the sectors that were not synced; connections that break in place of a frame, or after one and so
// before its answer (after which it is sent again), and frames that are late by up to 9 s, so that they arrive after their sender has given up.
//
// What is checked, with the values that each sector may hold all different (model.go):
//   - one register for each sector explains all reads and writes (linearizability): nothing that was answered is lost, and nothing comes back;
//   - after all lost power, a sector holds one value that no flushed write has overwritten, and keeps it;
//   - a write of a session that is over has no effect, and none of its operations succeeds, after the next session was granted the file;
//   - when faults are over, every operation ends, repair ends, all reads succeed, and all replicas of a chunk are equal on their disks;
//   - nothing of a session is done that began after it was answered that the session is fenced;
//   - no server ends by itself or fails to start.
//
// Zeros are put by many, so a read of zeros counts if some put them that were not overwritten in between, and as the value of one if it can be of one
// only. A file that was cut gets its length back before anything else is written: what a mount that dies has made longer and not flushed may be short.
//
// TestSeeds says how many different conditions the runs came to (cover.go): changes of state, refusals and their outcomes, kinds of faults. TestPlantedBugs
// shows that what is checked finds ten bugs, some made by frames that are changed on their way, some by package planted.
//
// Not simulated: readers on a server's own host, since a file of a simulated disk has no descriptor that could be passed; write journals; disks that
// answer late, which the store may wait for under a sync.Mutex; clocks of different speed; a process that stands still by its own clock, whose timers
// run on here.
//
// # What a seed repeats
//
// Configuration, operations of each worker, faults and their times are drawn from the seed alone. How long a frame is on its way, and whether it is
// lost or late, is a hash of the seed, its connection and what it says, so it does not change when other frames do. Raft's own randomness is
// seeded; each process has one thread and is not preempted. What is not repeated is the order of goroutines that run at the same instant: select, the
// order of maps, and timers for one moment are random in Go. It shows as requests of one moment that change places, and so as microseconds; now and
// then a run goes another way from there. The line that a failure prints repeats the schedule of faults always and the failure mostly: of ten seeds that
// were run twice nine did the same number of each operation, and two planted bugs were found again ten times of ten each; the
// instants at which frames arrive differed every time. VARVE_SIM_COUNT=20 runs a seed that many times.
//
// # What virtual time asks of the code
//
// A goroutine that waits for a sync.Mutex is at work for all that synctest knows. So nobody may hold one while he waits for another machine:
// package rwlock is for that. Clocks that leases are counted on go through package boottime, connections through wire.Network.
//
// # Bugs that it found
//
//   - A follower got no entries any more after it had refused some, and a leader could not stop: mds, TestPipelineAfterRefusal.
//   - A write of one of two mounts was done again over a later one of the other, since a replica had joined before it was reported:
//     internal/client, TestSharedWriteIsNotRepeatedForAReplica.
//   - A mount was told "replica not ready" when it truncated a file whose tail another was still to punch: mds, TestTruncateWaitsForThePunch.
//   - A replica that came back unclean, and whose source was dropped before it could join it, was forgotten, and its chunk was neither read nor written
//     any more: mds, TestUncleanReplicaWhoseSourceWasDropped.
//   - The last replica that had what was answered was dropped while the other came back from a loss of power: mds, TestLastSoundReplicaIsNotDropped.
//   - A read under a shared-write lease failed with EIO when the leader had not heard of the chunk server for a while: internal/client,
//     TestSilenceIsNoDamage.
//   - A rebuild onto a server that was full from the beginning ended the leader: mds/plan, TestAllFull.
//   - Two mounts that opened a file at the same moment took it from each other thousands of times: internal/client, TestRecallOfAnEarlierLease.
//   - Met once in an earlier version: a write of one of several mounts that was sent again, since a replica had failed under it or an answer was lost, came
//     back over a later one of another mount: cs, TestOrderedOnce and those after it.
//   - VARVE_SIM_SEED=541, in 2 of 60 repetitions: an empty chunk file that an allocation left when all lost power was compared with the replicas of a
//     later chunk of the same number. It belongs to no file, and the comparison leaves it out now.
package sim
