// Package report makes pictures, pages and comparisons of the results of package perf.
//
// Use: Load reads directories that perf.Result.WriteDir made; WritePNG and WriteHTML draw them; Compare tells whether one side is
// faster than the other, and how sure that is.
package report
