package access

import "bulkhead/controller/record"

// Sets of roles.
var (
	everyRole = record.Roles
	operating = []record.Role{record.Owner, record.Admin, record.Deployer}
	watching  = []record.Role{record.Owner, record.Admin, record.Deployer, record.Viewer}
	managing  = []record.Role{record.Owner, record.Admin}
	reviewing = []record.Role{record.Owner, record.Admin, record.Auditor}
	owning    = []record.Role{record.Owner}
)

// rights says which roles may do what. What is not here nobody may.
var rights = map[Kind]map[Action][]record.Role{
	App:          {Read: everyRole, Create: operating, Write: operating, Delete: managing},
	Machine:      {Read: everyRole, Create: operating, Write: operating, Delete: operating, Control: operating},
	Metadata:     {Read: everyRole, Write: operating, Delete: operating},
	Exec:         {Control: operating, Read: operating},
	Logs:         {Read: watching},
	Image:        {Read: watching, Write: operating, Delete: operating},
	Secret:       {Read: watching, Create: operating, Write: operating, Delete: operating},
	SecretKey:    {Read: watching, Create: operating, Write: operating, Delete: managing},
	SecretKeyUse: {Control: operating},

	Org:      {Read: everyRole, Write: managing, Delete: owning},
	Member:   {Read: everyRole, Create: managing, Write: managing, Delete: managing},
	Owner:    {Write: owning, Delete: owning},
	OwnToken: {Read: everyRole, Create: everyRole, Delete: everyRole},
	Tokens:   {Read: reviewing, Delete: managing},
	SSO:      {Read: reviewing, Write: managing, Delete: managing},
	Audit:    {Read: reviewing},
	Metrics:  {Read: watching},
}

// ofApp are the kinds of things that a role for one app says something about.
var ofApp = []Kind{
	App, Machine, Metadata, Exec, Logs, Image, Secret, SecretKey, SecretKeyUse, OwnToken,
}

// Roles are the roles that may act so on a kind of thing; nil when none may, or it cannot be
// acted on in that way.
func Roles(k Kind, a Action) []record.Role { return rights[k][a] }

// ofMachine is what a Machine may do to itself.
var ofMachine = map[Kind][]Action{
	Machine:  {Read, Control},
	Metadata: {Read, Write, Delete},
	OIDC:     {Create},
}
