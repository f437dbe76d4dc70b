//go:build planted

package planted

// On reports whether this binary has the bugs.
const On = true

var bug string

// Is reports whether a bug is planted.
func Is(name string) bool { return bug == name }

// Set plants a bug. Preconditions: nothing runs yet.
func Set(name string) { bug = name }
