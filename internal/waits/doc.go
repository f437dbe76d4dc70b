// Package waits logs what a server waits for when that takes long, so that nothing stands still in silence.
//
//	defer s.waits.For("chunk servers to fence a session", "session", session).End()
//
// A wait that is over within two seconds costs a timer and leaves no trace. All that wait for the same thing are one line: when the first of them
// has waited for so long, then after twice that time and so on, at least once a minute, and when the last of them has ended.
//
// A Table may be used by many at once. The zero value, and a nil one, log nothing.
package waits
