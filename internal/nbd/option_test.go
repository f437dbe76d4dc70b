package nbd

import (
	"bytes"
	"errors"
	"slices"
	"testing"
)

// FuzzOption: whatever a client sends, options are decoded or refused, and what was decoded says what the bytes said.
func FuzzOption(f *testing.F) {
	wish := append(be.AppendUint32(nil, 4), "disk"...)
	wish = be.AppendUint16(be.AppendUint16(wish, 1), uint16(InfoBlockSize))
	query := append(be.AppendUint32(nil, 0), 0, 0, 0, 1)
	query = append(be.AppendUint32(query, uint32(len(BaseAllocation))), BaseAllocation...)
	for _, p := range [][]byte{nil, wish, query, {255, 255, 255, 255}, {0, 0, 0, 0, 255, 255, 255, 255}} {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		if w, err := DecodeWish(p); err == nil {
			b := append(be.AppendUint32(nil, uint32(len(w.Export))), w.Export...)
			b = be.AppendUint16(b, uint16(len(w.Infos)))
			for _, i := range w.Infos {
				b = be.AppendUint16(b, uint16(i))
			}
			if !bytes.Equal(b, p) {
				t.Errorf("%x was read as %+v", p, w)
			}
		} else if !errors.Is(err, ErrProtocol) {
			t.Error(err)
		}
		if q, err := DecodeQuery(p); err == nil {
			b := append(be.AppendUint32(nil, uint32(len(q.Export))), q.Export...)
			b = be.AppendUint32(b, uint32(len(q.Queries)))
			for _, s := range q.Queries {
				b = append(be.AppendUint32(b, uint32(len(s))), s...)
			}
			if !bytes.Equal(b, p) {
				t.Errorf("%x was read as %+v", p, q)
			}
		} else if !errors.Is(err, ErrProtocol) {
			t.Error(err)
		}
		if len(p) >= OptionSize {
			if h, err := DecodeOption(p); err == nil && !bytes.Equal(AppendOption(nil, h.Option, nil)[:12], p[:12]) {
				t.Errorf("%x was read as %+v", p, h)
			}
		}
	})
}

func TestDecodeOptions(t *testing.T) {
	w, err := DecodeWish([]byte("\x00\x00\x00\x01a\x00\x02\x00\x03\x00\x01"))
	if err != nil || w.Export != "a" || !slices.Equal(w.Infos, []Info{InfoBlockSize, InfoName}) || !w.Wants(InfoName) || w.Wants(InfoDescribe) {
		t.Errorf("%+v, %v", w, err)
	}
	for name, p := range map[string]string{
		"nothing": "", "a name that is cut": "\x00\x00\x00\x05ab", "a number that is cut": "\x00\x00\x00\x01a\x00", "too few infos": "\x00\x00\x00\x00\x00\x02\x00\x01",
		"too many": "\x00\x00\x00\x00\x00\x00\x00\x01", "a long name": "\x00\x00\x10\x01" + string(make([]byte, 5000)),
	} {
		if w, err := DecodeWish([]byte(p)); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %+v, %v", name, w, err)
		}
	}
	for name, p := range map[string]string{
		"no queries": "\x00\x00\x00\x00", "too many": "\x00\x00\x00\x00\x00\x00\x02\x00", "rest": "\x00\x00\x00\x00\x00\x00\x00\x00x",
		"a query that is cut": "\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x02x",
	} {
		if q, err := DecodeQuery([]byte(p)); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %+v, %v", name, q, err)
		}
	}
}
