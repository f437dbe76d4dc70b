# `make` lists the targets. Everything a target needs beside Go and make is installed by .ci/deps.
SHELL      := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
# The whole of `make test` takes about a quarter of an hour on two cores; these only end what hangs.
UNIT_TIMEOUT := 30m
E2E_TIMEOUT  := 45m

.PHONY: help build test deps check unit e2e ways bench gobench benchdiff fuzz soak dev generate clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

build: ## the one static binary, as build/varve
	CGO_ENABLED=0 go build -trimpath -o build/varve ./cmd/varve

test: ## all that must pass: tools, check, unit tests with the race detector, end to end (as root)
	.ci/deps
	$(MAKE) --no-print-directory check
	$(MAKE) --no-print-directory unit
	$(MAKE) --no-print-directory e2e

deps: ## install what the tests need (Debian, as root)
	.ci/deps

check: ## gofmt, go vet, staticcheck, and that generated code is what `make generate` makes
	@bad=$$(git ls-files -co --exclude-standard '*.go' | while read -r f; do if [ -f "$$f" ]; then echo "$$f"; fi; done | xargs -r gofmt -l); \
	if [ -n "$$bad" ]; then echo "gofmt -w these:"; echo "$$bad"; exit 1; fi
	go vet ./...
	go vet -tags gain ./bench/gain
	go vet -tags planted ./internal/planted ./internal/sim
	go run $(STATICCHECK) ./...
	.ci/generate --check

unit: ## unit tests with the race detector
	go test -race -timeout $(UNIT_TIMEOUT) ./...
	go test -count=1 -v -tags planted -timeout $(UNIT_TIMEOUT) -run 'TestSeeds$$|TestPlantedBugs$$|TestInclined$$' ./internal/sim

e2e: ## the end-to-end suite, two packages at a time, since much of it waits: real processes, real mounts, real guests (as root)
	@if [ ! -d test/e2e ]; then echo "end to end: no suite in this tree"; \
	elif [ "$$(id -u)" != 0 ]; then echo "end to end: skipped, it mounts and so needs root"; \
	else VARVE_E2E=1 go test -count=1 -p 2 -parallel 3 -v -timeout $(E2E_TIMEOUT) ./test/e2e/... ./test/lin ./test/links ./test/attack ./test/bonds ./test/traffic ./test/crash ./test/storm; fi

ways: ## the end-to-end suite four times: by /dev/fuse and by io_uring, without and with a read cache (as root)
	@for transport in dev uring; do for cache in 0 1; do echo "transport $$transport, read cache $$cache"; \
		VARVE_E2E=1 VARVE_TRANSPORT=$$transport VARVE_CACHE=$$cache go test -count=1 -v -timeout 40m ./test/e2e; done; done

bench: ## a cluster beside what it is made of and its limits, and its metadata, with ratios; into build/bench (as root; BENCH_ARGS="--rounds 3 --for 5s --part limits")
	go run ./bench --for 1s --size 256m --entries 20000 --out build/bench $(BENCH_ARGS)

gobench: ## the benchmarks of the packages (BENCH=pattern, COUNT=10 for benchstat)
	go test -run '^$$' -bench '$(or $(BENCH),.)' -benchmem -count $(or $(COUNT),1) -timeout 60m ./...

benchdiff: ## the packages' benchmarks against those of a commit, by benchstat (BASE=main BENCH=pattern PKGS="./journal ./cs/..." COUNT=10 BENCHTIME=300ms)
	.ci/benchdiff "$(or $(BASE),HEAD)" "$(or $(BENCH),.)" "$(or $(COUNT),10)" "$(or $(BENCHTIME),300ms)" $(or $(PKGS),./...)

fuzz: ## every fuzz test of the packages (FOR=200000x inputs, or a time)
	@set -e; grep -rHo --include='*_test.go' '^func Fuzz[A-Za-z]*' . | sed 's|/[^/]*:func | |' | sort -u | while read -r dir target; do \
		echo "$$dir $$target"; go test -run '^$$' -fuzz "^$$target$$" -fuzztime $(or $(FOR),200000x) -fuzzminimizetime 10x "$$dir"; done

soak: ## long runs: a million random operations on one and two mounts, ten minutes each of kills, stops, partitions and restarts of a mount, a chunk server killed 1,000 times each on ext4, XFS and behind a write journal, 3,000 lying disks of each kind (OPS=1000000 FOR=10m KILLS=1000)
	VARVE_E2E=1 VARVE_OPS=$(or $(OPS),1000000) go test -count=1 -v -timeout 3h -run TestModel ./test/e2e
	VARVE_E2E=1 VARVE_SOAK=$(or $(FOR),10m) go test -count=1 -v -timeout 2h -run 'TestKill|TestSharedBlocks|TestGuestDisks' ./test/e2e
	VARVE_E2E=1 VARVE_SOAK=$(or $(FOR),10m) go test -count=1 -v -timeout 2h -run 'TestLinearizable|TestProcesses' ./test/lin
	VARVE_E2E=1 VARVE_SOAK=$(or $(FOR),10m) go test -count=1 -v -timeout 1h -run TestRestart ./test/e2e
	VARVE_E2E=1 VARVE_MOVES=20 go test -count=1 -v -timeout 30m -run 'TestMigration|TestVhostMigration' ./test/e2e
	VARVE_E2E=1 VARVE_SOAK=$(or $(FOR),10m) go test -count=1 -v -timeout 2h ./test/storm
	VARVE_E2E=1 VARVE_SOAK=3m go test -count=1 -v -timeout 10m ./test/links
	VARVE_E2E=1 VARVE_TRAFFIC=$(or $(FOR),10m) go test -count=1 -v -timeout 1h ./test/traffic
	VARVE_E2E=1 VARVE_SOAK=1 go test -count=1 -v -timeout 10m ./test/bonds
	VARVE_E2E=1 VARVE_SOAK=30s go test -count=1 -v -timeout 30m ./test/attack
	VARVE_E2E=1 VARVE_ATTACK_DATA_TLS=1 go test -count=1 -v -timeout 30m ./test/attack
	VARVE_STALE=1m go test -count=1 -v -timeout 30m -run TestStaleReturn ./cs
	VARVE_PLAN_CHUNKS=10000000 go test -count=1 -v -timeout 1h -run TestLostRack ./mds/plan
	VARVE_RELAY_LONG=1 go test -count=1 -v -run TestRelayOver ./internal/client
	VARVE_E2E=1 VARVE_KILLS=$(or $(KILLS),1000) VARVE_SEEDS=3000 go test -count=1 -v -timeout 3h ./test/crash
	VARVE_SIM_FROM=$$(date +%s)000 VARVE_SIM_SEEDS=$(or $(SEEDS),20000) go test -count=1 -v -timeout 6h -run 'TestSeeds$$' ./internal/sim
	VARVE_SOAK=1 go test -count=1 -v -timeout 1h -run TestModel ./internal/readcache

dev: ## an embedded cluster on this machine, mounted on ./varve-mnt; Ctrl-C stops it
	go run ./cmd/varve dev

generate: ## make the protobuf code again (protoc 3.21.12 of Debian 12, pinned plugins)
	.ci/generate

clean: ## remove what was built
	rm -rf build
