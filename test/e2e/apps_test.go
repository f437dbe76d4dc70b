package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// sh runs a shell script in dir, bounded, and fails the test if it fails.
func sh(t *testing.T, dir string, limit time.Duration, script string, env ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, tail(string(out), 4000))
	}
	return string(out)
}

func tail(s string, n int) string {
	if len(s) > n {
		return "…" + s[len(s)-n:]
	}
	return s
}

// TestApplications runs what people run on a filesystem: git, a build, sqlite, fio with verification.
func TestApplications(t *testing.T) {
	need(t, "git", "make", "sqlite3", "fio")
	c := up(t, 3, 3, 1, "3:2")
	m := c.mounts[0]
	t.Run("git", func(t *testing.T) {
		// A repository of some thousand files, made from the standard library's sources.
		origin := filepath.Join(t.TempDir(), "origin")
		sh(t, "/", 4*time.Minute, fmt.Sprintf(`mkdir %[1]s && cd %[1]s && git init -q .
			cp -r %[2]s/src/net %[2]s/src/crypto %[2]s/src/encoding %[2]s/src/go . && chmod -R u+w .
			git add -A && git -c user.name=t -c user.email=t@localhost commit -qm one`, origin, strings.TrimSpace(sh(t, "/", time.Minute, "go env GOROOT"))))
		begin := time.Now()
		out := sh(t, m, 5*time.Minute, `git clone -q --no-hardlinks `+origin+` repo && cd repo && git fsck --full 2>&1 && git status --porcelain && git ls-files | wc -l`)
		t.Logf("clone and fsck of %s files in %v", strings.TrimSpace(out[strings.LastIndex(strings.TrimSpace(out), "\n")+1:]), time.Since(begin).Round(time.Second))
		sh(t, m, 3*time.Minute, `diff -r --exclude=.git `+origin+` repo`)
	})
	t.Run("make", func(t *testing.T) {
		// varve itself, cloned and built on the mount.
		top, err := filepath.Abs("../..")
		if err != nil {
			t.Fatal(err)
		}
		sh(t, m, 3*time.Minute, `git clone -q --no-hardlinks file://`+top+` varve`)
		begin := time.Now()
		sh(t, filepath.Join(m, "varve"), 12*time.Minute, `make build && ./build/varve version`, "GOTMPDIR="+m, "GOFLAGS=-trimpath")
		t.Logf("make build on the mount in %v", time.Since(begin).Round(time.Second))
	})
	t.Run("sqlite", func(t *testing.T) {
		for _, mode := range []string{"delete", "wal"} {
			db := filepath.Join(m, mode+".db")
			out := sh(t, m, 2*time.Minute, fmt.Sprintf(`sqlite3 %s "pragma journal_mode=%s; pragma synchronous=full; create table t(id integer primary key, v blob);"
				for i in $(seq 40); do echo "begin; insert into t(v) select randomblob(3000) from generate_series(1,50); update t set v=randomblob(500) where id%%7=$((i%%7)); delete from t where id%%11=$((i%%11)); commit;"; done | sed 's/generate_series(1,50)/(with recursive s(n) as (select 1 union all select n+1 from s where n<50) select n from s)/' | sqlite3 %s
				sqlite3 %s "pragma integrity_check; select count(*) from t;"`, db, mode, db, db))
			if !strings.Contains(out, "\nok\n") && !strings.HasPrefix(out, "ok\n") {
				t.Errorf("journal mode %s: %s", mode, out)
			}
		}
	})
	t.Run("fio", func(t *testing.T) {
		for _, bs := range []string{"4k", "64k", "1m"} {
			for _, rw := range []string{"randwrite", "write"} {
				sh(t, m, 3*time.Minute, fmt.Sprintf(`fio --name=v --filename=%s/fio-%s-%s --size=64m --bs=%s --rw=%s --direct=1 --ioengine=io_uring --iodepth=16 --verify=crc32c --verify_fatal=1 --do_verify=1 --end_fsync=1 --output-format=terse`, m, rw, bs, bs, rw))
			}
		}
	})
	c.checkReplicas(3)
}
