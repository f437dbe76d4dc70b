package main

import "testing"

func TestSizeFlag(t *testing.T) {
	for text, want := range map[string]uint64{"512M": 512 << 20, "2g": 2 << 30, "1GiB": 1 << 30, "134217728": 128 << 20, "1.5G": 3 << 29} {
		var s sizeFlag
		if err := s.Set(text); err != nil || uint64(s) != want {
			t.Errorf("%q: %d, %v, want %d", text, s, err, want)
		}
	}
	for _, text := range []string{"", "M", "lots", "-1G", "9999999999T"} {
		var s sizeFlag
		if err := s.Set(text); err == nil {
			t.Errorf("%q is taken for %d", text, s)
		}
	}
}
