package doctor

import "context"

// Posture is what the controller alone knows.
type Posture struct{}

func (p Platform) posture(context.Context) []Finding { return nil }
