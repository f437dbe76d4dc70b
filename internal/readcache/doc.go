// Package readcache keeps blocks of chunks that were read on a fast disk of the client's host, so that they need not be read over the
// network again: also not after a restart, a crash of the process, or weeks.
//
// Use: Open a directory. For each file that is read, take its File, and tell it with Opened what the metadata server says of who may have written to
// it. Ask File.Begin for blocks; if it has them, read what it names and give the outcome to Finish. Put what had to be read elsewhere into the
// cache with Fill. Before blocks are changed, call Invalidate, and Drop before a file is cut. All methods may be called at once, and none waits for
// the disk but Open, Close, Resize and Move. A nil *File has nothing and takes nothing.
//
// What it guarantees: Finish says yes only if the bytes are those that Fill was given for this block of this chunk, and neither Invalidate nor Drop was called for
// it since, nor may somebody else have written to it. That holds whatever happens to the disk and its files. Why:
//   - Each block has a 64-bit hash of its bytes, the chunk, the block's number, the generation, and the cache's salt. It is in memory, and was
//     in a record of its own if it comes from an earlier run. So bytes that are torn, rotten, old or in the wrong place are not
//     taken for others.
//   - The generation is a random number, the era, of the file, and the epoch before which unflushed writes of the chunk may be lost. A file whose
//     blocks are not to be believed gets another era.
//   - The file's record says up to which event of the metadata journal it was certain that nobody else wrote (asOf). If somebody was given
//     the right to write since, the file gets another era. Who writes himself is given that right by a newer event, so an older copy of the
//     record, or of the whole directory, from before that counts for nothing.
//   - What this process invalidates while it has that right is in memory, and in the witness: words in a tmpfs, a version and a bit a block for each slot. They
//     survive the process but not the machine, and are in no copy of the directory. A record counts after a crash of the process if
//     its version is the witness's, for the blocks of which the witness says so too.
//   - If the witness is gone, since the machine crashed, every file that was held for writing since the last stop in order gets another era. So to invalidate costs
//     two words in memory and no sync, ever, and a disk that lies about its syncs is as good as another. After a stop in order records are exact, which a
//     digest of them all in the header shows, and no witness is needed.
//
// A chunk that never changes again, as one of a snapshot, may be put under the era Shared by all files that have it: it then is there once.
//
// Which blocks stay is decided for slots of 32 KiB by S3-FIFO (Yang, Zhang, Qiu, Yue, Vinayak: FIFO queues are all you need for cache eviction, SOSP 2023):
// a small queue for what is new, a main queue for what was read again in it, and a list of what left the small queue lately, which
// goes to the main queue when it comes back. What is read once leaves without pushing anything out of the main queue.
//
// Lock order: Cache.admin, Cache.table, one shard, Cache.off.
package readcache
