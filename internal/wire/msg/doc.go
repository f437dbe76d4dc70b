// Package msg is the bodies of varve's control messages as protobuf: see msg.proto, which says of each
// what it means and who sends it to whom. Package wire carries them. It is pure and generated, but for
// this file; `make generate` makes it again.
package msg
