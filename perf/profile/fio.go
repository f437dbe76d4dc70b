package profile

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"varve/perf"
)

// ParseFio reads a job file of fio. Its jobs become groups that work at the same time; with "stonewall" a job, and those after it, become a phase
// of their own. An option that has no meaning here is an error that names it and its line.
func ParseFio(name string, text []byte) (*Profile, error) {
	p := &Profile{Name: name, About: "from a job file of fio"}
	global := fioJob{Group: Group{BS: 4096, QD: 1, Jobs: 1}}
	var jobs []fioJob
	at := &global
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		if section, ok := strings.CutPrefix(line, "["); ok {
			section, ok = strings.CutSuffix(section, "]")
			switch {
			case !ok:
				return nil, fmt.Errorf("line %d: %q is no section", n, line)
			case section == "global":
				at = &global
			default:
				jobs = append(jobs, global)
				at = &jobs[len(jobs)-1]
				at.Name = strings.NewReplacer("_", "-", ".", "-", " ", "-").Replace(section)
			}
			continue
		}
		key, value, _ := strings.Cut(line, "=")
		if err := at.set(strings.TrimSpace(key), strings.TrimSpace(value)); err != nil {
			return nil, fmt.Errorf("line %d: %q: %w", n, line, err)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	for _, j := range jobs {
		j.Rate *= float64(j.Jobs) // fio means each job
		if len(p.Phases) == 0 || j.wall {
			p.Phases = append(p.Phases, Phase{Name: j.Name, For: Duration(j.runtime)})
		}
		ph := &p.Phases[len(p.Phases)-1]
		ph.For = max(ph.For, Duration(j.runtime))
		ph.Groups = append(ph.Groups, j.Group)
	}
	return p, p.Validate()
}

// fioJob is what the options of a section say.
type fioJob struct {
	Group
	runtime time.Duration
	wall    bool
}

var errNoMeaning = errors.New("this option of fio has no meaning here; take it out")

func (j *fioJob) set(key, value string) (err error) {
	count := func(to *int) { *to, err = strconv.Atoi(value) }
	flag := func() bool { return value == "" || value == "1" }
	switch key {
	case "rw", "readwrite":
		j.RW = perf.RW(value)
		if value == "rw" || value == "readwrite" {
			err = errors.New("sequential reads and writes mixed are not known here; use randrw, or two jobs")
		}
	case "bs", "blocksize":
		j.BS, err = ParseBytes(value)
	case "size", "filesize":
		j.Size, err = ParseBytes(value)
	case "iodepth":
		count(&j.QD)
	case "numjobs":
		count(&j.Jobs)
	case "rwmixread":
		count(&j.Mix)
	case "rwmixwrite":
		if count(&j.Mix); err == nil {
			j.Mix = 100 - j.Mix
		}
	case "fsync", "fdatasync":
		count(&j.Fsync)
	case "direct":
		j.Direct = flag()
	case "buffered":
		j.Direct = !flag()
	case "runtime", "timeout":
		if j.runtime, err = time.ParseDuration(value); err != nil {
			var seconds int
			if seconds, err = strconv.Atoi(value); err == nil {
				j.runtime = time.Duration(seconds) * time.Second
			}
		}
	case "rate_iops":
		j.Rate, err = strconv.ParseFloat(value, 64)
	case "rate_process":
		if value == "poisson" {
			j.Arrival = perf.Poisson
		} else if value != "linear" {
			err = errNoMeaning
		}
	case "random_distribution":
		if value != "random" {
			j.Dist = perf.Dist(value)
		}
	case "verify":
		j.Verify = value != "0"
	case "randseed":
		j.Seed, err = strconv.ParseUint(value, 10, 64)
	case "stonewall", "wait_for_previous":
		j.wall = flag()
	case "ioengine", "time_based", "group_reporting", "filename", "directory", "thread", "norandommap", "randrepeat", "refill_buffers",
		"description", "invalidate", "end_fsync", "create_on_open", "lat_percentiles", "clat_percentiles", "percentile_list",
		"log_avg_msec", "name", "stats", "unlink", "do_verify", "verify_fatal":
		// How it does it, where, or how it prints: that is decided elsewhere here.
	default:
		err = errNoMeaning
	}
	return err
}
