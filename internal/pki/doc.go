// Package pki holds who may speak in a cluster: the cluster's certificate authority, the certificates it gives to nodes, what a
// process shows and trusts (Credentials), and the signed capabilities by which chunk servers know what a session may do.
//
// A certificate names its holder by one URI, varve://CLUSTER-UUID/ROLE/NODE. The roles are node (servers and mounts), admin (may
// change the cluster) and reader (may look at it). A certificate's serial number is a hash of its public key: the same key asked
// for twice, since an answer was lost, is the same certificate, and a key that was revoked never becomes valid again.
//
// Credentials are safe for concurrent use, as are Signer and Verifier. Authority is not; its owner changes a copy.
//
// Times come from the caller or the system's clock. Certificates are valid from an hour before they are made (Skew), so that
// clocks may differ by that much; an error about a time says what both clocks may be.
//
// The formats of a certificate's name and of a capability are in format.go.
package pki
