package report

import (
	"fmt"
	"html/template"
	"io"
	"os"
	"path/filepath"
	"time"

	"varve/perf"

	"github.com/dustin/go-humanize"
)

var page = template.Must(template.New("page").Funcs(template.FuncMap{
	"short": perf.ShortDuration,
	"count": func(v float64) string { return humanize.Comma(int64(v)) },
	"one":   func(v float64) string { return humanize.FormatFloat("#,###.#", v) },
	"cores": func(p perf.ProcessCPU, r *perf.Result) string {
		return fmt.Sprintf("%.2f", p.CPU.Seconds()/max(r.Elapsed, 1).Seconds())
	},
	"percent": func(v float64) string { return fmt.Sprintf("%+.1f %%", 100*v) },
	"figure":  func(v float64) string { return humanize.CommafWithDigits(v, 1) },
	"when":    func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") },
}).Parse(pageText))

// pageText needs nothing from outside: the pictures are in it.
const pageText = `<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>varve perf: {{.Title}}</title>
<style>
body{font:15px/1.45 system-ui,sans-serif;color:#222;max-width:1000px;margin:2em auto;padding:0 1em}
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}
table{border-collapse:collapse;margin:.7em 0}
th,td{padding:.25em .7em;text-align:right;border-bottom:1px solid #ddd;font-variant-numeric:tabular-nums}
th{font-weight:600}th:first-child,td:first-child{text-align:left}
.note{color:#a30}.better{color:#063}.worse{color:#a30}svg{max-width:100%;height:auto}
</style></head><body>
<h1>{{.Title}}</h1>
<h2>Runs</h2>
<table><tr><th>run</th><th>operation</th><th>count</th><th>IOPS</th><th>MiB/s</th><th>mean</th><th>p50</th><th>p90</th><th>p99</th><th>p99.9</th><th>max</th></tr>
{{range .Runs}}{{$name := .Name}}{{range .Rows}}<tr><td>{{$name}}</td><td>{{.Name}}</td><td>{{.Count}}</td><td>{{count .IOPS}}</td><td>{{one .MiBs}}</td>
{{with .Latency}}<td>{{short .Mean}}</td><td>{{short .P50}}</td><td>{{short .P90}}</td><td>{{short .P99}}</td><td>{{short .P999}}</td><td>{{short .Max}}</td>{{end}}</tr>
{{end}}{{end}}</table>
{{range .Runs}}<p><b>{{.Name}}</b>: {{.Result.Options.Describe}}; began {{when .Result.Started}}.
{{with .Result.Stopped}}<span class="note">Ended early: {{.}}.</span>{{end}}
{{range .Result.Errors}}<span class="note">{{.Count}} times {{.Op}}: {{.Error}}.</span> {{end}}
{{with .Result.Stuck}}<span class="note">{{.}} operations never ended.</span>{{end}}
{{range .Result.Removed}}<span class="note">{{.}} was removed, replaced or unmounted.</span> {{end}}
{{with .Result.Ramp}}A ramp of {{.Elapsed}} does not count.{{end}}
{{with .Result.Steady}}{{if .Reached}}Steady state was reached after {{.At}}.{{else}}<span class="note">Steady state was not reached.</span>{{end}}{{end}}
{{with .Result.Missed}}<span class="note">{{.}} operations were due and could not be started.</span>{{end}}
{{with .Result.Verify}}{{if .Faults}}<span class="note">{{.Faults}} wrong blocks.</span>{{else}}{{.Checked}} blocks verified, all right.{{end}}{{end}}</p>
{{end}}
{{if .Comparisons}}<h2>{{.B}} against {{.A}}</h2>
<table><tr><th>figure</th><th>{{.A}}</th><th>{{.B}}</th><th>change</th><th>95 % interval</th><th>p</th><th>samples</th><th>verdict</th></tr>
{{range .Comparisons}}<tr><td>{{.Figure}}, {{.Unit}}</td><td>{{figure .A}}</td><td>{{figure .B}}</td><td>{{percent .Change}}</td><td>{{percent .Low}} to {{percent .High}}</td>
<td>{{printf "%.3f" .P}}</td><td>{{index .Samples 0}}, {{index .Samples 1}}</td><td class="{{.Verdict}}">{{.Verdict}}</td></tr>
{{end}}</table>
<p>Medians; the interval is a bootstrap of their ratio, p a Mann-Whitney U test. Seconds of one run depend on one another, so several runs of each side tell more.</p>{{end}}
{{range .Plots}}<h2>{{.Title}}</h2>
{{.SVG}}
{{end}}
{{range .Runs}}{{$res := .Result}}{{if .Result.CPU}}<h2>CPU of {{.Name}}</h2>
<table><tr><th>process</th><th>pid</th><th>cores</th><th>CPU for an operation</th></tr>
{{range .Result.CPU}}<tr><td>{{.Name}}</td><td>{{.PID}}</td><td>{{cores . $res}}</td><td>{{short .PerOp}}</td></tr>
{{end}}</table>{{end}}{{end}}
</body></html>
`

type pageRun struct {
	Run
	Rows []perf.Kind
}

type pagePlot struct {
	Title string
	SVG   template.HTML
}

// WriteHTML writes one page that needs no other file. c, which may be empty, compares the runs a with the runs b, which are sides so called.
func WriteHTML(w io.Writer, title string, runs []Run, a, b string, c []Comparison) error {
	plots, err := Plots(runs)
	if err != nil {
		return err
	}
	data := struct {
		Title, A, B string
		Runs        []pageRun
		Plots       []pagePlot
		Comparisons []Comparison
	}{Title: title, A: a, B: b, Comparisons: c}
	for _, r := range runs {
		data.Runs = append(data.Runs, pageRun{r, r.Result.Kinds()})
	}
	for _, p := range plots {
		svg, err := p.svg()
		if err != nil {
			return fmt.Errorf("draw %s: %w", p.Name, err)
		}
		data.Plots = append(data.Plots, pagePlot{p.Title, template.HTML(svg)}) // drawn here, of numbers and escaped names
	}
	return page.Execute(w, data)
}

// PageFile is the page's name in a directory of WriteDir.
const PageFile = "report.html"

// WriteDir writes the page and the pictures to a directory, and returns their paths.
func WriteDir(dir, title string, runs []Run, a, b string, c []Comparison) ([]string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	var paths []string
	write := func(name string, f func(io.Writer) error) error {
		path := filepath.Join(dir, name)
		file, err := os.Create(path)
		if err != nil {
			return err
		}
		err = f(file)
		if closeErr := file.Close(); err == nil {
			err = closeErr
		}
		if err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
		paths = append(paths, path)
		return nil
	}
	if err := write(PageFile, func(w io.Writer) error { return WriteHTML(w, title, runs, a, b, c) }); err != nil {
		return nil, err
	}
	plots, err := Plots(runs)
	if err != nil {
		return nil, err
	}
	for _, p := range plots {
		if err := write(p.Name+".png", p.WritePNG); err != nil {
			return nil, err
		}
	}
	return paths, nil
}
