package settings

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestTable(t *testing.T) {
	all := All()
	if !slices.IsSortedFunc(all, func(a, b Setting) int { return strings.Compare(a.Key, b.Key) }) {
		t.Error("not sorted by key")
	}
	for _, s := range all {
		if s.Help == "" || s.check == nil {
			t.Errorf("%s: no help or no check", s.Key)
		}
		if err := Check(s.Key, s.Default); err != nil {
			t.Errorf("%s: default: %v", s.Key, err)
		}
		if got, ok := Find(s.Key); !ok || got.Key != s.Key {
			t.Errorf("%s: not found", s.Key)
		}
		if err := Check(s.Key, "no such value"); err == nil || !strings.Contains(err.Error(), s.Key) {
			t.Errorf("%s: nonsense: %v", s.Key, err)
		}
	}
}

func TestCheck(t *testing.T) {
	for _, tt := range []struct {
		key, value, want string // want: part of the error, "" for none
	}{
		{Replicas, "3:2", ""}, {Replicas, "3", "NORM:MIN"}, {Replicas, "2:3", "NORM:MIN"}, {Replicas, "", ""},
		{RepairGrace, "10m", ""}, {RepairGrace, "0", "more than 0"}, {RepairGrace, "-1s", "whole numbers"},
		{JournalAge, "90d", ""}, {JournalAge, "0", ""}, {JournalAge, "", ""}, {JournalAge, "90", "units"},
		{JournalBytes, "50G", ""}, {JournalBytes, "0", ""}, {JournalBytes, "1000", "1M or more"}, {JournalBytes, "50GB", "whole number"},
		{RepairRate, "1G", ""}, {RepairRate, "4K", "1M or more"}, {RepairServerRate, "fast", "whole number"}, {RepairRebuilds, "16", ""},
		{RepairRebuilds, "0", "1 to"}, {RepairServerRebuilds, "65", "1 to 64"}, {SlowFactor, "0", ""}, {SlowFactor, "-1", "whole number"},
		{RepairLastGrace, "0", "more than 0"},
		{"colour", "blue", "want one of journal.retention.age"},
	} {
		err := Check(tt.key, tt.value)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s=%q: want %q, got %v", tt.key, tt.value, tt.want, err)
		}
	}
}

func TestAge(t *testing.T) {
	const day = 24 * time.Hour
	for v, want := range map[string]time.Duration{
		"": 0, "0": 0, "0s": 0, "5ms": 5 * time.Millisecond, "1h30m": 90 * time.Minute, "90d": 90 * day, "2w": 14 * day, "1d1h": 25 * time.Hour,
		"1m0s": time.Minute, "106751d": 106751 * day,
		"1": -1, "d": -1, "-1d": -1, "1.5h": -1, "1y": -1, "106752d": -1, "100000d100000d": -1, "99999999999999999999s": -1, " 1d": -1,
	} {
		got, err := Age(v)
		if want < 0 && err == nil || want >= 0 && (err != nil || got != want) {
			t.Errorf("%q: want %v, got %v, %v", v, want, got, err)
		}
	}
}

func TestBytes(t *testing.T) {
	for v, want := range map[string]int64{
		"": 0, "0": 0, "17": 17, "17B": 17, "1K": 1 << 10, "1k": 1 << 10, "3MiB": 3 << 20, "50G": 50 << 30, "2T": 2 << 40, "1P": 1 << 50,
		"K": -1, "-1": -1, "1.5G": -1, "1KB": -1, "1X": -1, "1GG": -1, "9000000P": -1, "99999999999999999999": -1,
	} {
		got, err := Bytes(v)
		if want < 0 && err == nil || want >= 0 && (err != nil || got != want) {
			t.Errorf("%q: want %d, got %d, %v", v, want, got, err)
		}
	}
}
