// Package storm runs what people run, fio, sqlite and a virtual machine, on a mount of a cluster whose servers are real processes, each in a
// network namespace of its own, while one of them at a time is killed, stopped or cut off. The applications see no error, no
// acknowledged byte is lost or changed, and in the end all replicas are equal.
package storm
