// Package links has servers work over links that others fill: each in a network namespace of its own (package netns), behind a token bucket that a
// neighbour keeps full in both directions.
package links
