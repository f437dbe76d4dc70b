// Package e2e tests varve as its users meet it: the built binary, real processes that get SIGKILL, a real
// mount, real applications, a real guest booted by qemu. It has no code of its own outside tests.
//
// The tests run when VARVE_E2E=1 is set, as root, with /dev/fuse and the programs each of them names; `make test`
// does that. VARVE_SOAK=DURATION makes the kill loops run for so long (default: tens of seconds). Everything they start they
// stop, by its own pid; clusters live in temporary directories and listen on loopback.
package e2e
