// Without a file in assembly the compiler takes no function without a body, as go:linkname needs one.
