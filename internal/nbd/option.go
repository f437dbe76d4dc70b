package nbd

import "fmt"

// Wish is the data of OptInfo and OptGo: an export, and what the client wants to be told of it beside what it must be told.
//
//	0 4 length of the name   name   2 number of infos   2 each
type Wish struct {
	Export string
	Infos  []Info
}

// Wants says that the client asked for an information.
func (w *Wish) Wants(i Info) bool {
	for _, x := range w.Infos {
		if x == i {
			return true
		}
	}
	return false
}

// DecodeWish reads the data of OptInfo and OptGo. It keeps nothing of p.
func DecodeWish(p []byte) (Wish, error) {
	name, p, err := cutName(p)
	if err != nil {
		return Wish{}, err
	}
	if len(p) < 2 || len(p)-2 != 2*int(be.Uint16(p)) || len(p) > 2+2*maxItems {
		return Wish{}, fmt.Errorf("%w: %d bytes follow the name of an export, want a number up to %d and as many infos", ErrProtocol, len(p), maxItems)
	}
	w := Wish{Export: name}
	for p = p[2:]; len(p) > 0; p = p[2:] {
		w.Infos = append(w.Infos, Info(be.Uint16(p)))
	}
	return w, nil
}

// Query is the data of OptListMetaContext and OptSetMetaContext.
//
//	0 4 length of the name   name   4 number of queries   each: 4 length, query
type Query struct {
	Export  string
	Queries []string
}

// DecodeQuery reads the data of OptListMetaContext and OptSetMetaContext. It keeps nothing of p.
func DecodeQuery(p []byte) (Query, error) {
	name, p, err := cutName(p)
	if err != nil {
		return Query{}, err
	}
	if len(p) < 4 || be.Uint32(p) > maxItems {
		return Query{}, fmt.Errorf("%w: %d bytes follow the name of an export, want a number of queries up to %d", ErrProtocol, len(p), maxItems)
	}
	n := be.Uint32(p)
	q := Query{Export: name}
	p = p[4:]
	for range n {
		var s string
		if s, p, err = cutName(p); err != nil {
			return Query{}, err
		}
		q.Queries = append(q.Queries, s)
	}
	if len(p) > 0 {
		return Query{}, fmt.Errorf("%w: %d bytes follow the last query", ErrProtocol, len(p))
	}
	return q, nil
}

// cutName takes a string with its length before it off p.
func cutName(p []byte) (string, []byte, error) {
	if len(p) < 4 {
		return "", nil, fmt.Errorf("%w: an option ends after %d bytes of the length of a name", ErrProtocol, len(p))
	}
	n, p := be.Uint32(p), p[4:]
	if n > MaxName || int(n) > len(p) {
		return "", nil, fmt.Errorf("%w: a name of %d bytes where %d follow, at most %d are taken", ErrProtocol, n, len(p), MaxName)
	}
	return string(p[:n]), p[n:], nil
}

// OptionHead is the head of an option.
type OptionHead struct {
	Option Option
	Length uint32 // of the data
}

// DecodeOption reads the OptionSize bytes of p.
func DecodeOption(p []byte) (OptionHead, error) {
	if m := be.Uint64(p); m != OptionMagic {
		return OptionHead{}, fmt.Errorf("%w: an option begins with %#x, want %#x", ErrProtocol, m, uint64(OptionMagic))
	}
	return OptionHead{Option(be.Uint32(p[8:])), be.Uint32(p[12:])}, nil
}

// AppendGreeting adds what a server says first.
func AppendGreeting(b []byte) []byte {
	b = be.AppendUint64(b, Magic)
	b = be.AppendUint64(b, OptionMagic)
	return be.AppendUint16(b, FixedNewstyle|NoZeroes)
}

// AppendExport adds the answer to OptExportName, which has no head.
func AppendExport(b []byte, e *Export, zeroes bool) []byte {
	b = be.AppendUint64(b, e.Size)
	b = be.AppendUint16(b, uint16(e.Flags))
	if zeroes {
		b = append(b, make([]byte, ZeroesSize)...)
	}
	return b
}

// AppendInfo adds an AnsInfo about an export.
func AppendInfo(b []byte, o Option, i Info, e *Export, text string) []byte {
	p := be.AppendUint16(nil, uint16(i))
	switch i {
	case InfoExport:
		p = be.AppendUint16(be.AppendUint64(p, e.Size), uint16(e.Flags))
	case InfoBlockSize:
		p = be.AppendUint32(be.AppendUint32(be.AppendUint32(p, e.Least), e.Preferred), e.Most)
	default:
		p = append(p, text...)
	}
	return AppendAnswer(b, o, AnsInfo, p)
}

// AppendServer adds an AnsServer, one line of the answer to OptList.
func AppendServer(b []byte, name string) []byte {
	return AppendAnswer(b, OptList, AnsServer, append(be.AppendUint32(nil, uint32(len(name))), name...))
}

// AppendContext adds an AnsMetaContext.
func AppendContext(b []byte, o Option, id uint32, name string) []byte {
	return AppendAnswer(b, o, AnsMetaContext, append(be.AppendUint32(nil, id), name...))
}

// AppendErrorChunk adds a whole structured reply that tells of an error.
func AppendErrorChunk(b []byte, e Errno, cookie uint64) []byte {
	b = AppendChunk(b, ReplyDone, ChunkError, cookie, 6)
	b = be.AppendUint32(b, uint32(e))
	return be.AppendUint16(b, 0)
}

// AppendData adds the head of a chunk of n bytes of data from off, the last of its reply.
func AppendData(b []byte, cookie uint64, off uint64, n int) []byte {
	b = AppendChunk(b, ReplyDone, ChunkData, cookie, 8+n)
	return be.AppendUint64(b, off)
}

// Extent is a part of a block status.
type Extent struct {
	Length uint32
	Flags  uint32
}

// AppendStatus adds a whole reply with the status of the blocks from the request's offset on.
func AppendStatus(b []byte, cookie uint64, context uint32, all []Extent) []byte {
	b = AppendChunk(b, ReplyDone, ChunkBlockStatus, cookie, 4+8*len(all))
	b = be.AppendUint32(b, context)
	for _, e := range all {
		b = be.AppendUint32(be.AppendUint32(b, e.Length), e.Flags)
	}
	return b
}
