// Package local lets a process read a chunk of a chunk server on the same host without asking it: the server passes a
// read-only descriptor of the chunk file over a UNIX socket, and tells by memory that both have mapped, the board, what every
// block's checksum is, who is changing it, and whether the right to read still holds.
//
// The server makes a Board, listens (Listen), gives each session a place on the board and each chunk that is asked for a Slot, and
// marks blocks before and after it changes them. The client dials (Dial), maps the board (View) and reads with a Grant: Begin, the disk, Finish. What both
// send are Packets.
//
// What it guarantees: a read that was begun with Grant.Begin and finished with nil has filled the buffer with what the chunk held at one
// moment in between, a moment at which the slot was open, the session had its place, the board's time had not run out, and
// no block of the range was being changed. Boards and Slots may be used by many at once, and so may Views and Grants.
//
// Why that is so. A read looks at the board twice, before and after the disk:
//
//  1. the slot's stamp and the place's stamp are those of the grant;
//  2. the entries of the blocks: checksum, and version, which is odd while a block is being changed: none is;
//  3. the clock is before `until`: this is the moment M at which the read takes place;
//  4. the disk; each block must have the checksum of its entry;
//  5. the entries are the same as in 2;
//  6. the slot's stamp and the place's stamp are still those of the grant;
//  7. the clock is before `until`, and not more than maxRead after 3.
//
// Stamps are never used again, and a writer makes an entry odd before it touches the block and gives it another version when it is
// done. So by 5 and 6 the blocks, their slot and the place were the same from 2 on, at M in particular, and what the disk gave in
// between is what the blocks held at M. Versions have 31 bits that count; maxRead is too short for them to come round. By 7 the disk
// was read before the board's time was over. This matters when the server dies: its successor changes nothing before
// the last `until` of the old board has passed, so nobody changes blocks behind the back of a board that counts. Both processes
// use the boot-time clock; that it is one clock (no time namespace lies in between) is seen at the handshake.
//
// The board cannot shrink and only the server can write it (seals of the memfd), so no peer can crash a reader or forge an entry.
//
// Whom a descriptor was given can read the file as long as he likes: a revoked grant keeps honest readers from old data and
// is no barrier to others. So a server passes descriptors only to processes of its own user or of root, and a client
// believes only those.
package local
