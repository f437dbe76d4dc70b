package settings

import (
	"fmt"
	"strings"

	"varve/internal/id"
)

// DataTLS is whether data is encrypted on the way, in a secured cluster.
const DataTLS = "net.data.tls"

// serverNode begins the key of a setting that says which node a chunk server runs on: nobody else may come as that server.
const serverNode = "server.node."

// NodeOf returns the key of a chunk server's setting.
func NodeOf(server id.ServerID) string { return serverNode + server.String() }

// NodeSetting reports whether a key is one that NodeOf has made.
func NodeSetting(key string) bool {
	_, ok := nodeSetting(key)
	return ok
}

// nodeSetting returns the setting of a key that NodeOf has made.
func nodeSetting(key string) (Setting, bool) {
	server, ok := strings.CutPrefix(key, serverNode)
	var n uint32
	if _, err := fmt.Sscanf(server, "cs%d", &n); !ok || err != nil || NodeOf(id.ServerID(n)) != key {
		return Setting{}, false
	}
	return Setting{Key: key, Help: "the node that " + server + " runs on, by its certificate; set it when the server moves; empty: the node that comes as it next",
		check: checkNode}, true
}

func checkNode(v string) error {
	if len(v) > 64 || strings.ContainsAny(v, "/ ") {
		return fmt.Errorf("node %q: want the name of a node, as in its certificate", v)
	}
	return nil
}
