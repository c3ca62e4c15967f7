package bulkhead_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// parsers lists, for the packages that read what comes from somebody who is not known
// yet, every function that turns bytes into meaning, with the fuzz target that feeds
// it ("package.Target", or just "Target" of the same package), or with "-" and the
// reason why it needs none. "make fuzz" runs the targets.
const parsers = `
	# The public ports, before any name or token is known.
	edge/sni.Parse: FuzzParse
	edge/sni.Read: FuzzParse
	edge.check: FuzzRequest
	edge.appOf: FuzzRequest
	edge.hostName: FuzzRequest
	edge.upgradeOf: FuzzRequest
	edge/upstream.HopOf: edge.FuzzRequest
	edge/upstream.SendHead: edge.FuzzRequest
	controller.proxyListener: FuzzProxyHeader
	controller.tokenOf: FuzzAuthorization
	controller.checkSize: FuzzForm
	controller.checkForm: FuzzForm
	controller.checkMedia: FuzzForm
	api/execstream.Next: FuzzNext
	controller.parseWait: FuzzQuery
	controller.flag: FuzzQuery
	controller.number: FuzzQuery
	controller.queryDuration: FuzzQuery
	limit.Check: FuzzJSON
	limit.Address: FuzzAddress
	limit.ParseSet: - the operator's configuration
	registry.parsePath: FuzzPath
	registry.parseDigest: key.FuzzParse
	registry.parseContentRange: FuzzContentRange
	registry.parseManifest: FuzzManifest
	registry.token: FuzzToken

	# Tokens, whose bytes anybody may make.
	token.Parse: FuzzHeader
	token.parseOne: FuzzHeader
	token.decode: FuzzToken
	token.parseTicket: FuzzSessionTicket
	token.ParseNetwork: - a flag of the CLI, of whoever attenuates a token of their own

	# What devices answer when somebody signs in.
	passkey.FinishAdd: FuzzAnswer
	passkey.FinishSignIn: FuzzAnswer

	# Certificates and requests for them.
	pki.ParseID: FuzzParseID
	pki.IDOf: FuzzEnroll
	pki.ParseJoinToken: FuzzJoinToken
	pki.enroll: FuzzEnroll
	pki.IssueIdentity: FuzzCSR
	pki.IssueServer: FuzzCSR
	pki.ParseRoot: - the operator's own file, of mode 0600
	pki.parseRemembered: - the role's own file, of mode 0600

	# Names and bodies.
	key.ParseMachineID: FuzzParse
	key.ParseInstanceID: FuzzParse
	key.ParseAppName: FuzzParse
	key.ParseNode: FuzzParse
	key.ParseDigest: FuzzParse
	key.ParseUserID: FuzzParse
	key.ParseTokenID: FuzzParse
	key.ParseUserName: FuzzParse
	key.ParseOrg: FuzzParse
	machine.UnmarshalJSON: FuzzValidate
	machine.Validate: FuzzValidate
	machine.ParseSignal: FuzzSignal
	controller.UnmarshalJSON: machine.FuzzSignal
	controller.parseOwn: FuzzReference
	controller.listenAddresses: FuzzListenAddresses
	controller.parseLife: - time.ParseDuration, compared with two others
	token.ParseKind: - a word, compared with those there are
	controller/record.ParseTombKey: - a key of the store, which the controller wrote
	controller/record.Decode: - a value of the store, which the controller wrote

	# What a client reads of a server that it does not know yet, and of its user.
	client.ParseURL: FuzzLogin
	client.parsePin: FuzzLogin
	client.parseProxy: FuzzLogin
	client.answerError: FuzzAnswer
`

// readers are the packages that the list must be complete for.
var readers = []string{"edge", "edge/sni", "edge/upstream", "controller", "controller/record", "controller/directory", "controller/access", "registry", "pki", "key", "client", "limit", "machine", "api/rpc", "grant",
	"token", "sso", "passkey", "workload", "api/execstream"}

// parserName is how functions that turn bytes into meaning are called here.
var parserName = regexp.MustCompile(`^(Parse|parse|Decode|decode|Unmarshal|unmarshal)`)

// TestEveryParserIsFuzzed: a function of a package that reads what strangers send, and
// that by its name is a parser, stands in the list; the list names no function and no
// target that there is not.
func TestEveryParserIsFuzzed(t *testing.T) {
	functions, targets := map[string]bool{}, map[string]bool{}
	for _, dir := range readers {
		files, _ := filepath.Glob(filepath.Join(dir, "*.go"))
		for _, file := range files {
			f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range f.Decls {
				fn, ok := d.(*ast.FuncDecl)
				switch test := strings.HasSuffix(file, "_test.go"); {
				case ok && test && strings.HasPrefix(fn.Name.Name, "Fuzz"):
					targets[dir+"."+fn.Name.Name] = true
				case ok && !test:
					functions[dir+"."+fn.Name.Name] = true
				}
			}
		}
	}
	listed, fuzzed := map[string]bool{}, 0
	for line := range strings.Lines(parsers) {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		name, target, ok := strings.Cut(line, ": ")
		if !ok || listed[name] {
			t.Errorf("the line %q is no row, or the second one", line)
		}
		listed[name] = true
		if !functions[name] {
			t.Errorf("%s is on the list and is no function", name)
		}
		if reason, none := strings.CutPrefix(target, "-"); none {
			if len(reason) < 10 {
				t.Errorf("%s is not fuzzed, without a reason", name)
			}
			continue
		}
		if !strings.Contains(target, ".") {
			target = name[:strings.LastIndexByte(name, '.')] + "." + target
		}
		if fuzzed++; !targets[target] {
			t.Errorf("%s names the fuzz target %s, which there is not", name, target)
		}
	}
	for name := range functions {
		if base := name[strings.LastIndexByte(name, '.')+1:]; parserName.MatchString(base) && !listed[name] {
			t.Errorf("%s reads what somebody sends: write a fuzz target for it and a row in parsers (fuzz_test.go), or a row with the reason why it needs none", name)
		}
	}
	t.Logf("%d parsers, %d of them fuzzed, by %d targets", len(listed), fuzzed, len(targets))
	if fuzzed < 20 {
		t.Errorf("only %d parsers are fuzzed", fuzzed)
	}
}

// TestFuzzTargetsKeepTheirCorpus: a target keeps inputs that once reached new code, so
// that "make test" tries them again.
func TestFuzzTargetsKeepTheirCorpus(t *testing.T) {
	var missing []string
	kept := 0
	for line := range strings.Lines(parsers) {
		name, target, _ := strings.Cut(strings.TrimSpace(line), ": ")
		if target == "" || target[0] == '-' || target[0] == '#' {
			continue
		}
		dir := name[:strings.LastIndexByte(name, '.')]
		if i := strings.LastIndexByte(target, '.'); i >= 0 {
			dir, target = target[:i], target[i+1:]
		}
		files, _ := os.ReadDir(filepath.Join(dir, "testdata/fuzz", target))
		if kept += len(files); len(files) == 0 && !slices.Contains(missing, dir+"."+target) {
			missing = append(missing, dir+"."+target)
		}
	}
	if len(missing) > 0 {
		t.Errorf("no corpus is kept for %v: run KEEP=20 scripts/fuzz TARGET PACKAGE", missing)
	}
}
