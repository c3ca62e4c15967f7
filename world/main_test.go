package world_test

import (
	"os"
	"testing"

	"bulkhead/world"
)

func TestMain(m *testing.M) { os.Exit(world.Main(m)) }
