package main

import "runtime"

// heapSlack is memory that a server never touches, so that it takes up no room. The garbage collector counts it: it runs
// when the heap has grown by as much as it holds, and a small heap would have it run many times a second. With it the garbage may
// grow by 64 MiB more than it may without.
const heapSlack = 64 << 20

var slack []byte

// slackenGC is called by what runs for long, and by what replays a journal.
func slackenGC() {
	slack = make([]byte, heapSlack)
	runtime.KeepAlive(slack)
}
