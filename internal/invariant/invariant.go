// Package invariant stops the process when something that must hold does not. It is for bugs only:
// bad input, failed disks and lost peers are ordinary values, handled where they arise.
package invariant

import "fmt"

// Violation is the value of the panic, so that a test can tell a broken invariant from another panic.
type Violation struct{ Message string }

func (v Violation) Error() string { return "invariant violated: " + v.Message }

// Failf panics with a Violation. Use it as: if bad { invariant.Failf(...) }, so that nothing is
// formatted or allocated while all is well.
func Failf(format string, args ...any) {
	panic(Violation{Message: fmt.Sprintf(format, args...)})
}
