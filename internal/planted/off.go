//go:build !planted

package planted

// On reports whether this binary has the bugs.
const On = false

// Is reports whether a bug is planted.
func Is(string) bool { return false }

// Set does nothing.
func Set(string) {}
