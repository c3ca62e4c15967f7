package wire

import "testing"

func TestMeter(t *testing.T) {
	m, err := ParseMeter([]byte("meter 1 2 3 4 5 6 7 8 9 10      \n"))
	want := Meter{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
	if err != nil || m != want {
		t.Errorf("%+v, %v", m, err)
	}
	for _, bad := range []string{"", "meter", "meter 1 2 3\n", "meter 1 2 3 4 5 6 7 8 9 -1\n", "meter 1 2 3 4 5 6 7 8 9 99999999999999999999\n", "status 1 2 3 4 5 6 7 8 9 10\n"} {
		if m, err := ParseMeter([]byte(bad)); err == nil || m != (Meter{}) {
			t.Errorf("%q: %+v, %v", bad, m, err)
		}
	}
}
