package main

import (
	"slices"
	_ "unsafe" // for go:linkname

	"gvisor.dev/gvisor/pkg/seccomp/precompiledseccomp"
	"gvisor.dev/gvisor/runsc/boot/filter"
)

//go:linkname precompiledPrograms gvisor.dev/gvisor/runsc/boot/filter.precompiledPrograms
var precompiledPrograms map[string]precompiledseccomp.Program

// usePrecompiledFilters gives gVisor the system-call filter of our configuration
// ready-made. gVisor's own build does this by code generation, which a Go module
// does not carry; compiling the filter at each start takes 20 to 40 ms. The filter
// belongs to one configuration, whose name it bears: for any other, and when this
// hook is lost in a later gVisor, it is compiled as before. TestFilter holds it
// against what gVisor compiles.
func usePrecompiledFilters() {
	filter.ListPrecompiled() // makes the empty map, once
	precompiledPrograms = map[string]precompiledseccomp.Program{filterName: {
		Name: filterName, Bytecode32: slices.Clone(filterCode), VarOffsets: filterVars,
	}}
}
