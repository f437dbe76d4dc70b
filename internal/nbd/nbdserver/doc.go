// Package nbdserver serves images as NBD exports, on the threads of reactors.
//
// Use: Start with block.Loops, listening sockets and exports; Shutdown ends it in order.
//
// It does the fixed newstyle negotiation (LIST, INFO, GO, EXPORT_NAME, ABORT, STRUCTURED_REPLY, LIST_META_CONTEXT and SET_META_CONTEXT for base:allocation;
// no TLS), simple and structured replies, and all commands but resize. Any number of connections to an export see the same, and a flush on one covers
// them all (CAN_MULTI_CONN). An image is opened when the first client wants it and given back, flushed, when the last has gone, so that an idle server holds no
// lease. When the session behind an image was lost, its connections are closed: a client that comes again opens the image anew, for writing only if
// nobody else was let write to it since: else the guest that was fenced would go on.
//
// Bounds: connections (Options.Connections), requests under way on each (maxRequests), payload memory of each thread, of which a connection has
// half at most. Who has reached one is not read until something of his has ended, which includes that he has taken the answer. A client that does not get
// through the negotiation in time, leaves a payload unfinished, or takes nothing of what he asked for is hung up on, as is one that breaks the protocol.
// What a client says of lengths is checked before memory is taken for it. A write that was not received in full is never begun.
//
// A client that has gone may come again by another connection, send what was not answered once more, and then write there anew. So what had not begun when it went
// is dropped, also where it waited for memory or the connection was not read, and what had begun is done in its order (package block). When all clients of an image
// have gone, who comes is let in when nothing of theirs is under way any more. What a client's own host still has to send it is beyond our reach.
package nbdserver
