package mds

import (
	"slices"

	"varve/mds/plan"
	"varve/mds/settings"
	"varve/mds/state"
)

// withMargin takes from what servers have free the part of their disks that no new chunk may use (setting mds.alloc.fill_margin). What
// files have already goes on to be written, and repair may use it.
func withMargin(st *state.State, views []plan.ServerView) []plan.ServerView {
	percent := marginPercent(st)
	for i := range views {
		v := &views[i]
		v.Free -= min(v.Free, v.Total/100*percent)
	}
	return views
}

// marginPercent is how much of a disk no new chunk may use.
func marginPercent(st *state.State) uint64 {
	percent, err := settings.Percent(st.Config(settings.FillMargin))
	if err != nil || st.Config(settings.FillMargin) == "" {
		percent = settings.FillMarginPercent
	}
	return uint64(percent)
}

// space is what df tells: how much files with norm replicas may take up in all, and how much more there is room for. Servers
// that are away have no room; what they hold counts, as long as they are members.
func (l *leadership) space(st *state.State, norm int) (total, free uint64) {
	var disks, room []uint64
	for _, v := range withMargin(st, l.views(st)) {
		disks = append(disks, v.Total)
		if v.Live && !v.Draining && !v.Standby {
			room = append(room, v.Free)
		}
	}
	return mirrored(disks, norm), mirrored(room, norm)
}

// mirrored is how much can be stored n times over, each time on another of the disks: the most x with sum(min(disk, x)) >= n*x. A disk
// that is larger than all that is stored can hold one copy of it, and no more.
func mirrored(disks []uint64, n int) uint64 {
	if n <= 0 || len(disks) < n {
		return 0
	}
	disks = slices.Clone(disks)
	slices.Sort(disks)
	slices.Reverse(disks)
	var rest uint64 // of the disks that are not larger than x
	for _, d := range disks {
		rest += d
	}
	// The k largest disks hold one whole copy each, the others share the remaining n-k copies.
	best := rest / uint64(n)
	for k := 0; k < n-1; k++ {
		if disks[k] <= best {
			break
		}
		rest -= disks[k]
		best = rest / uint64(n-k-1)
	}
	return best
}
