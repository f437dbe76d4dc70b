package sim

import (
	"encoding/binary"
	"fmt"
	"strings"

	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// names of the frames that a trace tells of.
var names = map[wire.Type]string{
	wire.Hello: "hello", wire.Meta: "meta", wire.OpenSession: "open session", wire.RenewSession: "renew session", wire.CloseSession: "close session",
	wire.RegisterServer: "register", wire.ChunkReport: "chunk report", wire.Heartbeat: "heartbeat", wire.Status: "status", wire.Members: "members",
	wire.Callback: "callback", wire.ChunkCreate: "create", wire.ChunkDelete: "delete", wire.ChunkAdopt: "adopt", wire.ChunkAccept: "accept",
	wire.ChunkJoin: "join", wire.ChunkRebuild: "rebuild", wire.ChunkPromote: "promote", wire.ChunkPunch: "chunk punch", wire.Fence: "fence",
	wire.Read: "read", wire.Write: "write", wire.Punch: "punch", wire.Flush: "flush", wire.ChunkTable: "table", wire.ChunkSeek: "seek", wire.ChunkList: "list",
}

// describe names a frame.
func describe(b []byte) string {
	if len(b) < wire.HeaderSize || binary.LittleEndian.Uint32(b) != frameMagic {
		return fmt.Sprintf("%d bytes of raft", len(b))
	}
	t := wire.Type(binary.LittleEndian.Uint16(b[4:]))
	name := names[t]
	if name == "" {
		name = fmt.Sprintf("type %d", t)
	}
	if b[7] != 0 {
		name = "answer to " + name
	} else if t == wire.Meta {
		r := new(msg.MetaRequest)
		if err := r.UnmarshalVT(b[wire.HeaderSize : wire.HeaderSize+int(binary.LittleEndian.Uint32(b[28:]))]); err == nil {
			name += " " + strings.TrimPrefix(fmt.Sprintf("%T", r.Op), "*msg.MetaRequest_")
		}
	}
	return fmt.Sprintf("%s %d", name, binary.LittleEndian.Uint64(b[8:]))
}

// meddler sees each frame that is sent, and returns what is sent in its place, nil for nothing, and what the sender is answered at once, nil for
// nothing. It is called with the network's lock held.
type meddler func(from, to string, frame []byte) (instead, answer []byte)
