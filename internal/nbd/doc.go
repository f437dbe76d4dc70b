// Package nbd speaks the Network Block Device protocol: its framing, which client and server share, and a client.
//
// Use of the client: ParseURI, Dial, then Conn.Do from as many goroutines as requests shall be under way, and Close.
//
// The client does the fixed newstyle negotiation with NBD_OPT_GO (NBD_OPT_EXPORT_NAME where a server knows no better), simple and structured
// replies, and all commands but block status; no TLS. It may be used by several goroutines at once. An answer that breaks the protocol ends the connection,
// and so do all requests under way, with an error that says what came and what was expected (ErrProtocol); a connection that is gone ends
// them with ErrClosed. What a server answers is checked before memory is taken for it: nothing that it says makes the client allocate more than
// was asked for.
//
// The server is internal/nbd/nbdserver; what it reads of options is decoded here (option.go).
//
// Why not a library: most drive the kernel's device, and libnbd is C. github.com/digitalocean/go-nbd is a client in user space; it returns each read in memory of its
// own, where a load generator wants it in the caller's, believes what a reply says of its place, and shares no framing with a server.
package nbd
