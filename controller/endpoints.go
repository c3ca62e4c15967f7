package controller

import (
	"net/http"

	"bulkhead/controller/access"
)

// endpoints lists every route of the API, with what it does to what. A route with {app} is
// about that app, one with {org} about that organization; the others decide for themselves
// what of it the caller sees.
func (c *Controller) endpoints() []endpoint {
	const m = "/v1/apps/{app}/machines/{machine}"
	const k = "/v1/apps/{app}/secretkeys/{secret}"
	es := []endpoint{
		{"GET /healthz", access.Read, access.Platform, c.healthz},
		{"GET /metrics", access.Read, access.PlatformMetrics, c.metricsPage},

		{"GET /v1/apps", access.Read, access.Platform, c.listApps},
		{"POST /v1/apps", access.Create, access.Any, c.createApp},
		{"GET /v1/apps/{app}", access.Read, access.App, c.showApp},
		{"DELETE /v1/apps/{app}", access.Delete, access.App, c.deleteApp},
		{"GET /v1/apps/{app}/ip_assignments", access.Read, access.App, c.listIPs},
		{"GET /v1/apps/{app}/logs", access.Read, access.Logs, c.appLogs},

		{"GET /v1/apps/{app}/machines", access.Read, access.Machine, c.listMachines},
		{"POST /v1/apps/{app}/machines", access.Create, access.Machine, c.createMachine},
		{"GET " + m, access.Read, access.Machine, c.showMachine},
		{"POST " + m, access.Write, access.Machine, c.updateMachine},
		{"DELETE " + m, access.Delete, access.Machine, c.deleteMachine},
		{"POST " + m + "/start", access.Control, access.Machine, c.startMachine},
		{"POST " + m + "/stop", access.Control, access.Machine, c.stopMachine},
		{"POST " + m + "/suspend", access.Control, access.Machine, c.suspendMachine},
		{"POST " + m + "/restart", access.Control, access.Machine, c.restartMachine},
		{"POST " + m + "/signal", access.Control, access.Machine, c.signalMachine},
		{"POST " + m + "/cordon", access.Control, access.Machine, c.cordonMachine(true)},
		{"POST " + m + "/uncordon", access.Control, access.Machine, c.cordonMachine(false)},
		{"GET " + m + "/wait", access.Read, access.Machine, c.waitMachine},
		{"GET " + m + "/events", access.Read, access.Machine, c.machineEvents},
		{"GET " + m + "/versions", access.Read, access.Machine, c.machineVersions},
		{"POST " + m + "/exec", access.Control, access.Exec, c.execMachine},
		{"POST " + m + "/exec/stream", access.Control, access.Exec, c.streamExec},
		{"GET " + m + "/ps", access.Read, access.Exec, c.processes},
		{"GET " + m + "/ports", access.Read, access.Machine, c.tryPorts},
		{"GET " + m + "/logs", access.Read, access.Logs, c.machineLogs},
		{"GET " + m + "/lease", access.Read, access.Machine, c.showLease},
		{"POST " + m + "/lease", access.Write, access.Machine, c.takeLease},
		{"DELETE " + m + "/lease", access.Write, access.Machine, c.releaseLease},
		{"GET " + m + "/metadata", access.Read, access.Metadata, c.listMetadata},
		{"PUT " + m + "/metadata", access.Write, access.Metadata, c.changeMetadata},
		{"PATCH " + m + "/metadata", access.Write, access.Metadata, c.changeMetadata},
		{"GET " + m + "/metadata/{key}", access.Read, access.Metadata, c.showMetadata},
		{"POST " + m + "/metadata/{key}", access.Write, access.Metadata, c.setMetadata},
		{"DELETE " + m + "/metadata/{key}", access.Write, access.Metadata, c.deleteMetadata},
		{"GET " + m + "/memory", access.Read, access.Machine, c.memory},

		{"GET /v1/apps/{app}/secrets", access.Read, access.Secret, c.listSecrets},
		{"POST /v1/apps/{app}/secrets", access.Write, access.Secret, c.updateSecrets},
		{"GET /v1/apps/{app}/secrets/{secret}", access.Read, access.Secret, c.showSecret},
		{"POST /v1/apps/{app}/secrets/{secret}", access.Write, access.Secret, c.setSecret},
		{"DELETE /v1/apps/{app}/secrets/{secret}", access.Delete, access.Secret, c.unsetSecret},
		{"GET /v1/apps/{app}/secretkeys", access.Read, access.SecretKey, c.listSecretKeys},
		{"GET " + k, access.Read, access.SecretKey, c.showSecretKey},
		{"POST " + k, access.Write, access.SecretKey, c.setSecretKey},
		{"DELETE " + k, access.Delete, access.SecretKey, c.deleteSecretKey},
		{"POST " + k + "/generate", access.Write, access.SecretKey, c.generateSecretKey},
		{"POST " + k + "/encrypt", access.Control, access.SecretKeyUse, c.useSecretKey(encryptWith)},
		{"POST " + k + "/decrypt", access.Control, access.SecretKeyUse, c.useSecretKey(decryptWith)},
		{"POST " + k + "/sign", access.Control, access.SecretKeyUse, c.useSecretKey(signWith)},
		{"POST " + k + "/verify", access.Control, access.SecretKeyUse, c.useSecretKey(verifyWith)},

		{"GET /v1/orgs/{org}/machines", access.Read, access.Machine, c.orgMachines},
		{"GET /v1/orgs/{org}/metrics", access.Read, access.Metrics, c.orgMetrics},
		{"POST /v1/claim", access.Create, access.Claim, c.claimAccount},
		{"GET /v1/user", access.Read, access.Any, c.showSelf},
		{"POST /v1/invitations/accept", access.Write, access.Account, c.acceptInvitation},
		{"GET /v1/users", access.Read, access.Cluster, c.listUsers},
		{"PATCH /v1/users/{user}", access.Write, access.Cluster, c.setOperator},
		{"DELETE /v1/users/{user}", access.Delete, access.Cluster, c.deleteUser},
		{"GET /v1/orgs", access.Read, access.Any, c.listOrgs},
		{"POST /v1/orgs", access.Create, access.Cluster, c.createOrg},
		{"GET /v1/orgs/{org}", access.Read, access.Org, c.showOrg},
		{"DELETE /v1/orgs/{org}", access.Delete, access.Org, c.deleteOrg},
		{"PATCH /v1/orgs/{org}", access.Write, access.Org, c.changeOrg},
		{"GET /v1/orgs/{org}/members", access.Read, access.Member, c.listMembers},
		{"PUT /v1/orgs/{org}/members/{user}", access.Write, access.Member, c.setMember},
		{"DELETE /v1/orgs/{org}/members/{user}", access.Delete, access.Member, c.removeMember},
		{"GET /v1/orgs/{org}/invitations", access.Read, access.Member, c.listInvitations},
		{"POST /v1/orgs/{org}/invitations", access.Create, access.Member, c.invite},
		{"DELETE /v1/orgs/{org}/invitations/{invitation}", access.Delete, access.Member, c.uninvite},

		{"GET /v1/orgs/{org}/sso", access.Read, access.SSO, c.showSSO},
		{"PUT /v1/orgs/{org}/sso", access.Write, access.SSO, c.setSSO},
		{"DELETE /v1/orgs/{org}/sso", access.Delete, access.SSO, c.deleteSSO},
		{"GET /v1/sessions", access.Read, access.Self, c.listSessions},
		{"DELETE /v1/sessions/{session}", access.Delete, access.Self, c.deleteSession},
		{"GET /v1/passkeys", access.Read, access.Self, c.listPasskeys},
		{"POST /v1/passkeys", access.Create, access.Self, c.addPasskey},
		{"DELETE /v1/passkeys/{passkey}", access.Delete, access.Self, c.removePasskey},
		{"GET /v1/orgs/{org}/tokens", access.Read, access.OwnToken, c.listTokens},
		{"POST /v1/orgs/{org}/tokens", access.Create, access.OwnToken, c.createToken},
		{"DELETE /v1/orgs/{org}/tokens/{token}", access.Delete, access.OwnToken, c.revokeToken},
		{"POST /v1/apps/{app}/deploy_token", access.Create, access.OwnToken, c.createDeployToken},
		{"GET /v1/tokens", access.Read, access.Self, c.listOwnTokens},
		{"GET /v1/tokens/current", access.Read, access.Any, c.currentTokens},
		{"DELETE /v1/tokens/{token}", access.Delete, access.Any, c.revokeToken},
		{"POST /v1/platform/tokens", access.Create, access.Cluster, c.createPlatformToken},
		{"GET /v1/platform/token_keys", access.Read, access.Cluster, c.listRootKeys},
		{"POST /v1/platform/token_keys", access.Create, access.Cluster, c.rotateRootKey},
		{"DELETE /v1/platform/token_keys/{key}", access.Delete, access.Cluster, c.withdrawRootKey},
		{"GET /v1/orgs/{org}/audit", access.Read, access.Audit, c.orgAudit},
		{"GET /v1/platform/audit", access.Read, access.Cluster, c.clusterAudit},
		{"GET /v1/audit/key", access.Read, access.Self, c.auditKey},
		{"GET /v1/audit/log/{path...}", access.Read, access.Self, c.auditFile},
		{"POST /v1/tokens/oidc", access.Create, access.OIDC, c.identityToken},
		{"GET /v1/platform/issuer", access.Read, access.Cluster, c.showIssuer},
		{"POST /v1/platform/issuer/rotate", access.Write, access.Cluster, c.rotateIssuer},

		{"GET /v1/platform/nodes", access.Read, access.Cluster, c.listNodes},
		{"DELETE /v1/platform/nodes/{node}", access.Delete, access.Cluster, c.removeNode},
		{"POST /v1/platform/join_tokens", access.Create, access.Cluster, c.makeJoinToken},
		{"POST /v1/platform/nodes/{node}/readmit", access.Create, access.Cluster, c.readmitNode},
		{"GET /v1/platform/domains", access.Read, access.Cluster, c.listDomains},
		{"PUT /v1/platform/domains/{domain}", access.Write, access.Cluster, c.grantDomain},
		{"DELETE /v1/platform/domains/{domain}", access.Delete, access.Cluster, c.withdrawDomain},
		{"GET /v1/platform/regions", access.Read, access.Platform, c.regions},
		{"POST /v1/platform/placements", access.Read, access.Platform, c.placements},
	}
	for pattern, thing := range map[string]string{
		"PUT " + m + "/memory":                      "resizing a running machine's memory",
		"POST " + m + "/memory/reclaim":             "resizing a running machine's memory",
		"/v1/apps/{app}/volumes":                    "volumes",
		"/v1/apps/{app}/volumes/{rest...}":          "volumes",
		"/v1/orgs/{org}/volumes":                    "volumes",
		"/v1/apps/{app}/certificates":               "certificates for own host names",
		"/v1/apps/{app}/certificates/{rest...}":     "certificates for own host names",
		"/v1/apps/{app}/network_policies":           "network policies",
		"/v1/apps/{app}/network_policies/{rest...}": "network policies",
		"POST /v1/apps/{app}/ip_assignments":        "public addresses for one app",
		"DELETE /v1/apps/{app}/ip_assignments/{ip}": "public addresses for one app",
		"POST /v1/tokens/kms":                       "tokens for another key service (secret keys are used through the API)",
		"/v1/tokens/{rest...}":                      "the token service",
		"/v1/postgres":                              "managed Postgres",
		"/v1/postgres/{rest...}":                    "managed Postgres",
	} {
		es = append(es, endpoint{pattern, access.Read, access.Platform, func(*call) (int, any, error) { return 0, nil, notSupported{thing} }})
	}
	return es
}

// okBody is what many endpoints answer.
type okBody struct {
	OK bool `json:"ok"`
}

func ok() (int, any, error) { return http.StatusOK, okBody{OK: true}, nil }

// noContent is an answer without a body.
func noContent() (int, any, error) { return http.StatusNoContent, nil, nil }
