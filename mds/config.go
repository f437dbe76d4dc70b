package mds

import (
	"context"
	"fmt"

	"varve/internal/fserr"
	"varve/internal/wire/msg"
	"varve/mds/event"
	"varve/mds/settings"
	"varve/mds/state"
)

// setConfig changes a setting of the cluster; an empty value takes it back. Setting what holds already makes no event.
func (l *leadership) setConfig(req *msg.SetConfig) error {
	if err := settings.Check(req.Key, req.Value); err != nil {
		return fmt.Errorf("%w: %w", err, fserr.Invalid)
	}
	var same bool
	servers := 0
	l.s.fsm.view(func(st *state.State) {
		same = st.Config(req.Key) == req.Value
		st.Servers(func(x *state.Server) bool {
			if !x.Retired {
				servers++
			}
			return true
		})
	})
	if same {
		return nil
	}
	if p, ok := state.ParsePolicy(req.Value); req.Key == settings.Replicas && ok && servers > 0 && int(p.Min) > servers {
		return fmt.Errorf("replicas %s: a chunk must have %d, and the number of chunk servers is %d, so no file could be written; add chunk servers first: %w",
			req.Value, p.Min, servers, fserr.Invalid)
	}
	err := l.propose(&event.Event{Body: &event.Event_ConfigSet{ConfigSet: &event.ConfigSet{Key: req.Key, Value: req.Value}}}, "set by an administrator")
	if err == nil {
		l.s.log.Info("setting changed", "key", req.Key, "value", req.Value)
	}
	return err
}

// getConfig lists every known setting, and those that are set and that this version does not know.
func (l *leadership) getConfig(ctx context.Context) (*msg.GetConfigReply, error) {
	r := new(msg.GetConfigReply)
	l.s.fsm.view(func(st *state.State) {
		for _, s := range settings.All() {
			r.Settings = append(r.Settings, &msg.Setting{Key: s.Key, Value: st.Config(s.Key), Unset: s.Default, Help: s.Help})
		}
		st.Settings(func(c state.Setting) bool {
			if s, ok := settings.Find(c.Key); !ok {
				r.Settings = append(r.Settings, &msg.Setting{Key: c.Key, Value: c.Value, Help: "not known to this version"})
			} else if settings.NodeSetting(c.Key) {
				r.Settings = append(r.Settings, &msg.Setting{Key: c.Key, Value: c.Value, Help: s.Help})
			}
			return true
		})
	})
	return r, l.confirmRead(ctx)
}
