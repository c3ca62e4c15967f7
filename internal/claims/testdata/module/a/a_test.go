package a

import "testing"

func TestPasses(t *testing.T) {
	t.Run("TestInside", func(t *testing.T) {})
	t.Run("a part", func(t *testing.T) {})
}

func TestFails(t *testing.T) { t.Error("seeded") }

func TestIsSkipped(t *testing.T) { t.Skip("seeded") }

func TestSkipsAPart(t *testing.T) {
	t.Run("shown", func(t *testing.T) {})
	t.Run("not shown", func(t *testing.T) { t.Skip("seeded") })
}

func TestTwice(t *testing.T) {}
