//go:build race

package sim

// defaultSeeds are few, since the race detector makes them slow; `make unit` has more without it.
const defaultSeeds = 4
