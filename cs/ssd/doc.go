// Package ssd is a write journal on a fast disk in front of a slow one: a disk.FS between cs/store and the disk, of which the
// store does not know.
//
// Use: Create a journal once; Open it with the slow disk's FS and use the FS that comes back in its place; Close it. Stats says
// how full it is. Dump is for people.
//
// What it does. WriteAt to a file that Options.Journaled names appends to the journal and returns when the journal's disk has it;
// Sync of the file syncs the journal. ReadAt takes from the journal what is only there and the rest from the slow disk. In the
// background records are written to the slow disk in order of place (file, offset), neighbours together; only when that disk has
// been synced, and the journal's header says so on stable media, is their room used again. What cannot be of use in a journal goes
// to the slow disk at once: long sequential writes, writes that make a file longer, writes to other files, and everything when the
// journal is full.
//
// Guarantees. What Sync of a file covered survives loss of power of both disks, each on its own. After a crash a page of a file is as
// it was last synced or as something later made it, never older. Bytes of the journal count only if their checksums, sequence,
// position and generation fit: neither a torn record, nor one behind a gap, nor one of an earlier lap is ever taken. A gap in what
// was once synced is damage, and Open refuses it (ErrDamaged). No page is in the journal while a newer one is only on the slow
// disk: what bypasses the journal has no page in it that could be replayed over it. Any failure of the journal, and any of the slow
// disk but a full one, takes the FS out of service for good: every later call fails with it.
//
// A journal belongs to one server: both sides hold the UUIDs of the other, and a generation that is counted up with each start, so
// a missing, foreign or older journal is refused (ErrLost) rather than taken for an empty one.
//
// A caller does not write the same page from two goroutines at once (the store locks blocks). All methods may be called at once
// otherwise. Renaming, truncating and replacing a file that has pages in the journal waits until they are on the slow disk.
//
// A writer waits for room in the journal, gently at first (pace.go), then for at most Options.MaxWait; after that its write goes to
// the slow disk, unless one of its pages is in the journal: such a write waits for the destaging of the oldest records, which goes in
// small passes as long as somebody waits.
//
// Memory: 21 bytes for each 4 KiB of the journal (index.go), two batches of 1 MiB, and buffers of 1 MiB for destaging and for reads
// that are not aligned.
//
// Lock order: FS.nameMu, file.alter, ring.mu. ring.mu is held for memory only, never over I/O.
//
// Format: format.go.
package ssd
