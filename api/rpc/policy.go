package rpc

import (
	"bulkhead/api/internalpb"
	"bulkhead/role"
)

// Policy says which roles may call a method. It is the one place that decides who
// may make which internal call; a method that is missing is refused to everybody.
// What a caller may see of the answer (a worker only its own Machines) is checked
// by the method itself, from the same identity.
var Policy = map[string][]string{
	internalpb.Controller_Sync_FullMethodName:                   {role.Worker},
	internalpb.Controller_FetchManifest_FullMethodName:          {role.Worker},
	internalpb.Controller_FetchBlob_FullMethodName:              {role.Worker},
	internalpb.Controller_FetchSecrets_FullMethodName:           {role.Worker},
	internalpb.Controller_WatchRoutes_FullMethodName:            {role.Edge},
	internalpb.Controller_IssueServerCertificate_FullMethodName: {role.Edge},
	internalpb.Controller_MachineAPI_FullMethodName:             {role.Worker},

	internalpb.Worker_Reserve_FullMethodName:   {role.Controller},
	internalpb.Worker_Signal_FullMethodName:    {role.Controller},
	internalpb.Worker_Exec_FullMethodName:      {role.Controller},
	internalpb.Worker_Processes_FullMethodName: {role.Controller},
	internalpb.Worker_Logs_FullMethodName:      {role.Controller},
	// A Machine's own config decides whether an edge may do this to it.
	internalpb.Worker_Wake_FullMethodName: {role.Edge},
	internalpb.Worker_Idle_FullMethodName: {role.Edge},

	internalpb.Membership_Renew_FullMethodName:        {role.Worker, role.Edge},
	internalpb.Membership_WatchRevoked_FullMethodName: {role.Worker, role.Edge},

	internalpb.Telemetry_Metrics_FullMethodName: {role.Controller},
}
