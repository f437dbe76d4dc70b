package plan

import (
	"strings"

	"varve/mds/state"
)

// levels are the failure domains, each inside the next.
const levels = int(state.Room) + 1

// place is where a server is: at each level the number of its failure domain.
type place [levels]uint32

// RackParts splits what a chunk server says of its rack: RACK, ROW/RACK or ROOM/ROW/RACK. A part that is not given is "".
func RackParts(rack string) (room, row, name string) {
	parts := strings.SplitN(rack, "/", 3)
	switch len(parts) {
	case 1:
		return "", "", parts[0]
	case 2:
		return "", parts[0], parts[1]
	}
	return parts[0], parts[1], parts[2]
}

// within returns the name of the failure domain that the server is in. Servers that do not say where they are, are together.
func (v *ServerView) within(level state.Domain) string {
	switch level {
	case state.Disk:
		return v.ID.String()
	case state.Host:
		return v.Host
	case state.Rack:
		return v.Rack
	}
	room, row, _ := RackParts(v.Rack)
	if level == state.Row {
		return room + "/" + row
	}
	return room
}

// atlas gives the failure domains numbers.
type atlas [levels]map[string]uint32

func newAtlas() *atlas {
	a := new(atlas)
	for i := range a {
		a[i] = make(map[string]uint32)
	}
	return a
}

func (a *atlas) find(v *ServerView) (p place) {
	for level := int(state.Disk); level < levels; level++ {
		name := v.within(state.Domain(level))
		n, ok := a[level][name]
		if !ok {
			n = uint32(len(a[level]))
			a[level][name] = n
		}
		p[level] = n
	}
	return p
}

// shares reports whether two places are in one failure domain of the level.
func (p *place) shares(o *place, level state.Domain) bool { return p[level] == o[level] }
