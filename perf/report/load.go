package report

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"varve/perf"
)

// Run is one result under the name that tells it from the others.
type Run struct {
	Name   string
	Result *perf.Result
}

// Load reads results: of each directory its own, or if it has none, those of the directories in it, in the order of their names.
func Load(dirs ...string) ([]Run, error) {
	var runs []Run
	for _, dir := range dirs {
		own, err := loadDir(dir)
		if err != nil {
			return nil, err
		}
		runs = append(runs, own...)
	}
	names := map[string]int{}
	for i := range runs {
		names[runs[i].Name]++
		if n := names[runs[i].Name]; n > 1 {
			runs[i].Name = fmt.Sprintf("%s (%d)", runs[i].Name, n)
		}
	}
	return runs, nil
}

func loadDir(dir string) ([]Run, error) {
	res, err := perf.ReadDir(dir)
	if err == nil {
		return []Run{{filepath.Base(filepath.Clean(dir)), res}}, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	entries, dirErr := os.ReadDir(dir)
	if dirErr != nil {
		return nil, dirErr
	}
	var runs []Run
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		res, err := perf.ReadDir(filepath.Join(dir, e.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		runs = append(runs, Run{filepath.Base(filepath.Clean(dir)) + "/" + e.Name(), res})
	}
	if len(runs) == 0 {
		return nil, err
	}
	return runs, nil
}
