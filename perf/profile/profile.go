package profile

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"

	"varve/perf"

	"go.yaml.in/yaml/v3"
)

// Profile is a load made of phases.
type Profile struct {
	Name   string  `yaml:"name" json:"name"`
	About  string  `yaml:"about" json:"about"`
	Phases []Phase `yaml:"phases" json:"phases"`
}

// Phase is a time in which groups work side by side.
type Phase struct {
	Name   string   `yaml:"name" json:"name"`
	For    Duration `yaml:"for" json:"for_ns,omitempty"`
	Once   bool     `yaml:"once" json:"once,omitempty"` // instead of For
	Groups []Group  `yaml:"groups" json:"groups"`
}

// Group is jobs of one pattern.
type Group struct {
	Name    string       `yaml:"name" json:"name"`
	RW      perf.RW      `yaml:"rw" json:"rw"`
	Mix     int          `yaml:"mix" json:"mix,omitempty"`
	BS      Bytes        `yaml:"bs" json:"bs"`
	QD      int          `yaml:"qd" json:"qd"`
	Jobs    int          `yaml:"jobs" json:"jobs"`
	Size    Bytes        `yaml:"size" json:"size"`
	Fsync   int          `yaml:"fsync" json:"fsync,omitempty"`
	Rate    float64      `yaml:"rate" json:"rate,omitempty"`
	Arrival perf.Arrival `yaml:"arrival" json:"arrival,omitempty"`
	Dist    perf.Dist    `yaml:"dist" json:"dist,omitempty"`
	Direct  bool         `yaml:"direct" json:"direct,omitempty"`
	Verify  bool         `yaml:"verify" json:"verify,omitempty"`
	Seed    uint64       `yaml:"seed" json:"seed,omitempty"`
	// Metadata makes it a group of operations on names, Clone one that makes its files clones of another's. Both have no RW and no sizes.
	Metadata perf.Mix `yaml:"metadata" json:"metadata,omitempty"`
	Files    int      `yaml:"files" json:"files,omitempty"`
	Clone    string   `yaml:"clone" json:"clone,omitempty"`
}

// Bytes is a number of bytes, in YAML such as 4096, 4k, 64m or 2g.
type Bytes int64

// UnmarshalYAML implements yaml.Unmarshaler.
func (b *Bytes) UnmarshalYAML(n *yaml.Node) (err error) {
	*b, err = ParseBytes(n.Value)
	return err
}

// ParseBytes reads a size as fio and dd do: k, m, g and t, with or without "b" or "ib", are powers of 1024.
func ParseBytes(s string) (Bytes, error) {
	lower := strings.ToLower(s)
	digits := strings.TrimRight(lower, "kmgtib")
	unit := strings.TrimSuffix(strings.TrimSuffix(lower[len(digits):], "b"), "i")
	shift, ok := map[string]int{"": 0, "k": 10, "m": 20, "g": 30, "t": 40}[unit]
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || !ok || n < 1 || n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("%q: want a number of bytes such as 4096, 4k or 2g", s)
	}
	return Bytes(n << shift), nil
}

// Duration is a time, in YAML such as 30s or 5m.
type Duration time.Duration

// UnmarshalYAML implements yaml.Unmarshaler.
func (d *Duration) UnmarshalYAML(n *yaml.Node) error {
	v, err := time.ParseDuration(n.Value)
	*d = Duration(v)
	return err
}

var nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9-]{0,63}$`)

const (
	maxPhases = 100
	maxGroups = 32
)

// Parse reads a profile. Its errors name every fault with its place.
func Parse(text []byte) (*Profile, error) {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	p := new(Profile)
	if err := dec.Decode(p); err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("nothing in it")
		}
		return nil, fmt.Errorf("profile: %w", err)
	}
	return p, p.Validate()
}

// Validate reports every fault at once.
func (p *Profile) Validate() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf("profile "+format, args...)) }
	if !nameForm.MatchString(p.Name) {
		fault("name %q: want letters, digits and -", p.Name)
	}
	if len(p.Phases) == 0 || len(p.Phases) > maxPhases {
		fault("%s: %d phases, want 1 to %d", p.Name, len(p.Phases), maxPhases)
	}
	phases, made := map[string]bool{}, map[string]bool{} // made: groups that have files
	for i, ph := range p.Phases {
		if !nameForm.MatchString(ph.Name) || phases[ph.Name] {
			fault("%s: phase %d: name %q: want letters, digits and -, each name once", p.Name, i+1, ph.Name)
		}
		phases[ph.Name] = true
		if ph.For <= 0 && !ph.Once || ph.For != 0 && ph.Once {
			fault("%s: phase %s: for %v, once %v: want a time above 0, or once", p.Name, ph.Name, time.Duration(ph.For), ph.Once)
		}
		if len(ph.Groups) == 0 || len(ph.Groups) > maxGroups {
			fault("%s: phase %s: %d groups, want 1 to %d", p.Name, ph.Name, len(ph.Groups), maxGroups)
		}
		groups := map[string]bool{}
		for _, g := range ph.Groups {
			if !nameForm.MatchString(g.Name) || groups[g.Name] {
				fault("%s: phase %s: group %q: want letters, digits and -, each name once", p.Name, ph.Name, g.Name)
			}
			groups[g.Name] = true
			if g.Clone != "" && !made[g.Clone] {
				fault("%s: phase %s: group %s: clone of %q, which has no files in an earlier phase", p.Name, ph.Name, g.Name, g.Clone)
			}
			if err := g.options("mount:.", time.Duration(ph.For)).Validate(); err != nil {
				fault("%s: phase %s: group %s: %w", p.Name, ph.Name, g.Name, err)
			}
		}
		for _, g := range ph.Groups {
			made[g.Name] = made[g.Name] || g.Metadata == ""
		}
	}
	return errors.Join(faults...)
}

// options are those of the group's run.
func (g *Group) options(target string, d time.Duration) perf.Options {
	return perf.Options{
		Target: target, Label: g.Name, RW: g.RW, ReadPercent: g.Mix, BlockSize: int64(g.BS), QD: g.QD, Jobs: g.Jobs, Size: int64(g.Size), Duration: d,
		Rate: g.Rate, Arrival: g.Arrival, Dist: g.Dist, FsyncEvery: g.Fsync, Verify: g.Verify, Seed: g.Seed, Direct: g.Direct, Metadata: g.Metadata, Files: g.Files, CloneOf: g.Clone,
	}
}

// Scale returns the profile with all times and sizes multiplied, a size never below 16 blocks, and never fewer files than 4 for each operation under way.
func (p *Profile) Scale(times, sizes float64) *Profile {
	out := *p
	out.Phases = nil
	for _, ph := range p.Phases {
		if !ph.Once {
			ph.For = max(Duration(float64(ph.For)*times), Duration(time.Millisecond))
		}
		groups := ph.Groups
		ph.Groups = nil
		for _, g := range groups {
			switch {
			case g.Metadata != "":
				g.Files = max(int(float64(g.Files)*sizes), 4*max(g.QD, 1))
			case g.Clone == "":
				bs := max(g.BS, 4096)
				g.Size = max(Bytes(float64(g.Size)*sizes)/bs*bs, 16*bs*Bytes(max(g.QD, 1)))
			}
			ph.Groups = append(ph.Groups, g)
		}
		out.Phases = append(out.Phases, ph)
	}
	return &out
}

//go:embed profiles/*.yaml
var builtin embed.FS

// Builtin returns the profiles that come with varve, by name.
func Builtin() ([]*Profile, error) {
	files, err := fs.Glob(builtin, "profiles/*.yaml")
	if err != nil {
		return nil, err
	}
	var out []*Profile
	for _, f := range files {
		text, err := builtin.ReadFile(f)
		if err != nil {
			return nil, err
		}
		p, err := Parse(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
		out = append(out, p)
	}
	return out, nil
}

// Text returns the YAML of a profile that comes with varve, comments included.
func Text(name string) ([]byte, error) {
	text, err := builtin.ReadFile("profiles/" + name + ".yaml")
	if err != nil {
		return nil, fmt.Errorf("no profile %q comes with varve; see perf list", name)
	}
	return text, nil
}

// Find returns the profile of that name that comes with varve, or the one in that file: YAML, or a job file of fio if its name ends in .fio.
func Find(nameOrFile string) (*Profile, error) {
	if nameForm.MatchString(nameOrFile) {
		if text, err := Text(nameOrFile); err == nil {
			return Parse(text)
		}
	}
	text, err := os.ReadFile(nameOrFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("profile %s: none of that name comes with varve (see perf list), and there is no such file", nameOrFile)
	}
	if err != nil {
		return nil, err
	}
	var p *Profile
	if strings.HasSuffix(nameOrFile, ".fio") {
		p, err = ParseFio(strings.TrimSuffix(path.Base(nameOrFile), ".fio"), text)
	} else {
		p, err = Parse(text)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", nameOrFile, err)
	}
	return p, nil
}
