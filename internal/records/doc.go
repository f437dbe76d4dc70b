// Package records protects what goes over a connection whose two ends share secrets: a stream of bytes becomes records that are sealed with AES-128-GCM.
// It is what data connections are after their TLS handshake where data is to be encrypted (package secure), in place of TLS' own records, which crypto/tls
// gives to no reactor.
//
// Use: both ends make a Pair of the same keying material, which is of this connection and of nothing else (a TLS exporter's, RFC 9266). NewStream makes a
// net.Conn of it, for goroutines. Take takes a connection, plain or a Stream, away from goroutines, and Taken.Adopt gives it to a loop, where
// Conn is what reactor.Conn is: the same calls, the same callbacks.
//
// What is guaranteed: the reader is given what the other end of this connection wrote, from the first byte on and in that order, or an error, whoever
// changes, repeats, drops, reorders or invents records, or takes them from elsewhere: the key is of the connection and its direction, and the nonce is the number of the
// record, which is not sent. Nothing of a record is handed on before all of it was verified. After the first wrong one, which ErrForged tells,
// nothing more is read. Lengths and times are visible, as they are with TLS. A connection that is cut may end between any two
// records: who speaks over it must tell the end of a message from that.
//
// Memory: a record is opened on its way to where its content is wanted, from the loop's buffer if it is small, from a pooled buffer else, and in no second
// step. What is sent is sealed when the socket takes it, into one pooled buffer for each connection that sends. Nothing is allocated for a message.
//
// A Stream may be read by one goroutine and written by one at once. All of Conn is for its loop's thread.
package records
