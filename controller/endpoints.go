package controller

import "net/http"

// endpoints lists every route of the API, with what it does to its object.
func (c *Controller) endpoints() []endpoint {
	const m = "/v1/apps/{app}/machines/{machine}"
	const k = "/v1/apps/{app}/secretkeys/{secret}"
	es := []endpoint{
		{"GET /healthz", actRead, c.healthz},
		{"GET /metrics", actRead, c.metricsPage},

		{"GET /v1/apps", actRead, c.listApps},
		{"POST /v1/apps", actCreate, c.createApp},
		{"GET /v1/apps/{app}", actRead, c.showApp},
		{"DELETE /v1/apps/{app}", actDelete, c.deleteApp},
		{"GET /v1/apps/{app}/ip_assignments", actRead, c.listIPs},
		{"GET /v1/apps/{app}/logs", actRead, c.appLogs},

		{"GET /v1/apps/{app}/machines", actRead, c.listMachines},
		{"POST /v1/apps/{app}/machines", actCreate, c.createMachine},
		{"GET " + m, actRead, c.showMachine},
		{"POST " + m, actWrite, c.updateMachine},
		{"DELETE " + m, actDelete, c.deleteMachine},
		{"POST " + m + "/start", actControl, c.startMachine},
		{"POST " + m + "/stop", actControl, c.stopMachine},
		{"POST " + m + "/suspend", actControl, c.suspendMachine},
		{"POST " + m + "/restart", actControl, c.restartMachine},
		{"POST " + m + "/signal", actControl, c.signalMachine},
		{"POST " + m + "/cordon", actControl, c.cordonMachine(true)},
		{"POST " + m + "/uncordon", actControl, c.cordonMachine(false)},
		{"GET " + m + "/wait", actRead, c.waitMachine},
		{"GET " + m + "/events", actRead, c.machineEvents},
		{"GET " + m + "/versions", actRead, c.machineVersions},
		{"POST " + m + "/exec", actControl, c.execMachine},
		{"GET " + m + "/ps", actRead, c.processes},
		{"GET " + m + "/logs", actRead, c.machineLogs},
		{"GET " + m + "/lease", actRead, c.showLease},
		{"POST " + m + "/lease", actWrite, c.takeLease},
		{"DELETE " + m + "/lease", actWrite, c.releaseLease},
		{"GET " + m + "/metadata", actRead, c.listMetadata},
		{"PUT " + m + "/metadata", actWrite, c.changeMetadata},
		{"PATCH " + m + "/metadata", actWrite, c.changeMetadata},
		{"GET " + m + "/metadata/{key}", actRead, c.showMetadata},
		{"POST " + m + "/metadata/{key}", actWrite, c.setMetadata},
		{"DELETE " + m + "/metadata/{key}", actWrite, c.deleteMetadata},
		{"GET " + m + "/memory", actRead, c.memory},

		{"GET /v1/apps/{app}/secrets", actRead, c.listSecrets},
		{"POST /v1/apps/{app}/secrets", actWrite, c.updateSecrets},
		{"GET /v1/apps/{app}/secrets/{secret}", actRead, c.showSecret},
		{"POST /v1/apps/{app}/secrets/{secret}", actWrite, c.setSecret},
		{"DELETE /v1/apps/{app}/secrets/{secret}", actDelete, c.unsetSecret},
		{"GET /v1/apps/{app}/secretkeys", actRead, c.listSecretKeys},
		{"GET " + k, actRead, c.showSecretKey},
		{"POST " + k, actWrite, c.setSecretKey},
		{"DELETE " + k, actDelete, c.deleteSecretKey},
		{"POST " + k + "/generate", actWrite, c.generateSecretKey},
		{"POST " + k + "/encrypt", actControl, c.useSecretKey(encryptWith)},
		{"POST " + k + "/decrypt", actControl, c.useSecretKey(decryptWith)},
		{"POST " + k + "/sign", actControl, c.useSecretKey(signWith)},
		{"POST " + k + "/verify", actControl, c.useSecretKey(verifyWith)},

		{"GET /v1/orgs/{org}/machines", actRead, c.orgMachines},
		{"GET /v1/platform/nodes", actRead, c.listNodes},
		{"DELETE /v1/platform/nodes/{node}", actDelete, c.removeNode},
		{"POST /v1/platform/nodes/{node}/readmit", actCreate, c.readmitNode},
		{"GET /v1/platform/regions", actRead, c.regions},
		{"POST /v1/platform/placements", actRead, c.placements},
	}
	for pattern, what := range map[string]string{
		"PUT " + m + "/memory":                      "resizing a running machine's memory",
		"POST " + m + "/memory/reclaim":             "resizing a running machine's memory",
		"/v1/apps/{app}/volumes":                    "volumes",
		"/v1/apps/{app}/volumes/{rest...}":          "volumes",
		"/v1/orgs/{org}/volumes":                    "volumes",
		"/v1/apps/{app}/certificates":               "certificates for own host names",
		"/v1/apps/{app}/certificates/{rest...}":     "certificates for own host names",
		"/v1/apps/{app}/network_policies":           "network policies",
		"/v1/apps/{app}/network_policies/{rest...}": "network policies",
		"POST /v1/apps/{app}/deploy_token":          "tokens for one app",
		"POST /v1/apps/{app}/ip_assignments":        "public addresses for one app",
		"DELETE /v1/apps/{app}/ip_assignments/{ip}": "public addresses for one app",
		"/v1/tokens/{rest...}":                      "the token service",
		"/v1/postgres":                              "managed Postgres",
		"/v1/postgres/{rest...}":                    "managed Postgres",
	} {
		es = append(es, endpoint{pattern, actRead, func(*call) (int, any, error) { return 0, nil, notSupported{what} }})
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
