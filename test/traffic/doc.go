// Package traffic has the daemons of a cluster, each in a network namespace (package netns), tell their traffic apart, and measures what that does: by which
// interfaces the kinds of traffic go and what happens when one of them is cut, whether what is counted is what was sent, whom the guard keeps off,
// how guests and heartbeats fare when others fill the links, and what it costs.
package traffic
