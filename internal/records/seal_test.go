package records

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"testing"
)

// material is keying material that depends on x.
func material(x byte) []byte {
	b := make([]byte, MaterialSize)
	for i := range b {
		b[i] = x + byte(i)*3
	}
	return b
}

// pairs are the two ends of a connection.
func pairs(t testing.TB, x byte) (client, server Pair) {
	t.Helper()
	client, err := NewPair(material(x), true)
	if err == nil {
		server, err = NewPair(material(x), false)
	}
	if err != nil {
		t.Fatal(err)
	}
	return client, server
}

// pattern is n bytes that depend on seed.
func pattern(n, seed int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8 + seed*13)
	}
	return b
}

func seal(t testing.TB, s *Sealer, p []byte) []byte {
	t.Helper()
	b, err := s.Seal(make([]byte, 0, sealedSize(len(p))), p)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestRecords: what is sealed is opened, elsewhere or where it is, in either direction, whatever its length.
func TestRecords(t *testing.T) {
	client, server := pairs(t, 1)
	for i, n := range []int{1, 2, 15, 16, 17, 48, 4095, 4096, 4097, MaxContent - 1, MaxContent, MaxContent + 1, 3*MaxContent + 5} {
		for _, ends := range [][2]Pair{{client, server}, {server, client}} {
			p := pattern(n, i)
			b := seal(t, ends[0].out, p)
			if len(b) != sealedSize(n) {
				t.Fatalf("%d bytes sealed to %d, want %d", n, len(b), sealedSize(n))
			}
			if n > 16 && bytes.Contains(b, p[:16]) {
				t.Fatal("the content is to be seen")
			}
			var got []byte
			for len(b) > 0 {
				m := contentOf(b)
				rec := b[:m+overhead]
				to := make([]byte, m)
				if i%2 == 0 {
					to = rec[headerSize : headerSize+m]
				}
				if err := ends[1].in.Open(to, rec); err != nil {
					t.Fatalf("%d bytes: %v", n, err)
				}
				got, b = append(got, to...), b[len(rec):]
			}
			if !bytes.Equal(got, p) {
				t.Fatalf("%d bytes came back different", n)
			}
		}
	}
}

// TestFormat: records are what format.go says, made here with nothing of this package.
func TestFormat(t *testing.T) {
	client, _ := pairs(t, 9)
	client.out.each = 2 // a new key for the third
	secret := material(9)[:32]
	for number := range 5 {
		if number > 0 && number%2 == 0 {
			secret, _ = hkdf.Expand(sha256.New, secret, "varve record next", 32)
		}
		k, err := hkdf.Expand(sha256.New, secret, "varve record key", 28)
		if err != nil {
			t.Fatal(err)
		}
		block, err := aes.NewCipher(k[:16])
		if err != nil {
			t.Fatal(err)
		}
		gcm, err := cipher.NewGCM(block)
		if err != nil {
			t.Fatal(err)
		}
		nonce := slices.Clone(k[16:])
		nonce[11] ^= byte(number)
		p := pattern(300, number)
		head := []byte{1, 300 & 255, 300 >> 8, 0}
		want := gcm.Seal(slices.Clone(head), nonce, p, head)
		if got := seal(t, client.out, p); !bytes.Equal(got, want) {
			t.Fatalf("record %d is %x, want %x", number, got[:20], want[:20])
		}
	}
	// For ever the same.
	client, _ = pairs(t, 0)
	if got, want := hex.EncodeToString(seal(t, client.out, []byte("varve"))), golden; got != want {
		t.Errorf("record is %s, want %s", got, want)
	}
}

// TestKeys: keys change with the secrets, in step; what was sealed with one is not opened with the next; material is wiped.
func TestKeys(t *testing.T) {
	m := material(3)
	if _, err := NewPair(m[1:], true); err == nil {
		t.Error("material that is too short was taken")
	}
	if _, err := NewPair(m, true); err != nil || !bytes.Equal(m, make([]byte, MaterialSize)) {
		t.Errorf("material is %x afterwards (%v), want it wiped", m, err)
	}
	client, server := pairs(t, 3)
	client.out.each, server.in.each = 3, 3
	secrets := map[string]bool{}
	to := make([]byte, 10)
	for i := range 20 {
		b := seal(t, client.out, pattern(10, i))
		secrets[string(client.out.secret)] = true
		if err := server.in.Open(to, b); err != nil || !bytes.Equal(to, pattern(10, i)) {
			t.Fatalf("record %d: %v", i, err)
		}
	}
	if len(secrets) != 7 {
		t.Errorf("%d secrets for 20 records, 3 each", len(secrets))
	}
	// An end that does not change its key is not understood.
	client, server = pairs(t, 3)
	client.out.each, server.in.each = 1<<20, 3
	for i := range 4 {
		err := server.in.Open(to, seal(t, client.out, pattern(10, i)))
		if want := i == 3; errors.Is(err, ErrForged) != want {
			t.Errorf("record %d: %v", i, err)
		}
	}
	if keyRecords*MaxContent/16 > 1<<32 {
		t.Error("a key encrypts more blocks than format.go says")
	}
}

// TestForged: whatever somebody does to a record, it is refused with one error, nothing of it is given, and neither is what follows.
func TestForged(t *testing.T) {
	const n = 100
	at := func(i int) func([][]byte, [][]byte, []byte) []byte {
		return func(r, _ [][]byte, _ []byte) []byte {
			r[1][i] ^= 0x40
			return r[1]
		}
	}
	forgeries := map[string]func(records, others [][]byte, back []byte) []byte{
		"none":                nil,
		"repeated":            func(r, _ [][]byte, _ []byte) []byte { return r[0] },
		"left out":            func(r, _ [][]byte, _ []byte) []byte { return r[2] },
		"other connection":    func(_, o [][]byte, _ []byte) []byte { return o[1] },
		"other direction":     func(_, _ [][]byte, back []byte) []byte { return back },
		"cut":                 func(r, _ [][]byte, _ []byte) []byte { return r[1][:len(r[1])-1] },
		"cut, header says so": func(r, _ [][]byte, _ []byte) []byte { putHeader(r[1], n-1); return r[1][:len(r[1])-1] },
		"longer":              func(r, _ [][]byte, _ []byte) []byte { putHeader(r[1], n+1); return append(r[1], 0) },
		"tag only":            func(r, _ [][]byte, _ []byte) []byte { putHeader(r[1], 1); return r[1][:overhead] },
		"header of another": func(r, _ [][]byte, _ []byte) []byte {
			return append(slices.Clone(r[3][:headerSize]), r[1][headerSize:]...)
		},
		"tag of another":       func(r, _ [][]byte, _ []byte) []byte { return append(slices.Clone(r[1][:n]), r[0][n:]...) },
		"head of one, rest of": func(r, _ [][]byte, _ []byte) []byte { return append(slices.Clone(r[1][:n/2]), r[2][n/2:]...) },
		"zeros":                func(r, _ [][]byte, _ []byte) []byte { clear(r[1][headerSize:]); return r[1] },
		"swapped blocks": func(r, _ [][]byte, _ []byte) []byte {
			a, b := r[1][headerSize:headerSize+16], r[1][headerSize+16:headerSize+32]
			for i := range a {
				a[i], b[i] = b[i], a[i]
			}
			return r[1]
		},
	}
	for i := range n + overhead {
		forgeries[fmt.Sprintf("bit in byte %d", i)] = at(i)
	}
	for name, forge := range forgeries {
		client, server := pairs(t, 5)
		other, _ := pairs(t, 6)
		var records, others [][]byte
		for i := range 3 {
			records = append(records, seal(t, client.out, pattern(n, i)))
			others = append(others, seal(t, other.out, pattern(n, i)))
		}
		records = append(records, seal(t, client.out, pattern(n+1, 0)))
		seal(t, server.out, pattern(n, 0))
		back := seal(t, server.out, pattern(n, 1))
		genuine := slices.Clone(records[1])
		to := make([]byte, 2*n)
		if err := server.in.Open(to, records[0]); err != nil {
			t.Fatal(err)
		}
		clear(to)
		if forge == nil {
			if err := server.in.Open(to, records[1]); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			continue
		}
		if err := server.in.Open(to, forge(records, others, back)); err != ErrForged {
			t.Errorf("%s: %v", name, err)
		}
		if !bytes.Equal(to, make([]byte, len(to))) {
			t.Errorf("%s: something of it was given", name)
		}
		if err := server.in.Open(to, genuine); err != ErrForged {
			t.Errorf("%s, and then the true one: %v", name, err)
		}
	}
}

// FuzzOpener: nothing but the next record is opened.
func FuzzOpener(f *testing.F) {
	client, _ := pairs(f, 5)
	f.Add(seal(f, client.out, pattern(20, 0)))
	f.Add(seal(f, client.out, pattern(20, 0)))
	f.Add([]byte{1, 1, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		client, server := pairs(t, 5)
		if len(b) < overhead || contentOf(b) != len(b)-overhead {
			return
		}
		genuine := seal(t, client.out, pattern(20, 0))
		to := make([]byte, len(b))
		if err := server.in.Open(to, slices.Clone(b)); (err == nil) != bytes.Equal(b, genuine) {
			t.Fatalf("%d bytes: %v", len(b), err)
		}
	})
}

// TestNoAllocation: sealing and opening allocate nothing.
func TestNoAllocation(t *testing.T) {
	client, server := pairs(t, 1)
	p, b, to := pattern(4096, 0), make([]byte, 0, sealedSize(4096)), make([]byte, 4096)
	if n := testing.AllocsPerRun(100, func() {
		sealed, err := client.out.Seal(b, p)
		if err == nil {
			err = server.in.Open(to, sealed)
		}
		if err != nil {
			t.Error(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations for a record", n)
	}
}

// BenchmarkRecords is one record, sealed and opened.
func BenchmarkRecords(b *testing.B) {
	for _, size := range []int{112, 4096, MaxContent} {
		client, server := pairs(b, 1)
		p, to := pattern(size, 0), make([]byte, size)
		buf := make([]byte, 0, sealedSize(size))
		b.Run(fmt.Sprintf("size=%d", size), func(b *testing.B) {
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				sealed, err := client.out.Seal(buf, p)
				if err == nil {
					err = server.in.Open(to, sealed)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// golden is the first record of who connected, with the content "varve", of the keying material 0, 3, 6 and so on.
const golden = "01050000d64d453ffc2360cf12f6901a2153f6f53b95da8b06"
