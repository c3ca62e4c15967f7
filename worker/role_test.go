package worker

import (
	"slices"
	"testing"

	"bulkhead/machine"
)

// TestRoleVariables: with a role, wherever it comes from, and never over what is set.
func TestRoleVariables(t *testing.T) {
	const file, name = "AWS_WEB_IDENTITY_TOKEN_FILE=/.fly/oidc_token", "AWS_ROLE_SESSION_NAME=" + secretID
	for _, c := range []struct{ env, secrets, want []string }{
		{[]string{"A=b"}, []string{"S=t"}, nil},
		{[]string{"AWS_ROLE_ARN=arn"}, nil, []string{file, name}},
		{nil, []string{"AWS_ROLE_ARN=arn"}, []string{file, name}},
		{[]string{"AWS_ROLE_ARN="}, nil, nil},
		{[]string{"AWS_ROLE_ARN=arn"}, []string{"AWS_ROLE_ARN="}, nil}, // secrets are over env
		{[]string{"AWS_ROLE_ARN=arn", "AWS_WEB_IDENTITY_TOKEN_FILE=/mine"}, nil, []string{name}},
		{[]string{"AWS_ROLE_ARN=arn"}, []string{"AWS_ROLE_SESSION_NAME=mine"}, []string{file}},
	} {
		if got := roleVariables(secretID, c.env, c.secrets); !slices.Equal(got, c.want) {
			t.Errorf("%q and %q: %q, want %q", c.env, c.secrets, got, c.want)
		}
	}

	n, s := secretive(t)
	s.set(func() { s.values = map[string]string{"AWS_ROLE_ARN": "arn"} })
	n.state(n.assign(n.asg(secretID, `{"image":"web"}`)), machine.Started)
	spec, _ := n.host.Spec(secretID)
	k, _ := n.w.get(secretID)
	x, err := n.w.execSpec(secretID, k)
	if err != nil || !slices.Contains(spec.Env, file) || !slices.Contains(x.Env, file) || !slices.Contains(x.Env, name) {
		t.Errorf("the process has %q, a command %q, %v", spec.Env, x.Env, err)
	}
}
