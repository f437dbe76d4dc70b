package pki

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Asker asks a metadata server for what is newer than known, and with csr for a new certificate of the process's own identity. Nothing
// newer: a nil statement.
type Asker func(ctx context.Context, known uint64, csr []byte) (*Statement, [][]byte, error)

// Keeper keeps credentials and trust as they should be: it learns of changes, and gets a new certificate after two thirds of the time of
// the old one, or when the authority has a new generation. All fields but Every must be set.
type Keeper struct {
	Credentials *Credentials
	Trust       *Trust
	Ask         Asker
	Logger      *slog.Logger
	Every       time.Duration // how often to ask if nobody says that there is something new; default 30 s

	told atomic.Uint64
	wake chan struct{}

	// Of Run's goroutine: what was asked for, how often. The same key is asked for again, so that answers that are lost make one certificate; but not for
	// ever, since a key may be refused.
	key   ed25519.PrivateKey
	csr   []byte
	tries int
}

const (
	keepEvery   = 30 * time.Second
	keepTimeout = 15 * time.Second
	keepWarn    = 10 * time.Minute // how often to say that it does not work
	keyTries    = 8                // with one key
)

// NewKeeper returns one that does nothing until Run.
func NewKeeper(t *Trust, ask Asker, log *slog.Logger) *Keeper {
	return &Keeper{Credentials: t.creds, Trust: t, Ask: ask, Logger: log, wake: make(chan struct{}, 1)}
}

// Told says that a version exists, as heartbeats do: if it is newer than what is known it is asked for at once.
func (k *Keeper) Told(version uint64) {
	if version <= k.Trust.Version() || version <= k.told.Swap(version) {
		return
	}
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// Run runs until ctx ends.
func (k *Keeper) Run(ctx context.Context) {
	every := k.Every
	if every <= 0 {
		every = keepEvery
	}
	var warned time.Time
	for ctx.Err() == nil {
		wait := every/2 + rand.N(every) // so that not all come at once
		if err := k.Once(ctx); err != nil && ctx.Err() == nil {
			wait = min(wait, every/4+rand.N(every/4))
			k.told.Store(0) // ask again when told again
			if time.Since(warned) > keepWarn && k.due(time.Now()) {
				warned = time.Now()
				k.Logger.Warn("certificate not renewed, trying again", "until", k.Credentials.Identity().NotAfter, "err", err)
			} else {
				k.Logger.Debug("who may speak is not known anew", "err", err)
			}
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-k.wake:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// Once asks once, for a certificate too if that is due.
func (k *Keeper) Once(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, keepTimeout)
	defer cancel()
	s, _, err := k.Ask(ctx, k.Trust.Version(), nil)
	if err == nil && s != nil {
		err = k.Trust.Learn(s)
	}
	if err != nil {
		return err
	}
	if !k.due(time.Now()) {
		k.key = nil
		return nil
	}
	return k.renew(ctx)
}

// due reports whether the certificate should be exchanged.
func (k *Keeper) due(now time.Time) bool {
	l := k.Credentials.current()
	if l.cert == nil || l.cert.Leaf == nil {
		return false
	}
	leaf := l.cert.Leaf
	from := leaf.NotBefore.Add(Skew)
	return now.After(from.Add(leaf.NotAfter.Sub(from)/3*2)) || !l.issuedByNewest()
}

// renew gets a new certificate. The processes of one host share their files: one of them does it, the others find it.
func (k *Keeper) renew(ctx context.Context) error {
	c := k.Credentials
	if c.Dir() != "" {
		unlock, err := LockDir(c.Dir(), false)
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil
		}
		if err != nil {
			return err
		}
		defer unlock()
		if c.Reload(); !k.due(time.Now()) {
			return nil
		}
	}
	if k.key == nil || k.tries >= keyTries {
		var err error
		if k.key, k.csr, err = NewKey(); err != nil {
			return err
		}
		k.tries = 0
	}
	k.tries++
	s, chain, err := k.Ask(ctx, k.Trust.Version(), k.csr)
	if err != nil {
		return fmt.Errorf("renew the certificate: %w", err)
	}
	key := k.key
	k.key = nil
	if s != nil {
		if err := k.Trust.Learn(s); err != nil {
			return err
		}
	}
	l := c.current()
	who, err := CheckChain(chain, key, l.cas)
	if err != nil {
		return fmt.Errorf("renew the certificate: %w", err)
	}
	if own := l.who; who.Cluster != own.Cluster || who.Role != own.Role || who.Node != own.Node {
		return fmt.Errorf("renew the certificate: got one of %s for %s", who, own)
	}
	if c.Dir() != "" {
		if err := WriteCredentials(c.Dir(), EncodeChain(chain), key); err != nil {
			return fmt.Errorf("renew the certificate: %w", err)
		}
		c.Reload()
	} else {
		c.exchange(chain, key, who)
	}
	k.Logger.Info("certificate renewed", "who", who.String(), "serial", who.Serial, "until", who.NotAfter)
	return nil
}

// LockDir keeps others from writing credentials into a cluster directory until unlock, or the end of the process. Without wait it returns
// an error that wraps unix.EWOULDBLOCK if somebody else does.
func LockDir(dir string, wait bool) (unlock func(), err error) {
	path := filepath.Join(dir, ".credentials.lock")
	fd, err := unix.Open(path, unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	how := unix.LOCK_EX
	if !wait {
		how |= unix.LOCK_NB
	}
	for {
		if err = unix.Flock(fd, how); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { unix.Close(fd) }, nil
}
