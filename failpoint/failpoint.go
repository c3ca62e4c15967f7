// Package failpoint marks the places at which tests kill a process, and does nothing
// in programs as they are released: without the build tag "failpoints" every
// function here is empty and is compiled away (TestReleaseHasNoFailpoints).
//
// With the tag ("make failpoints" builds such programs into build/failpoints) a
// process looks into the directory that the environment variable Env names. There a
// test arms a place by making the file "armed/<name>", with slashes of the name
// written as "+", that holds a Mode and, after a space, how many times the place is
// passed before it acts (0 when missing). The process that acts takes the file away
// first, so that a place acts once, whichever process reaches it, and its successor
// lives. Every place that is passed leaves a file "seen/<name>": a test knows which
// places there are, and that they are compiled in.
//
// gofail has the same purpose; it arms a process by its environment or by a listener
// without authentication, and a process started anew is armed again.
package failpoint

// Env is the environment variable that names the directory. Its subdirectories
// armed and seen must be writable for every role.
const Env = "BULKHEAD_FAILPOINTS"

// Mode is what happens at an armed place.
type Mode string

// The modes. At a Step, Before and After are the same, and so are Lost and Refuse.
const (
	Before Mode = "before" // the process is killed before the write
	After  Mode = "after"  // the write is made, then the process is killed
	Lost   Mode = "lost"   // the write is made and reported as failed
	Refuse Mode = "refuse" // the write is not made and reported as failed
	Skip   Mode = "skip"   // the write is not made and reported as made: a seeded fault, for controls
	Hang   Mode = "hang"   // the process stays at the place for HangTime, then goes on
)

// Modes lists those that a platform must survive; Skip is not one of them.
func Modes() []Mode { return []Mode{Before, After, Lost, Refuse} }
