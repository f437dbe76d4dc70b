package raftlog

import "fmt"

// Stable returns when the entries up to index are on stable media, as far as they are in the log.
func (l *Log) Stable(index uint64) error {
	l.mu.RLock()
	done := min(index, l.stored) <= l.onDisk
	l.mu.RUnlock()
	if done {
		return l.failed()
	}
	return l.syncFor(index)
}

// AllStable is Stable for everything that was stored before.
func (l *Log) AllStable() error {
	l.mu.RLock()
	index := l.stored
	l.mu.RUnlock()
	return l.Stable(index)
}

// sync returns when everything that was written before is on stable media.
func (l *Log) sync() error {
	l.mu.RLock()
	end := l.end
	l.mu.RUnlock()
	if l.stable.Load() >= end {
		return l.failed()
	}
	l.syncMu.Lock()
	defer l.syncMu.Unlock()
	if l.stable.Load() >= end {
		return l.failed()
	}
	return l.syncLocked()
}

func (l *Log) syncFor(index uint64) error {
	l.syncMu.Lock()
	defer l.syncMu.Unlock()
	l.mu.RLock()
	done := min(index, l.stored) <= l.onDisk
	l.mu.RUnlock()
	if done {
		return l.failed()
	}
	return l.syncLocked()
}

// syncLocked syncs the last segment; those before are on stable media. The caller holds syncMu.
func (l *Log) syncLocked() error {
	if err := l.failed(); err != nil {
		return err
	}
	l.mu.RLock()
	s, end, upTo, stored, cuts := l.active(), l.end, l.active().end, l.stored, l.cuts
	l.mu.RUnlock()
	if err := s.file.Sync(); err != nil {
		return l.poison(fmt.Errorf("%s: sync: %w", s.path, err))
	}
	s.stable.Store(upTo)
	l.stable.Store(end)
	l.mu.Lock()
	if cuts == l.cuts { // else stored may count entries that others have replaced since
		l.onDisk = max(l.onDisk, stored)
	}
	l.mu.Unlock()
	return nil
}

// syncLazily syncs what StoreLogs left to it.
func (l *Log) syncLazily() {
	defer l.wg.Done()
	for {
		select {
		case <-l.kick:
		case <-l.stop:
			return
		}
		if l.sync() != nil {
			return // poison has told
		}
	}
}
