package b

import "testing"

func TestTwice(t *testing.T) { t.Error("seeded: the other one of this name") }

func TestEndsTheProcess(t *testing.T) { panic("seeded") }
