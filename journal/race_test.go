//go:build race

package journal

// bitStep is how many bits TestEveryBit goes on: with the race detector one bit of each byte must do.
const bitStep = 8
