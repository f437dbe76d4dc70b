// Package lin checks that metadata operations are linearizable: that what concurrent clients saw can be explained by one order of
// their operations, in which each takes effect at one moment between its call and its answer.
//
// A Run has workers that do random operations, by several clients, on the names of small directories, and notes when each was called
// and what it answered. The directories are independent keys, so that each is checked alone, and new ones are taken every few
// seconds, so that no history is long. An operation whose outcome is not known may take effect at any time after its call, or
// never. Check compares each history with the model (model.go) by github.com/anishathalye/porcupine; one that has no explanation is
// written to a file as HTML.
//
// The tests make trouble meanwhile: servers in this process that are killed and whose wall clocks step, and, with VARVE_E2E=1 and as
// root, real servers in network namespaces of their own that are killed, stopped and cut off.
package lin
