package fuse

// choose makes the transport, which takes over fd, the mounted /dev/fuse.
func (s *Session) choose(fd int) error {
	switch s.opts.Transport {
	case Readers:
		s.why = "as asked for"
		return s.useReaders(fd)
	case Dev:
		s.why = "as asked for"
		return s.useDev(fd)
	}
	if s.host == nil {
		s.why = "nothing is begun on reactors"
		return s.useReaders(fd)
	}
	return s.useDev(fd)
}

func (s *Session) useReaders(fd int) error {
	d, err := newDevice(fd, s.opts.Readers, polled, s.log)
	if err != nil {
		return err
	}
	s.via, s.transport, s.threads = d, Readers, len(d.readers)
	return nil
}

func (s *Session) useDev(fd int) error {
	t, err := newLoops(s, fd)
	if err != nil {
		return err
	}
	s.via, s.transport, s.threads = t, Dev, len(t.all)
	return nil
}
