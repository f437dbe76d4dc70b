package secure

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"slices"
	"strconv"
	"testing"

	"varve/internal/pki"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// frameTypes reads the frame types from their declaration.
func frameTypes(t *testing.T) map[string]wire.Type {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "../wire/format.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]wire.Type)
	ast.Inspect(f, func(n ast.Node) bool {
		v, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if typ, ok := v.Type.(*ast.Ident); !ok || typ.Name != "Type" {
			return true
		}
		for i, name := range v.Names {
			if n, err := strconv.ParseUint(v.Values[i].(*ast.BasicLit).Value, 10, 16); err == nil {
				all[name.Name] = wire.Type(n)
			}
		}
		return true
	})
	if len(all) < 40 {
		t.Fatalf("found %d frame types only", len(all))
	}
	return all
}

// TestEveryRequestHasRoles: a frame type that is not in the table is refused, so that none is forgotten; what changes the cluster is the administrators'.
func TestEveryRequestHasRoles(t *testing.T) {
	types := frameTypes(t)
	for name, typ := range types {
		if _, ok := requests[typ]; !ok {
			t.Errorf("%s (%d) is not in the table of roles: say who may ask for it", name, typ)
		}
	}
	known := slices.Collect(maps.Values(types))
	for typ, roles := range requests {
		if !slices.Contains(known, typ) {
			t.Errorf("type %d is in the table and no frame type", typ)
		}
		if roles == 0 || roles&^anybody != 0 {
			t.Errorf("type %d: roles %b", typ, roles)
		}
	}
	if May(wire.Type(60000), pki.RoleAdmin) {
		t.Error("an unknown type is allowed")
	}
	// What a reader may ask for, in full: more needs a decision.
	var reader []string
	for name, typ := range types {
		if May(typ, pki.RoleReader) {
			reader = append(reader, name)
		}
		if May(typ, 0) {
			t.Errorf("%s is allowed without a role", name)
		}
	}
	slices.Sort(reader)
	want := []string{"ChunkSeek", "CloseSession", "GetConfig", "Hello", "JournalRead", "LeaseShow", "ListCertificates", "Members", "Meta", "NetInfo", "OpenSession", "Read",
		"RenewSession", "SecureStatus", "ShowCapability", "StateDigest", "Status", "StoreStat", "Trust", "WhatIf"}
	if !slices.Equal(reader, want) {
		t.Errorf("a reader may ask for %v, want %v", reader, want)
	}
	for _, typ := range []wire.Type{wire.SetConfig, wire.RemoveServer, wire.SetServerMode, wire.SetTier, wire.RemoveMeta, wire.TransferLeader,
		wire.FenceSession, wire.LeaseTake, wire.Revoke, wire.ChangeSecurity} {
		if !May(typ, pki.RoleAdmin) || May(typ, pki.RoleNode) || May(typ, pki.RoleReader) {
			t.Errorf("type %d is not the administrators' alone", typ)
		}
	}
}

// TestOperations: every operation on files is one that a reader may do, or one that changes something.
func TestOperations(t *testing.T) {
	fields := new(msg.MetaRequest).ProtoReflect().Descriptor().Oneofs().ByName("op").Fields()
	var looking []string
	for i := range fields.Len() {
		f := fields.Get(i)
		m := new(msg.MetaRequest)
		r := m.ProtoReflect()
		r.Set(f, r.NewField(f))
		m.Session = 7
		if MayDo(m, pki.RoleReader) {
			looking = append(looking, string(f.Name()))
		}
		if !MayDo(m, pki.RoleNode) || MayDo(m, pki.RoleAdmin) || MayDo(m, 0) {
			t.Errorf("%s in a session: a node may, and an administrator has none", f.Name())
		}
		m.Session = 0
		if !MayDo(m, pki.RoleAdmin) || MayDo(m, pki.RoleNode) != MayDo(m, pki.RoleReader) {
			t.Errorf("%s without a session: only an administrator may change things", f.Name())
		}
	}
	slices.Sort(looking)
	want := []string{"access", "get_attr", "get_layout", "get_policy", "get_xattr", "list_xattr", "lookup", "open", "read_dir", "read_link", "release", "stat_fs"}
	if !slices.Equal(looking, want) {
		t.Errorf("a reader may do %v, want %v", looking, want)
	}
	for _, o := range []*msg.Open{{Want: msg.Want_WANT_WRITE}, {Trunc: true}, {Mask: 2}, {Mask: 6}} {
		if MayDo(&msg.MetaRequest{Session: 1, Op: &msg.MetaRequest_Open{Open: o}}, pki.RoleReader) {
			t.Errorf("a reader may open with %v", o)
		}
	}
	if MayDo(&msg.MetaRequest{Session: 1}, pki.RoleReader) {
		t.Error("no operation is allowed")
	}
}

// TestHellos: who may introduce himself as what.
func TestHellos(t *testing.T) {
	for h := range msg.Hello_Role_name {
		role := msg.Hello_Role(h)
		if MayGreet(role, 0) {
			t.Errorf("%v without a role", role)
		}
		got := [...]bool{MayGreet(role, pki.RoleNode), MayGreet(role, pki.RoleAdmin), MayGreet(role, pki.RoleReader)}
		want := map[msg.Hello_Role][3]bool{
			msg.Hello_CLIENT: {true, false, true}, msg.Hello_CHUNK_SERVER: {true, false, false},
			msg.Hello_METADATA_SERVER: {true, false, false}, msg.Hello_ADMIN: {true, true, true}}[role]
		if got != want {
			t.Errorf("%v: node, admin, reader: %v, want %v", role, got, want)
		}
	}
	if Rights(pki.RoleReader) != pki.Read || Rights(pki.RoleNode) != pki.Read|pki.Write || Rights(pki.RoleAdmin) != 0 {
		t.Error("rights")
	}
}
