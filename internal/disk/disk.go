// Package disk is the seam between varve's stores and the disk: the few file operations they need, a
// real implementation (OS) and one for tests that forgets what was not synced, tears writes, fills up
// and fails (Faulty). Code that keeps data on disk takes an FS and never calls package os.
//
// What is assumed of the disk: after Sync returned, the bytes written before it survive loss of
// power; after SyncDir returned, so do creations, renames and removals in that directory; a write that
// was not synced may be there in full, in part (in units of 512 bytes), or not at all. A failed Sync
// means that the file's state is unknown: the caller takes the disk out of service and never retries.
package disk

import "io/fs"

// File is an open file. ReadAt and WriteAt may be called at once from several goroutines. ReadAt
// follows io.ReaderAt: short reads come with io.EOF.
type File interface {
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
	Truncate(size int64) error
	// PunchHole frees [off, off+n), which then reads as zeros; the file keeps its size.
	PunchHole(off, n int64) error
	// Sync puts the data and the size on stable media (fdatasync).
	Sync() error
	// Size returns the file's length in bytes.
	Size() (int64, error)
	Close() error
}

// Descriptor is a File that can be read, written and synced by its descriptor as well, as by a ring. Only files of OS are: what
// does more than the kernel does, as Faulty, must see every operation.
type Descriptor interface {
	File
	// Descriptor returns the file's descriptor, which is valid until Close.
	Descriptor() int
}

// DataFinder is a File that knows where its data is.
type DataFinder interface {
	// NextData returns the first range at or after off that is not a hole, io.EOF if there is none. Filesystems that do not know take all
	// of a file for data.
	NextData(off int64) (from, to int64, err error)
}

// Flag says how Open opens.
type Flag int

// Flags for Open.
const (
	ReadOnly  Flag = 0
	ReadWrite Flag = 1 << iota
	Create         // make it if it is missing
	Exclusive      // with Create: fail if it is there
	Direct         // bypass the page cache; buffers, offsets and lengths must be multiples of 4096 (see AlignedBuffer)
)

// Space is the room on a filesystem in bytes.
type Space struct{ Total, Free uint64 }

// FS is a directory tree on a disk. Paths are absolute or relative to the process, as in package os.
type FS interface {
	Open(path string, flag Flag) (File, error)
	Rename(from, to string) error
	Remove(path string) error
	MkdirAll(path string) error
	// ReadDir lists a directory, sorted by name.
	ReadDir(path string) ([]fs.DirEntry, error)
	Stat(path string) (fs.FileInfo, error)
	// SyncDir puts creations, renames and removals in a directory on stable media.
	SyncDir(path string) error
	// Space reports the room of the filesystem that holds path.
	Space(path string) (Space, error)
	// Lock takes an exclusive lock on path (made if missing) that the kernel drops when the process dies.
	Lock(path string) (unlock func() error, err error)
}
