// Package bonds holds the test of two hosts that are joined by two limited links: one client and one server use both, for reads and for writes, and go on
// over one of them when the other is cut, whether the driver notices that or not.
package bonds
