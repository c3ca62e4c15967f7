// Package bulkhead is the root of the module: it holds the tests of the module's
// own rules (see deps_test.go) and no code. ARCHITECTURE.md says where things are.
package bulkhead
