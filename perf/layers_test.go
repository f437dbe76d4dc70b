package perf

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"
)

func TestLayers(t *testing.T) {
	dir := t.TempDir()
	layers := []Layer{{"generator", "null"}, {"disk", "file:" + filepath.Join(dir, "f")}, {"gone", "mount:" + filepath.Join(dir, "missing")}, {"files", "mount:" + dir}}
	var order []string
	var out []LayerResult
	var err error
	tries(t, func() error { // a busy machine may do nothing in so short a time
		order = nil
		out, err = Layers(t.Context(), Options{Size: 1 << 20, Duration: 30 * time.Millisecond}, layers, 2, func(l Layer, _ int) { order = append(order, l.Name) })
		if err != nil {
			t.Fatal(err)
		}
		for i, l := range out {
			if l.Name == "gone" {
				if l.Error == "" || l.IOPS != 0 {
					t.Errorf("%+v", l)
				}
				continue
			}
			if l.Layer != layers[i] || l.P99 < l.P50 || l.Error != "" {
				t.Errorf("%+v", l)
			}
			if l.IOPS <= 0 || l.Mean <= 0 {
				return fmt.Errorf("%+v", l)
			}
		}
		return nil
	})
	if len(order) != 7 || order[0] != "generator" || order[4] != "disk" {
		t.Errorf("order %v", order)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if out, err = Layers(ctx, Options{Duration: time.Hour}, layers[:1], 1, nil); err != nil || out[0].Error != "not run" {
		t.Errorf("cancelled: %+v, %v", out, err)
	}
}
