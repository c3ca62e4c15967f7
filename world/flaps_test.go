package world_test

import (
	"testing"

	"bulkhead/controller/flapstest"
	"bulkhead/fixture"
	"bulkhead/world"
)

// TestFlyGoRunsTheLifeOfAMachine drives the real platform with fly-go's client of
// the Machines API.
func TestFlyGoRunsTheLifeOfAMachine(t *testing.T) {
	w := world.Shared(t)
	w.CreateApp("flaps-images", "")
	flapstest.Run(t, flapstest.Config{
		BaseURL: w.Ready.APIURL, Token: w.Ready.Token, Transport: w.Client().Transport, Org: "personal",
		App: "taken-through-life", Image: w.Push("flaps-images", fixture.StaticGo(t)),
		Exec: "/staticgo echo alive", ExecOutput: "alive",
	})
}
