package pki

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// pendingSuffix is that of a key whose certificate may not be in its place yet.
const pendingSuffix = ".new"

// Credentials makes a key and a certificate that are in no file: for tests, and clusters inside one process.
func (a *Authority) Credentials(who Identity, now time.Time, ttl time.Duration) (*Credentials, error) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	chain, _, err := a.IssueNow(pub, who, now, ttl)
	if err != nil {
		return nil, err
	}
	cas, err := ParseBundle(a.Bundle())
	if err != nil {
		return nil, err
	}
	c := NewCredentials(tls.Certificate{Certificate: chain, PrivateKey: key}, nil, a.cluster)
	c.trust(cas)
	return c, nil
}

// CredentialFiles are the names of all files that a cluster directory may have of credentials: the bundle last.
func CredentialFiles() []string {
	var all []string
	for _, r := range []Role{RoleNode, RoleAdmin, RoleReader} {
		all = append(all, r.String()+keySuffix+pendingSuffix, r.String()+certSuffix, r.String()+keySuffix)
	}
	return append(all, trustFile, BundleFile)
}

// WriteCredentials puts a certificate (PEM, cross certificates behind it) and its key into a cluster directory, for the role that it
// names. It may be killed at any moment: what is read then is the old pair or the new one. Who calls it holds off others that would.
func WriteCredentials(dir string, chainPEM []byte, key ed25519.PrivateKey) error {
	keyPEM, err := EncodeKey(key)
	if err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(chainPEM, keyPEM)
	if err != nil {
		return fmt.Errorf("write credentials: %w", err)
	}
	who, err := IdentityOf(pair.Leaf)
	if err != nil {
		return fmt.Errorf("write credentials: %w", err)
	}
	base := filepath.Join(dir, who.Role.String())
	if err := settleKey(base); err != nil {
		return err
	}
	if err := WriteFile(base+keySuffix+pendingSuffix, keyPEM, 0o600); err != nil {
		return err
	}
	if err := WriteFile(base+certSuffix, chainPEM, 0o644); err != nil {
		return err
	}
	return settleKey(base)
}

// WriteBundle puts the cluster's authority certificates, PEM, into a cluster directory.
func WriteBundle(dir string, bundle []byte) error {
	if _, err := ParseBundle(bundle); err != nil {
		return fmt.Errorf("write the bundle: %w", err)
	}
	return WriteFile(filepath.Join(dir, BundleFile), bundle, 0o644)
}

// settleKey puts a pending key into its place if its certificate is in place.
func settleKey(base string) error {
	pending, err := readFile(base + keySuffix + pendingSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	cert, err := readFile(base + certSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := tls.X509KeyPair(cert, pending); err != nil {
		return nil // the certificate in place is that of the older key
	}
	if err := os.Rename(base+keySuffix+pendingSuffix, base+keySuffix); err != nil {
		return err
	}
	return syncDir(filepath.Dir(base))
}

// readKey returns the key that belongs to a certificate: that in place, or the pending one.
func readKey(base string, cert []byte) ([]byte, error) {
	key, err := readFile(base + keySuffix)
	if err == nil {
		if _, perr := tls.X509KeyPair(cert, key); perr == nil {
			return key, nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if pending, perr := readFile(base + keySuffix + pendingSuffix); perr == nil {
		return pending, nil
	}
	return key, err
}

// WriteFile writes a file with its mode so that it is there in full, or as it was, also after a loss of power.
func WriteFile(path string, b []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	_, werr := f.Write(b)
	if err := errors.Join(werr, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		os.Remove(f.Name())
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
