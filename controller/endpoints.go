package controller

import "net/http"

// endpoints lists every route of the API, with what it does to what. A route with {app} is
// about that app, one with {org} about that organization; the others decide for themselves
// what of it the caller sees.
func (c *Controller) endpoints() []endpoint {
	const m = "/v1/apps/{app}/machines/{machine}"
	const k = "/v1/apps/{app}/secretkeys/{secret}"
	es := []endpoint{
		{"GET /healthz", actRead, whatPlatform, c.healthz},
		{"GET /metrics", actRead, whatCluster, c.metricsPage},

		{"GET /v1/apps", actRead, whatPlatform, c.listApps},
		{"POST /v1/apps", actCreate, whatAny, c.createApp},
		{"GET /v1/apps/{app}", actRead, whatApp, c.showApp},
		{"DELETE /v1/apps/{app}", actDelete, whatApp, c.deleteApp},
		{"GET /v1/apps/{app}/ip_assignments", actRead, whatApp, c.listIPs},
		{"GET /v1/apps/{app}/logs", actRead, whatLogs, c.appLogs},

		{"GET /v1/apps/{app}/machines", actRead, whatMachine, c.listMachines},
		{"POST /v1/apps/{app}/machines", actCreate, whatMachine, c.createMachine},
		{"GET " + m, actRead, whatMachine, c.showMachine},
		{"POST " + m, actWrite, whatMachine, c.updateMachine},
		{"DELETE " + m, actDelete, whatMachine, c.deleteMachine},
		{"POST " + m + "/start", actControl, whatMachine, c.startMachine},
		{"POST " + m + "/stop", actControl, whatMachine, c.stopMachine},
		{"POST " + m + "/suspend", actControl, whatMachine, c.suspendMachine},
		{"POST " + m + "/restart", actControl, whatMachine, c.restartMachine},
		{"POST " + m + "/signal", actControl, whatMachine, c.signalMachine},
		{"POST " + m + "/cordon", actControl, whatMachine, c.cordonMachine(true)},
		{"POST " + m + "/uncordon", actControl, whatMachine, c.cordonMachine(false)},
		{"GET " + m + "/wait", actRead, whatMachine, c.waitMachine},
		{"GET " + m + "/events", actRead, whatMachine, c.machineEvents},
		{"GET " + m + "/versions", actRead, whatMachine, c.machineVersions},
		{"POST " + m + "/exec", actControl, whatExec, c.execMachine},
		{"GET " + m + "/ps", actRead, whatExec, c.processes},
		{"GET " + m + "/logs", actRead, whatLogs, c.machineLogs},
		{"GET " + m + "/lease", actRead, whatMachine, c.showLease},
		{"POST " + m + "/lease", actWrite, whatMachine, c.takeLease},
		{"DELETE " + m + "/lease", actWrite, whatMachine, c.releaseLease},
		{"GET " + m + "/metadata", actRead, whatMetadata, c.listMetadata},
		{"PUT " + m + "/metadata", actWrite, whatMetadata, c.changeMetadata},
		{"PATCH " + m + "/metadata", actWrite, whatMetadata, c.changeMetadata},
		{"GET " + m + "/metadata/{key}", actRead, whatMetadata, c.showMetadata},
		{"POST " + m + "/metadata/{key}", actWrite, whatMetadata, c.setMetadata},
		{"DELETE " + m + "/metadata/{key}", actWrite, whatMetadata, c.deleteMetadata},
		{"GET " + m + "/memory", actRead, whatMachine, c.memory},

		{"GET /v1/apps/{app}/secrets", actRead, whatSecret, c.listSecrets},
		{"POST /v1/apps/{app}/secrets", actWrite, whatSecret, c.updateSecrets},
		{"GET /v1/apps/{app}/secrets/{secret}", actRead, whatSecret, c.showSecret},
		{"POST /v1/apps/{app}/secrets/{secret}", actWrite, whatSecret, c.setSecret},
		{"DELETE /v1/apps/{app}/secrets/{secret}", actDelete, whatSecret, c.unsetSecret},
		{"GET /v1/apps/{app}/secretkeys", actRead, whatSecretKey, c.listSecretKeys},
		{"GET " + k, actRead, whatSecretKey, c.showSecretKey},
		{"POST " + k, actWrite, whatSecretKey, c.setSecretKey},
		{"DELETE " + k, actDelete, whatSecretKey, c.deleteSecretKey},
		{"POST " + k + "/generate", actWrite, whatSecretKey, c.generateSecretKey},
		{"POST " + k + "/encrypt", actControl, whatSecretKeyUse, c.useSecretKey(encryptWith)},
		{"POST " + k + "/decrypt", actControl, whatSecretKeyUse, c.useSecretKey(decryptWith)},
		{"POST " + k + "/sign", actControl, whatSecretKeyUse, c.useSecretKey(signWith)},
		{"POST " + k + "/verify", actControl, whatSecretKeyUse, c.useSecretKey(verifyWith)},

		{"GET /v1/orgs/{org}/machines", actRead, whatMachine, c.orgMachines},
		{"POST /v1/claim", actCreate, whatClaim, c.claimAccount},
		{"GET /v1/user", actRead, whatAny, c.showSelf},
		{"POST /v1/invitations/accept", actWrite, whatAccount, c.acceptInvitation},
		{"GET /v1/users", actRead, whatCluster, c.listUsers},
		{"PATCH /v1/users/{user}", actWrite, whatCluster, c.setOperator},
		{"DELETE /v1/users/{user}", actDelete, whatCluster, c.deleteUser},
		{"GET /v1/orgs", actRead, whatAny, c.listOrgs},
		{"POST /v1/orgs", actCreate, whatCluster, c.createOrg},
		{"GET /v1/orgs/{org}", actRead, whatOrg, c.showOrg},
		{"DELETE /v1/orgs/{org}", actDelete, whatOrg, c.deleteOrg},
		{"PATCH /v1/orgs/{org}", actWrite, whatOrg, c.changeOrg},
		{"GET /v1/orgs/{org}/members", actRead, whatMember, c.listMembers},
		{"PUT /v1/orgs/{org}/members/{user}", actWrite, whatMember, c.setMember},
		{"DELETE /v1/orgs/{org}/members/{user}", actDelete, whatMember, c.removeMember},
		{"GET /v1/orgs/{org}/invitations", actRead, whatMember, c.listInvitations},
		{"POST /v1/orgs/{org}/invitations", actCreate, whatMember, c.invite},
		{"DELETE /v1/orgs/{org}/invitations/{invitation}", actDelete, whatMember, c.uninvite},

		{"GET /v1/orgs/{org}/sso", actRead, whatSSO, c.showSSO},
		{"PUT /v1/orgs/{org}/sso", actWrite, whatSSO, c.setSSO},
		{"DELETE /v1/orgs/{org}/sso", actDelete, whatSSO, c.deleteSSO},
		{"GET /v1/sessions", actRead, whatSelf, c.listSessions},
		{"DELETE /v1/sessions/{session}", actDelete, whatSelf, c.deleteSession},
		{"GET /v1/passkeys", actRead, whatSelf, c.listPasskeys},
		{"POST /v1/passkeys", actCreate, whatSelf, c.addPasskey},
		{"DELETE /v1/passkeys/{passkey}", actDelete, whatSelf, c.removePasskey},
		{"GET /v1/orgs/{org}/tokens", actRead, whatToken, c.listTokens},
		{"POST /v1/orgs/{org}/tokens", actCreate, whatToken, c.createToken},
		{"DELETE /v1/orgs/{org}/tokens/{token}", actDelete, whatToken, c.revokeToken},
		{"POST /v1/apps/{app}/deploy_token", actCreate, whatToken, c.createDeployToken},
		{"GET /v1/tokens", actRead, whatSelf, c.listOwnTokens},
		{"GET /v1/tokens/current", actRead, whatAny, c.currentTokens},
		{"DELETE /v1/tokens/{token}", actDelete, whatAny, c.revokeToken},
		{"GET /v1/platform/token_keys", actRead, whatCluster, c.listRootKeys},
		{"POST /v1/platform/token_keys", actCreate, whatCluster, c.rotateRootKey},
		{"DELETE /v1/platform/token_keys/{key}", actDelete, whatCluster, c.withdrawRootKey},
		{"GET /v1/orgs/{org}/audit", actRead, whatAudit, c.orgAudit},
		{"GET /v1/platform/audit", actRead, whatCluster, c.clusterAudit},
		{"GET /v1/audit/key", actRead, whatSelf, c.auditKey},
		{"GET /v1/audit/log/{path...}", actRead, whatSelf, c.auditFile},
		{"POST /v1/tokens/oidc", actCreate, whatOIDC, c.identityToken},
		{"GET /v1/platform/issuer", actRead, whatCluster, c.showIssuer},
		{"POST /v1/platform/issuer/rotate", actWrite, whatCluster, c.rotateIssuer},

		{"GET /v1/platform/nodes", actRead, whatCluster, c.listNodes},
		{"DELETE /v1/platform/nodes/{node}", actDelete, whatCluster, c.removeNode},
		{"POST /v1/platform/join_tokens", actCreate, whatCluster, c.makeJoinToken},
		{"POST /v1/platform/nodes/{node}/readmit", actCreate, whatCluster, c.readmitNode},
		{"GET /v1/platform/regions", actRead, whatPlatform, c.regions},
		{"POST /v1/platform/placements", actRead, whatPlatform, c.placements},
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
		es = append(es, endpoint{pattern, actRead, whatPlatform, func(*call) (int, any, error) { return 0, nil, notSupported{thing} }})
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
