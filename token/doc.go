// Package token makes, reads, verifies and narrows Bulkhead's API tokens. They are
// macaroons in the wire format of github.com/superfly/macaroon, so that clients
// of the Machines API read them: "fm2_" tokens of the location https://api.fly.io/v1, in a
// header "FlyV1 t1,t2" or "Bearer t1,t2".
//
// What arrives in a header arrives before anybody is known: Parse bounds it
// (length, tokens, caveats, nesting) before the library sees a byte of it, and takes
// one encoding of a token only. Keys.Verify checks signatures, discharges and the time;
// Verified.Allows checks every caveat against one Access. What is not understood is refused.
//
// The package knows no store and no role: whether a token was revoked, and what its
// user may do, is the controller's to say. The CLI uses it to narrow and describe
// tokens without asking anybody.
package token
