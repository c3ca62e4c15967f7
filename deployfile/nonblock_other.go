//go:build !unix

package deployfile

const openNonblock = 0
