//go:build !gain

package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "gain links only with a linker flag: go run -tags gain -ldflags=-checklinkname=0 ./bench/gain")
	os.Exit(2)
}
