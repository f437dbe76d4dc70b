package boottime

import (
	"testing"
	"time"
)

func TestNow(t *testing.T) {
	a := Now()
	b := Now()
	if a <= 0 || b < a {
		t.Errorf("clock says %v, then %v", a, b)
	}
}

func TestReplace(t *testing.T) {
	undo := Replace(func() time.Duration { return 42 })
	if got := Now(); got != 42 {
		t.Errorf("replaced clock says %v, want 42", got)
	}
	undo()
	if got := Now(); got == 42 {
		t.Error("clock still replaced")
	}
}
