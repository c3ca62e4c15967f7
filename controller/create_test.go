package controller

import (
	"strings"
	"testing"

	"bulkhead/fault"
)

// TestLimitsAreReadStrictly: a limit whose name is misspelt is refused by name.
func TestLimitsAreReadStrictly(t *testing.T) {
	_, err := (&machineInput{Config: []byte(`{"image":"x","bulkhead_limits":{"proceses":5}}`)}).config()
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "config.bulkhead_limits.proceses") {
		t.Errorf("a limit that does not exist: %v", err)
	}
	conf, err := (&machineInput{Config: []byte(`{"image":"x","bulkhead_limits":{"processes":200}}`)}).config()
	if err != nil || conf.Limits == nil || conf.Limits.Processes != 200 {
		t.Errorf("a limit that exists: %+v, %v", conf, err)
	}
}
