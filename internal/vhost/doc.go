// Package vhost serves a disk to a virtual machine by the vhost-user protocol: the guest's virtqueues and its memory are shared with this process, and its
// requests are taken from there, on the threads of reactors.
//
// Use: Start with block.Loops, a listening UNIX socket and an image; Shutdown ends it in order. One front end (qemu) is served at a time: others are hung up on. The
// image is open while a queue runs, and flushed and given back before the front end hears that the last one has ended: so the guest can be moved to another host,
// where another server has waited with opening it.
//
// Protocol (docs/interop/vhost-user.rst of qemu, virtio 1.2 sections 2.7 and 5.2): protocol features, several queues, configuration space, REPLY_ACK, and INFLIGHT_SHMFD, by which the
// requests that were under way when this process was killed are found in memory that the front end keeps, and done again by the next one, in their order, before others.
// LOG_SHMFD, by which the front end learns which pages of the guest were written while it copies them to another host (dirty.go, logging.go). With -accel tcg, qemu before
// 9.0 itself loses writes of the guest's processor if the queues stop and begin again in the middle of that (its sync of dirty pages leaves the TLB as it is).
// Split virtqueues with indirect descriptors and event indexes; not packed ones, no postcopy.
// Requests: read, write, flush, discard, write zeroes, identity.
//
// Reads fill the guest's memory where a request lies in one piece there, else they are copied. Writes are copied out of it first, always: a
// guest may change a page while it is being written, and what is sent must be what was counted into its checksum and the same on every replica.
//
// What a guest can do. Every address is looked up in the table of memory that the front end gave, every time; chains are walked by copies of their descriptors, at most as many as
// the queue has, and once. A queue that breaks the rules is stopped, and said so; the guest's other queues go on. The guest's memory stays mapped until the last
// operation on it has ended, whatever the front end does meanwhile. A front end that makes the files of that memory shorter under us ends this process, and with it nothing but
// its own disk.
package vhost
