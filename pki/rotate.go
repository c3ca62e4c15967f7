package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"bulkhead/fault"
)

// defaultOverlap is how long both roots count when the root changes. By half a
// certificate's life every role that runs has asked anew and knows the new root, and
// after a whole one no certificate of before is good.
const defaultOverlap = 2 * IdentityLife

// A generation is a root and the two intermediates below it. Its files lie in a
// directory of its own, but for the first's, which lie in the authority's; which count,
// and when, is written in one file (plans). A change is therefore made in full or not at
// all: the new directory is complete before the file names it, and directories that it
// does not name are removed.
type generation struct {
	plan
	root             *x509.Certificate
	identity, server *issuer
}

// plan says when a generation counts. All times are the controller's.
type plan struct {
	N    int       `json:"n"`
	Made time.Time `json:"made"`
	// IssueFrom is when it signs instead of those before it. Until then its root is only
	// handed out.
	IssueFrom time.Time `json:"issue_from"`
	// TrustUntil is when its root no longer counts; zero means for good.
	TrustUntil time.Time `json:"trust_until,omitzero"`
}

const plansFile = "generations.json"

func (ca *CA) genDir(n int) string {
	if n == 0 {
		return ca.dir
	}
	return filepath.Join(ca.dir, strconv.Itoa(n))
}

// load reads all generations that count, and removes what is left of others.
func (ca *CA) load() error {
	plans := []plan{{N: 0}}
	b, err := os.ReadFile(filepath.Join(ca.dir, plansFile))
	if err == nil {
		plans = nil
		err = json.Unmarshal(b, &plans)
		if err == nil && len(plans) == 0 {
			err = errors.New("it names none")
		}
		if err != nil {
			return fmt.Errorf("%s: %w; restore it from a backup", filepath.Join(ca.dir, plansFile), err)
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var gens []*generation
	for _, p := range plans {
		g, err := ca.read(p)
		if err != nil {
			return err
		}
		gens = append(gens, g)
	}
	ca.gens.Store(&gens)
	ca.sweep()
	return nil
}

func (ca *CA) read(p plan) (*generation, error) {
	g, dir := &generation{plan: p}, ca.genDir(p.N)
	var err error
	if g.root, err = readCert(filepath.Join(dir, "root.crt")); err != nil {
		return nil, err
	}
	if g.identity, err = readIssuer(dir, identityIssuer); err != nil {
		return nil, err
	}
	if g.server, err = readIssuer(dir, serverIssuer); err != nil {
		return nil, err
	}
	return g, ca.belongs(g)
}

// belongs refuses an authority of another cluster, and one put together from two.
func (ca *CA) belongs(g *generation) error {
	dir := ca.genDir(g.N)
	if !slices.Equal(g.root.PermittedURIDomains, []string{ca.cluster}) || !slices.Equal(g.root.PermittedDNSDomains, []string{ca.domain}) || !g.root.PermittedDNSDomainsCritical {
		return fmt.Errorf("the certificate authority in %s is that of cluster %v, domain %v, and this is cluster %s, domain %s; restore this cluster's own from a backup",
			dir, g.root.PermittedURIDomains, g.root.PermittedDNSDomains, ca.cluster, ca.domain)
	}
	for name, i := range map[string]*issuer{identityIssuer: g.identity, serverIssuer: g.server} {
		if err := i.cert.CheckSignatureFrom(g.root); err != nil {
			return fmt.Errorf("%s was not signed by the root beside it (%w); restore both from one backup", filepath.Join(dir, name+".crt"), err)
		}
	}
	return nil
}

// sweep removes what no plan names: generations that are over, and one that was begun
// and not installed. What it cannot remove it finds again.
func (ca *CA) sweep() {
	counts := map[int]bool{}
	for _, g := range *ca.gens.Load() {
		counts[g.N] = true
	}
	entries, _ := os.ReadDir(ca.dir)
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); e.IsDir() && (err == nil && !counts[n] || e.Name() == nextDir) {
			os.RemoveAll(filepath.Join(ca.dir, e.Name()))
		}
	}
	ca.dropOldRootKey()
	if !counts[0] {
		for _, f := range []string{"identity.key", "server.key", "identity.crt", "server.crt", "root.crt", rootKeyNote} {
			os.Remove(filepath.Join(ca.dir, f))
		}
	}
}

// issuing is the generation that signs now.
func (ca *CA) issuing() *generation {
	gens, now := *ca.gens.Load(), ca.now()
	for i := len(gens) - 1; i > 0; i-- {
		if !now.Before(gens[i].IssueFrom) {
			return gens[i]
		}
	}
	return gens[0]
}

// roots are the root certificates that count now, the newest last. The one that signs
// always counts.
func (ca *CA) roots() []*x509.Certificate {
	var out []*x509.Certificate
	signs, now := ca.issuing(), ca.now()
	for _, g := range *ca.gens.Load() {
		if (g == signs || g.TrustUntil.IsZero() || now.Before(g.TrustUntil)) && !slices.ContainsFunc(out, g.root.Equal) {
			out = append(out, g.root)
		}
	}
	return out
}

// Generation changes whenever other intermediates sign than before.
func (ca *CA) Generation() int { return ca.issuing().N }

// nextDir is where a generation is put together.
const nextDir = "next"

// Request makes keys for new intermediates, in place of keys that were requested before
// and not installed, and returns the requests that a root is to answer (Root.Sign). The
// keys stay here.
func (ca *CA) Request() (IssuerRequests, error) {
	ca.change.Lock()
	defer ca.change.Unlock()
	dir := filepath.Join(ca.dir, nextDir)
	if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)); err != nil {
		return IssuerRequests{}, err
	}
	var out IssuerRequests
	for name, csr := range map[string]*[]byte{identityIssuer: &out.Identity, serverIssuer: &out.Server} {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return out, err
		}
		if err := writeKey(filepath.Join(dir, name+".key"), k); err != nil {
			return out, err
		}
		if *csr, err = NewCSR(k); err != nil {
			return out, err
		}
	}
	return out, nil
}

// Install takes the answer to the last Request into use.
//
// Under the same root the new intermediates sign at once: who verifies knows the root
// alone. A new root signs at once when its intermediates are certified by the old one
// too, and otherwise after half of the overlap, when every role has heard of it; the old
// one counts until the overlap is over. Until then no other change is made, but with now,
// which is for when a key is lost: the new signs, and nothing before it counts.
func (ca *CA) Install(in Issuers, now bool) error {
	ca.change.Lock()
	defer ca.change.Unlock()
	t := ca.now()
	if over := ca.overlapEnds(t); !over.IsZero() && !now {
		return fault.New(fault.Precondition, "the root is being changed until %s, and both count until then; wait, or let the new one alone count at once (--now)", over.UTC().Format(time.RFC3339))
	}
	if err := ca.writeNext(in); err != nil {
		return err
	}
	var keep []*generation
	cur, top := ca.issuing(), 0
	for _, g := range *ca.gens.Load() {
		top = max(top, g.N)
	}
	next := plan{N: top + 1, Made: t, IssueFrom: t}
	if root, _ := x509.ParseCertificate(in.Root); !now && !root.Equal(cur.root) {
		old := *cur
		old.TrustUntil = t.Add(ca.overlap)
		keep = append(keep, &old)
		if in.CrossIdentity == nil {
			next.IssueFrom = t.Add(ca.overlap / 2)
			old.TrustUntil = t.Add(ca.overlap/2 + ca.overlap)
		}
	}
	dir := ca.genDir(next.N)
	if err := errors.Join(os.RemoveAll(dir), os.Rename(filepath.Join(ca.dir, nextDir), dir)); err != nil {
		return err
	}
	g, err := ca.read(next)
	if err != nil {
		return err
	}
	return ca.put(append(keep, g))
}

// Finish ends an overlap at once: the newest root alone counts.
func (ca *CA) Finish() error {
	ca.change.Lock()
	defer ca.change.Unlock()
	gens := *ca.gens.Load()
	g := *gens[len(gens)-1]
	g.IssueFrom = min2(g.IssueFrom, ca.now())
	return ca.put([]*generation{&g})
}

func min2(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// put writes down which generations count, and lets them.
func (ca *CA) put(gens []*generation) error {
	plans := make([]plan, len(gens))
	for i, g := range gens {
		plans[i] = g.plan
	}
	b, err := json.MarshalIndent(plans, "", "  ")
	if err != nil {
		return err
	}
	if err := writeFile(filepath.Join(ca.dir, plansFile), append(b, '\n'), 0o600); err != nil {
		return err
	}
	ca.gens.Store(&gens)
	ca.sweep()
	return nil
}

// overlapEnds is when the root of before no longer counts; zero when none does.
func (ca *CA) overlapEnds(now time.Time) (end time.Time) {
	for _, g := range *ca.gens.Load() {
		if g.TrustUntil.After(now) {
			end = g.TrustUntil
		}
	}
	return end
}

// writeNext checks the answer to a request and completes the next generation's files.
func (ca *CA) writeNext(in Issuers) error {
	dir := filepath.Join(ca.dir, nextDir)
	root, err := x509.ParseCertificate(in.Root)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "the root certificate cannot be read")
	}
	if err := root.CheckSignatureFrom(root); err != nil {
		return fault.Wrap(fault.Invalid, err, "the root certificate is not signed by itself")
	}
	files := map[string][]byte{"root.crt": in.Root}
	for _, x := range []struct {
		name        string
		cert, cross []byte
	}{{identityIssuer, in.Identity, in.CrossIdentity}, {serverIssuer, in.Server, in.CrossServer}} {
		k, err := ReadKey(filepath.Join(dir, x.name+".key"))
		if errors.Is(err, os.ErrNotExist) {
			return fault.New(fault.Precondition, "no new intermediates were requested, or they are installed already; begin anew")
		}
		if err != nil {
			return err
		}
		for file, y := range map[string]struct {
			der  []byte
			root *x509.Certificate
		}{x.name + ".crt": {x.cert, root}, x.name + "-cross.crt": {x.cross, ca.issuing().root}} {
			if y.der == nil {
				continue
			}
			cert, err := x509.ParseCertificate(y.der)
			if err != nil {
				return fault.Wrap(fault.Invalid, err, "the %s certificate cannot be read", x.name)
			}
			if err := checkIssuer(x.name, cert, y.root, &k.PublicKey); err != nil {
				return err
			}
			files[file] = y.der
		}
	}
	if !slices.Equal(root.PermittedURIDomains, []string{ca.cluster}) || !slices.Equal(root.PermittedDNSDomains, []string{ca.domain}) || !root.PermittedDNSDomainsCritical {
		return fault.New(fault.Invalid, "the root is not constrained to cluster %s and domain %s", ca.cluster, ca.domain)
	}
	if err := ca.noteNextRootKey(in, root); err != nil {
		return err
	}
	for file, der := range files {
		if err := writeFile(filepath.Join(dir, file), certPEM(der), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// noteNextRootKey writes what is known of the root's key beside the root to come.
func (ca *CA) noteNextRootKey(in Issuers, root *x509.Certificate) error {
	next := filepath.Join(ca.dir, nextDir)
	if !root.Equal(ca.newestRoot()) {
		if in.RootKey != RootKeySealed && in.RootKey != RootKeyDiscarded {
			return fault.New(fault.Invalid, "root_key %q of a new root is neither sealed nor discarded", in.RootKey)
		}
		return ca.writeRootKeyNote(next, in.RootKey)
	}
	if k := ca.rootKey(); k.State == RootKeySealed || k.State == RootKeyDiscarded {
		return ca.writeRootKeyNote(next, k.State)
	}
	return nil
}
