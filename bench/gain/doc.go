// Command gain compares three ways to serve TCP connections: the library github.com/pawelgaczynski/gain, package net, and varve's own
// iouring/reactor, on a ring and on epoll. An echo of 64 bytes at 1 and at 64 connections, and uploads of 1 MiB at 1 and 8; operations a
// second, latencies, and CPU of the server for an operation, each server in a process of its own, the client the same for all.
//
//	go run -tags gain -ldflags=-checklinkname=0 ./bench/gain [-for 2s] [-rounds 3]
//
// gain's root package reaches into package syscall, which links only with that flag. So everything here that imports it is behind the
// tag, and without it the command only says so.
package main
