package event

// Kinds lists every kind of event, as Kind says them, in the order of event.proto.
func Kinds() []string {
	var out []string
	fields := new(Event).ProtoReflect().Descriptor().Oneofs().ByName("body").Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		ev := new(Event)
		m := ev.ProtoReflect()
		m.Set(f, m.NewField(f))
		out = append(out, Kind(ev))
	}
	return out
}
