package report

import (
	"bytes"
	"fmt"
	"image/color"
	"io"
	"math"
	"time"

	"varve/perf"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
	"gonum.org/v1/plot/vg/vgsvg"
)

// Colours that people with any sight can tell apart (Okabe and Ito).
var colours = []color.RGBA{
	{0, 114, 178, 255}, {213, 94, 0, 255}, {0, 158, 115, 255}, {204, 121, 167, 255}, {86, 180, 233, 255}, {230, 159, 0, 255}, {0, 0, 0, 255},
}

// lines are drawn with the run's colour, so what is in one plot differs by dashes.
var dashes = [][]vg.Length{nil, {vg.Points(5), vg.Points(2)}, {vg.Points(1.5), vg.Points(2)}}

// Plot is one picture.
type Plot struct {
	Name  string // of its file
	Title string
	plot  *plot.Plot
}

// Plots draws the runs: throughput and latency over time, and the distribution of latencies. A run with no seconds in it is left out.
func Plots(runs []Run) ([]Plot, error) {
	var out []Plot
	for _, make := range []func([]Run) (Plot, error){throughput, latency, distribution} {
		p, err := make(runs)
		if err != nil {
			return nil, err
		}
		if p.plot != nil {
			out = append(out, p)
		}
	}
	return out, nil
}

func newPlot(title, x, y string) *plot.Plot {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, x, y
	for f, size := range map[*font.Font]vg.Length{
		&p.Title.TextStyle.Font: 13, &p.Legend.TextStyle.Font: 10, &p.X.Label.TextStyle.Font: 10, &p.Y.Label.TextStyle.Font: 10,
		&p.X.Tick.Label.Font: 9, &p.Y.Tick.Label.Font: 9,
	} {
		f.Variant, f.Size = "Sans", size
	}
	p.Title.Padding = vg.Points(6)
	p.X.Padding, p.Y.Padding = vg.Points(4), vg.Points(4)
	p.Legend.Top, p.Legend.Padding, p.Legend.ThumbnailWidth = true, vg.Points(2), vg.Points(24)
	grid := plotter.NewGrid()
	light := color.Gray{225}
	grid.Vertical.Color, grid.Horizontal.Color = light, light
	p.Add(grid)
	return p
}

// line adds a curve.
func line(p *plot.Plot, points plotter.XYs, run, dash int, name string) error {
	if len(points) == 0 {
		return nil
	}
	l, err := plotter.NewLine(points)
	if err != nil {
		return err
	}
	l.Color, l.Width, l.Dashes = colours[run%len(colours)], vg.Points(1.5), dashes[dash%len(dashes)]
	p.Add(l)
	if name != "" {
		p.Legend.Add(name, l)
	}
	return nil
}

// whole returns the seconds that the run worked in full: the last one is cut off.
func whole(res *perf.Result) []perf.Second {
	all := res.Elapsed
	if res.Ramp != nil {
		all += res.Ramp.Elapsed
	}
	n := min(len(res.Series), int(all/time.Second))
	return res.Series[:max(n, 0)]
}

func throughput(runs []Run) (Plot, error) {
	p := newPlot("Operations", "seconds", "operations a second")
	p.Y.Min = 0
	drawn := false
	for i, r := range runs {
		var points plotter.XYs
		for _, s := range whole(r.Result) {
			points = append(points, plotter.XY{X: float64(s.Second) + 0.5, Y: float64(s.Done())})
		}
		drawn = drawn || len(points) > 0
		if err := line(p, points, i, 0, r.Name); err != nil {
			return Plot{}, err
		}
	}
	if !drawn {
		return Plot{}, nil
	}
	p.Y.Max *= 1.1 + 0.05*float64(len(runs)) // room for the legend
	secondsAxis(p)
	p.Y.Tick.Marker = siTicks{}
	return Plot{"throughput", p.Title.Text, p}, nil
}

func latency(runs []Run) (Plot, error) {
	p := newPlot("Latency of operations", "seconds", "latency")
	drawn := false
	for i, r := range runs {
		curves := []struct {
			name string
			of   func(perf.Second) time.Duration
		}{
			{"p50", func(s perf.Second) time.Duration { return s.P50 }},
			{"p99", func(s perf.Second) time.Duration { return s.P99 }},
			{"slowest", func(s perf.Second) time.Duration { return s.Slowest }},
		}
		for k, c := range curves {
			var points plotter.XYs
			for _, s := range whole(r.Result) {
				if d := c.of(s); d > 0 {
					points = append(points, plotter.XY{X: float64(s.Second) + 0.5, Y: d.Seconds()})
				}
			}
			drawn = drawn || len(points) > 0
			if err := line(p, points, i, k, r.Name+" "+c.name); err != nil {
				return Plot{}, err
			}
		}
	}
	if !drawn {
		return Plot{}, nil
	}
	secondsAxis(p)
	timeAxis(p)
	if len(runs) > 1 {
		p.Y.Max *= 10 // room for the legend
	}
	return Plot{"latency", p.Title.Text, p}, nil
}

// distribution has 1/(1-percentile) on its horizontal axis, so that each step is one nine more.
func distribution(runs []Run) (Plot, error) {
	p := newPlot("Distribution of latencies", "percentile", "latency")
	drawn := false
	for i, r := range runs {
		for k, kind := range r.Result.Kinds() {
			var points plotter.XYs
			for _, at := range r.Result.Curve(kind.Name) {
				if at.Percentile < 100 {
					points = append(points, plotter.XY{X: 100 / (100 - at.Percentile), Y: at.Latency.Seconds()})
				}
			}
			drawn = drawn || len(points) > 0
			colour := i
			if len(runs) == 1 {
				colour = k // then the kinds are told apart by it as well
			}
			if err := line(p, points, colour, k, r.Name+" "+kind.Name); err != nil {
				return Plot{}, err
			}
		}
	}
	if !drawn {
		return Plot{}, nil
	}
	p.Legend.Left = true
	p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, nineTicks{}
	p.X.Min, p.X.Max = 1, max(p.X.Max, 1000)
	timeAxis(p)
	return Plot{"distribution", p.Title.Text, p}, nil
}

// timeAxis makes the vertical axis one of times, in whole decades.
func timeAxis(p *plot.Plot) {
	p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, timeTicks{}
	p.Y.Min = math.Pow(10, math.Floor(math.Log10(p.Y.Min)))
	p.Y.Max = math.Pow(10, math.Ceil(math.Log10(p.Y.Max*1.3)))
}

// secondsAxis makes the horizontal axis one of whole seconds.
func secondsAxis(p *plot.Plot) {
	p.X.Min, p.X.Max = 0, math.Ceil(p.X.Max)
	p.X.Tick.Marker = secondTicks{}
}

// secondTicks are some ten whole seconds.
type secondTicks struct{}

func (secondTicks) Ticks(low, high float64) (ticks []plot.Tick) {
	step := math.Pow(10, math.Floor(math.Log10(max(high-low, 10)/10)))
	for _, k := range []float64{2, 2.5, 2} { // 2, 5, 10 times
		if (high-low)/step > 12 {
			step *= k
		}
	}
	for v := math.Ceil(low/step) * step; v <= high; v += step {
		ticks = append(ticks, plot.Tick{Value: v, Label: fmt.Sprintf("%g", v)})
	}
	return ticks
}

// siTicks are 10k, 2M and so on.
type siTicks struct{}

func (siTicks) Ticks(low, high float64) []plot.Tick {
	ticks := plot.DefaultTicks{}.Ticks(low, high)
	for i, t := range ticks {
		if t.Label == "" {
			continue
		}
		switch v := t.Value; {
		case math.Abs(v) >= 1e6:
			ticks[i].Label = fmt.Sprintf("%gM", math.Round(v/1e3)/1e3)
		case math.Abs(v) >= 1e3:
			ticks[i].Label = fmt.Sprintf("%gk", math.Round(v)/1e3)
		default:
			ticks[i].Label = fmt.Sprintf("%g", v)
		}
	}
	return ticks
}

// timeTicks are powers of ten of a second, and small ones between.
type timeTicks struct{}

func (timeTicks) Ticks(low, high float64) (ticks []plot.Tick) {
	for e := math.Floor(math.Log10(low)); e <= math.Ceil(math.Log10(high)); e++ {
		for k := 1; k <= 9; k++ {
			v := float64(k) * math.Pow(10, e)
			if v < low*0.999 || v > high*1.001 {
				continue
			}
			t := plot.Tick{Value: v}
			if k == 1 {
				t.Label = time.Duration(math.Round(v * 1e9)).String()
			}
			ticks = append(ticks, t)
		}
	}
	return ticks
}

// nineTicks are 0, 90, 99 and so on, at 1/(1-percentile).
type nineTicks struct{}

func (nineTicks) Ticks(low, high float64) (ticks []plot.Tick) {
	for _, t := range []plot.Tick{{Value: 1, Label: "0"}, {Value: 2, Label: "50"}, {Value: 10, Label: "90"}, {Value: 100, Label: "99"},
		{Value: 1e3, Label: "99.9"}, {Value: 1e4, Label: "99.99"}, {Value: 1e5, Label: "99.999"}, {Value: 1e6, Label: "99.9999"}} {
		if t.Value <= high*1.001 {
			ticks = append(ticks, t)
		}
	}
	return ticks
}

// Size of a picture.
const (
	width  = 24 * vg.Centimeter
	height = 11 * vg.Centimeter
)

// WritePNG draws the picture, at 144 dots an inch.
func (p Plot) WritePNG(w io.Writer) error {
	c := vgimg.NewWith(vgimg.UseWH(width, height), vgimg.UseDPI(144))
	p.plot.Draw(margin(draw.New(c)))
	_, err := vgimg.PngCanvas{Canvas: c}.WriteTo(w)
	return err
}

// svg draws the picture for a page.
func (p Plot) svg() ([]byte, error) {
	c := vgsvg.New(width, height)
	p.plot.Draw(margin(draw.New(c)))
	var b bytes.Buffer
	if _, err := c.WriteTo(&b); err != nil {
		return nil, err
	}
	out := b.Bytes()
	if i := bytes.Index(out, []byte("<svg")); i > 0 {
		out = out[i:] // the declaration belongs to a file of its own
	}
	return out, nil
}

func margin(c draw.Canvas) draw.Canvas {
	const m = vg.Length(10)
	return draw.Crop(c, m, -m, m, -m)
}
