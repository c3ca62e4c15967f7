package rpc

import (
	"bulkhead/api/internalpb"
	"bulkhead/role"
)

// Policy says which roles may call a method. It is the one place that decides who
// may make which internal call; a method that is missing is refused to everybody.
// What a caller may see of the answer (a worker only its own Machines) is checked
// by the method itself, from the same identity: Objects says what that is. A method that is
// added needs a row in both; docs/internal-calls.md is written from them.
var Policy = map[string][]string{
	internalpb.Controller_Sync_FullMethodName:                   {role.Worker},
	internalpb.Controller_FetchManifest_FullMethodName:          {role.Worker},
	internalpb.Controller_FetchBlob_FullMethodName:              {role.Worker},
	internalpb.Controller_FetchSecrets_FullMethodName:           {role.Worker},
	internalpb.Controller_WatchRoutes_FullMethodName:            {role.Edge},
	internalpb.Controller_IssueServerCertificate_FullMethodName: {role.Edge},
	internalpb.Controller_MachineAPI_FullMethodName:             {role.Worker},

	internalpb.Worker_Reserve_FullMethodName:    {role.Controller},
	internalpb.Worker_Signal_FullMethodName:     {role.Controller},
	internalpb.Worker_Exec_FullMethodName:       {role.Controller},
	internalpb.Worker_ExecStream_FullMethodName: {role.Controller},
	internalpb.Worker_Processes_FullMethodName:  {role.Controller},
	internalpb.Worker_Logs_FullMethodName:       {role.Controller},
	// A Machine's own config decides whether an edge may do this to it.
	internalpb.Worker_Wake_FullMethodName: {role.Edge},
	internalpb.Worker_Idle_FullMethodName: {role.Edge},

	internalpb.Membership_Renew_FullMethodName:        {role.Worker, role.Edge},
	internalpb.Membership_WatchRevoked_FullMethodName: {role.Worker, role.Edge},

	internalpb.Telemetry_Metrics_FullMethodName: {role.Controller},

	internalpb.Edge_Try_FullMethodName: {role.Controller},
}

// Objects says of each method which objects a caller that Policy lets through gets at, in
// words, and between back quotes the test of it.
var Objects = map[string]string{
	internalpb.Controller_Sync_FullMethodName:                   "assignments of the caller's own node; observations of its Machines: `TestAWorkerGetsOnlyItsOwn`",
	internalpb.Controller_FetchManifest_FullMethodName:          "images of Machines assigned to the caller's node: `TestObjectsOfInternalCalls`",
	internalpb.Controller_FetchBlob_FullMethodName:              "parts of such images: `TestObjectsOfInternalCalls`",
	internalpb.Controller_FetchSecrets_FullMethodName:           "secrets of Machines that the caller's node runs right now: `TestObjectsOfInternalCalls`",
	internalpb.Controller_MachineAPI_FullMethodName:             "calls of Machines assigned to the caller's node, each as that Machine: `TestIdentityToken`",
	internalpb.Controller_WatchRoutes_FullMethodName:            "all routes: an edge serves every app",
	internalpb.Controller_IssueServerCertificate_FullMethodName: "names of apps that exist: `TestObjectsOfInternalCalls`",

	internalpb.Worker_Reserve_FullMethodName:    "none: it asks what would fit",
	internalpb.Worker_Signal_FullMethodName:     "Machines of the worker's node; of others it knows nothing",
	internalpb.Worker_Exec_FullMethodName:       "Machines of the worker's node",
	internalpb.Worker_ExecStream_FullMethodName: "Machines of the worker's node",
	internalpb.Worker_Processes_FullMethodName:  "Machines of the worker's node",
	internalpb.Worker_Logs_FullMethodName:       "Machines of the worker's node",
	internalpb.Worker_Wake_FullMethodName:       "Machines of the worker's node whose config has autostart: `TestWhatAnEdgeMayDo`",
	internalpb.Worker_Idle_FullMethodName:       "Machines of the worker's node whose config has autostop: `TestWhatAnEdgeMayDo`",

	internalpb.Membership_Renew_FullMethodName:        "the caller's own identity, if its node joined: `TestCopiedIdentity`",
	internalpb.Membership_WatchRevoked_FullMethodName: "all revocations: names of nodes, which are no secret inside",

	internalpb.Telemetry_Metrics_FullMethodName: "the serving role's own counters",

	internalpb.Edge_Try_FullMethodName: "ports of Machines that are in the edge's routes: `TestTry`",
}
