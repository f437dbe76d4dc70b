package perf

import (
	"bufio"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// The files of a directory that WriteDir makes.
const (
	ResultFile = "result.json"  // the Result
	TextFile   = "report.txt"   // as WriteText prints it
	SeriesFile = "series.csv"   // a line a second
	CurveFile  = "latency.csv"  // the distribution of latencies
	LogFile    = "latency.hlog" // a histogram a second and kind of operation, in the format of HdrHistogram's logs; values are nanoseconds
)

// WriteDir writes the result to a directory, which it makes: for people, for programs and for spreadsheets. Of a Result that was
// decoded from JSON, which has no histograms, LogFile and CurveFile are left out.
func (res *Result) WriteDir(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	type part struct {
		name  string
		write func(io.Writer) error
	}
	files := []part{{ResultFile, res.writeJSON}, {TextFile, res.WriteText}, {SeriesFile, res.writeSeries}}
	if res.latencies != nil {
		files = append(files, part{CurveFile, res.writeCurve}, part{LogFile, res.writeLog})
	}
	for _, f := range files {
		if err := writeFile(filepath.Join(dir, f.name), f.write); err != nil {
			return err
		}
	}
	return nil
}

func writeFile(path string, write func(io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	if err := errors.Join(write(w), w.Flush(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func (res *Result) writeJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(res)
}

// writeSeries writes a line a second; times are in microseconds.
func (res *Result) writeSeries(w io.Writer) error {
	c := csv.NewWriter(w)
	_ = c.Write([]string{"second", "reads", "writes", "fsyncs", "others", "errors", "bytes", "p50_us", "p99_us", "max_us"}) // Error tells
	for _, s := range res.Series {
		row := []string{strconv.Itoa(s.Second)}
		for _, n := range []int64{s.Reads, s.Writes, s.Fsyncs, s.Others, s.Errors, s.Bytes} {
			row = append(row, strconv.FormatInt(n, 10))
		}
		_ = c.Write(append(row, micros(s.P50), micros(s.P99), micros(s.Slowest)))
	}
	c.Flush()
	return c.Error()
}

func micros(d time.Duration) string { return strconv.FormatFloat(float64(d)/1e3, 'f', 3, 64) }

// writeCurve writes which share of the operations took at most how long.
func (res *Result) writeCurve(w io.Writer) error {
	c := csv.NewWriter(w)
	_ = c.Write([]string{"operation", "percentile", "us", "operations"}) // Error tells
	for k, h := range res.latencies.total {
		if h == nil {
			continue
		}
		for _, b := range h.CumulativeDistribution() {
			_ = c.Write([]string{opKind(k).String(), strconv.FormatFloat(b.Quantile, 'f', 5, 64), micros(time.Duration(b.ValueAt)), strconv.FormatInt(b.Count, 10)})
		}
	}
	c.Flush()
	return c.Error()
}

// writeLog writes the histogram of each second and kind of operation.
func (res *Result) writeLog(w io.Writer) error {
	start := res.Started.Unix() * 1000 // the format has whole seconds
	log := hdrhistogram.NewHistogramLogWriter(w)
	log.SetBaseTime(start)
	err := errors.Join(log.OutputComment("varve perf "+string(res.Options.RW)+" on "+res.Options.Target), log.OutputLogFormatVersion(),
		log.OutputStartTime(start), log.OutputBaseTime(start), log.OutputLegend())
	for i := range res.Series {
		for k := range opKinds {
			for tag, s := range map[string]*series{"": res.latencies, rampTag: res.ramp} {
				if s == nil || err != nil {
					continue
				}
				h := s.second(i, k)
				if h == nil {
					continue
				}
				h.SetTag(tag + k.String())
				h.SetStartTimeMs(start + int64(i)*1000)
				h.SetEndTimeMs(start + int64(i+1)*1000)
				err = log.OutputIntervalHistogram(h)
			}
		}
	}
	return err
}

// ReadDir returns the result of a directory that WriteDir made, with its histograms where they are there.
func ReadDir(dir string) (*Result, error) {
	b, err := os.ReadFile(filepath.Join(dir, ResultFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s is not what perf run --out makes: %w", dir, err)
	}
	if err != nil {
		return nil, err
	}
	res := new(Result)
	if err := json.Unmarshal(b, res); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, ResultFile), err)
	}
	f, err := os.Open(filepath.Join(dir, LogFile))
	if errors.Is(err, os.ErrNotExist) {
		return res, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := res.readLog(f); err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return res, nil
}

// rampTag begins the tags of operations that began before the end of the ramp.
const rampTag = "ramp-"

func (res *Result) readLog(r io.Reader) error {
	s, ramp := new(series), new(series)
	start := res.Started.Unix() * 1000 // the format has whole seconds
	for log := hdrhistogram.NewHistogramLogReader(r); ; {
		h, err := log.NextIntervalHistogram()
		if err != nil {
			return err
		}
		if h == nil {
			break
		}
		second := (h.StartTimeMs() - start + 500) / 1000
		for k := range opKinds {
			if second < 0 || second > int64(maxDuration/time.Second) {
				continue
			}
			switch h.Tag() {
			case k.String():
				s.add(int(second), k, h)
			case rampTag + k.String():
				ramp.add(int(second), k, h)
			}
		}
	}
	if res.latencies = s; res.Ramp != nil {
		res.ramp = ramp
	}
	return nil
}

// Point is how many of the operations, in percent, took at most how long.
type Point struct {
	Percentile float64
	Latency    time.Duration
}

// Curve returns the distribution of the latencies of operations of one kind, such as "read", nil if it is not known or there were none.
func (res *Result) Curve(operation string) []Point {
	if res.latencies == nil {
		return nil
	}
	var out []Point
	for k, h := range res.latencies.total {
		if h == nil || opKind(k).String() != operation {
			continue
		}
		for _, b := range h.CumulativeDistribution() {
			out = append(out, Point{b.Quantile, time.Duration(b.ValueAt)})
		}
	}
	return out
}
