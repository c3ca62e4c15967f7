package worker

import (
	"strings"

	"bulkhead/key"
	"bulkhead/sandbox"
)

// roleVariables are what AWS's clients need beside AWS_ROLE_ARN, as Fly's init sets it: the
// file with the Machine's identity token, which the sandbox makes when it finds that
// variable, and a name for the session. Those that are set already stay as they are, and
// what is secret is a variable as any other.
func roleVariables(id key.MachineID, env, secrets []string) (out []string) {
	set := map[string]string{}
	for _, kv := range append(env[:len(env):len(env)], secrets...) {
		name, value, _ := strings.Cut(kv, "=")
		set[name] = value
	}
	if set["AWS_ROLE_ARN"] == "" {
		return nil
	}
	if _, ok := set["AWS_WEB_IDENTITY_TOKEN_FILE"]; !ok {
		out = append(out, "AWS_WEB_IDENTITY_TOKEN_FILE="+sandbox.TokenFile)
	}
	if _, ok := set["AWS_ROLE_SESSION_NAME"]; !ok {
		out = append(out, "AWS_ROLE_SESSION_NAME="+string(id))
	}
	return out
}
