//go:build race

package state

// raceDetector makes everything several times slower.
const raceDetector = true
