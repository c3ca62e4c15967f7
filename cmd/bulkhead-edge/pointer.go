package main

import "unsafe"

// pointer gives a system call the address of v.
func pointer[T any](v *T) uintptr { return uintptr(unsafe.Pointer(v)) }
