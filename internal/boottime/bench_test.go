package boottime

import "testing"

func BenchmarkNow(b *testing.B) {
	for b.Loop() {
		Now()
	}
}

func BenchmarkCall(b *testing.B) {
	for b.Loop() {
		call()
	}
}
