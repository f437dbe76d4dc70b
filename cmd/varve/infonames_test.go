package main

import (
	"encoding/json"
	"regexp"
	"testing"

	"varve/internal/client"
	"varve/internal/readcache"
)

// TestMountStatNames: what scripts read in .varve.info/stat has names of one form.
func TestMountStatNames(t *testing.T) {
	b, err := json.Marshal(mountStatJSON{Transport: "dev", Stalls: []client.Stall{{}}, ReadCache: readcache.Stats{Top: []readcache.FileStats{{}}}})
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	form := regexp.MustCompile(`^[a-z][a-z0-9_]*$`)
	names := 0
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			for name, v := range v {
				names++
				if !form.MatchString(name) {
					t.Errorf("name %q", name)
				}
				walk(v)
			}
		case []any:
			for _, v := range v {
				walk(v)
			}
		}
	}
	walk(v)
	if names < 40 {
		t.Errorf("only %d names in %s", names, b)
	}
}
