//go:build !race

package journal

// bitStep is how many bits TestEveryBit goes on.
const bitStep = 1
