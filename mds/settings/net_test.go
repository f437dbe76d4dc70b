package settings

import "testing"

func TestNetSettings(t *testing.T) {
	for _, c := range []struct {
		key, value string
		good       bool
	}{
		{NetClassify, "auto", true}, {NetClassify, "on", true}, {NetClassify, "yes", false},
		{NetGuard, "on", true}, {NetGuard, "auto", false},
		{NetGuardAllow, "10.0.0.0/8, fd00::/8,192.168.1.1,::1", true}, {NetGuardAllow, "10.0.0.0/33", false}, {NetGuardAllow, "10.0.0", false},
		{NetGuardAllow, "fd00::1::2", false}, {NetGuardAllow, "host", false}, {NetGuardAllow, "10.0.0.01", false}, {NetGuardAllow, "1:2:3:4:5:6:7:8/128", true},
		{NetGuardAllow, "fd00::/129", false},
		{NetShapeLink, "10G", true}, {NetShapeLink, "200M", true}, {NetShapeLink, "1000", false}, {NetShapeLink, "G", false}, {NetShapeLink, "9000G", false},
		{"net.shape.guest", "min 40% max 100%", true}, {"net.shape.guest", "max 50", true}, {"net.shape.guest", "min 60% max 50%", false},
		{"net.shape.guest", "min 0%", false}, {"net.shape.guest", "min 5% min 6%", false}, {"net.shape.guest", "40%", false}, {"net.shape.none", "min 1%", false},
	} {
		if err := Check(c.key, c.value); (err == nil) != c.good {
			t.Errorf("%s=%q: %v", c.key, c.value, err)
		}
	}
	set := map[string]string{"net.shape.guest": "min 50% max 80%", "net.shape.repair": "nonsense of another version"}
	got, err := Shares(func(k string) string { return set[k] })
	if err != nil || len(got) != len(NetClasses) || got[2] != (Share{50, 80, 1}) || got[4] != (Share{10, 100, 3}) || got[0].Urgency != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	set["net.shape.heartbeat"] = "min 60%"
	if _, err := Shares(func(k string) string { return set[k] }); err == nil {
		t.Error("more than a link has is guaranteed")
	}
	if n, err := BitRate("25G"); err != nil || n != 25_000_000_000 {
		t.Errorf("25G: %d, %v", n, err)
	}
}
