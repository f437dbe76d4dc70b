// Package netns puts servers under test into network namespaces of their own, each joined to the one of the test, and parts them from
// the others.
//
// A test runs itself again in a new namespace, the hub (Again), forwards there (Hub), makes a Space for each server, and starts the
// server's process on the thread of that namespace (Do). Nothing of it outlives the test's process.
package netns
