package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"bulkhead/client"
	"bulkhead/token"
)

// dischargeMargin is how long before its end a discharge is fetched anew.
const dischargeMargin = time.Minute

// discharger keeps a token that needs a live session's word good: it fetches discharges with
// the session of the login, and keeps them for the next commands.
type discharger struct {
	text    string
	session string
	file    string // "" keeps them in memory alone
	api     func() (*client.Client, error)

	mu    sync.Mutex
	list  string
	until time.Time
}

// renewer gives what client.Config wants for a token; nil if it needs no discharge.
func (s *session) renewer(c clusterConfig) func(context.Context, bool) (string, error) {
	if d := s.discharger(c); d != nil {
		return d.renew
	}
	return nil
}

func (s *session) discharger(c clusterConfig) *discharger {
	base, err := client.ParseURL(c.URL)
	if err != nil || !token.Is(c.Token) {
		return nil
	}
	d := &discharger{text: c.Token, session: c.Session, api: sync.OnceValues(func() (*client.Client, error) {
		return client.New(client.Config{
			URL: c.URL, Pin: c.Pin, Anonymous: true, Proxy: s.proxyAddr(), UserAgent: "bulkhead/" + version(), Waits: s.waits(c.URL),
		})
	})}
	if path, err := s.configPathOrErr(); err == nil {
		d.file = dischargesPath(path)
	}
	if all, err := token.Tickets(c.Token, client.ThirdPartyOf(base)); err != nil || len(all) == 0 {
		return nil
	}
	return d
}

// dischargesPath is where discharges are kept: beside the configuration, so that no command
// writes over a login that another one makes meanwhile.
func dischargesPath(config string) string {
	return strings.TrimSuffix(config, ".json") + ".discharges.json"
}

// renew gives the token with its discharges. Without a session it is given as it is: the
// server says what is missing.
func (d *discharger) renew(ctx context.Context, again bool) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.session == "" {
		return d.text, nil
	}
	if !again && d.list != "" && time.Until(d.until) > dischargeMargin {
		return d.list, nil
	}
	api, err := d.api()
	if err != nil {
		return "", err
	}
	tickets, err := token.Tickets(d.text, api.ThirdParty())
	if err != nil {
		return "", err
	}
	kept, changed := d.read(), false
	var discharges []string
	until := time.Now().Add(24 * time.Hour)
	for _, t := range tickets {
		sum := sha256.Sum256(t)
		name := hex.EncodeToString(sum[:])
		end := endOf(kept[name])
		if again || time.Until(end) <= dischargeMargin {
			if kept[name], err = api.Discharge(ctx, t, d.session); err != nil {
				return "", err
			}
			changed, end = true, endOf(kept[name])
		}
		discharges = append(discharges, kept[name])
		if end.Before(until) {
			until = end
		}
	}
	list, err := token.WithDischarges(d.text, discharges...)
	if err != nil {
		return "", err
	}
	d.list, d.until = list, until
	if changed {
		d.write(kept)
	}
	return d.list, nil
}

// endOf is when a discharge ends; the zero time for what is none.
func endOf(discharge string) time.Time {
	end, err := token.EndOf(discharge)
	if err != nil {
		return time.Time{}
	}
	return end
}

// read returns the discharges that are kept, by the digest of their ticket. What cannot be
// read, or could be by others, is fetched anew.
func (d *discharger) read() map[string]string {
	kept := map[string]string{}
	st, err := os.Stat(d.file)
	if d.file == "" || err != nil || runtime.GOOS != "windows" && st.Mode().Perm()&0o077 != 0 {
		return kept
	}
	b, err := os.ReadFile(d.file)
	if err != nil || json.Unmarshal(b, &kept) != nil || kept == nil {
		return map[string]string{}
	}
	return kept
}

// write keeps discharges that are still good. Where it fails the next command fetches others.
func (d *discharger) write(kept map[string]string) {
	for name, text := range kept {
		if time.Until(endOf(text)) <= 0 {
			delete(kept, name)
		}
	}
	b, err := json.Marshal(kept)
	if err == nil && d.file != "" {
		_ = writePrivate(d.file, append(b, '\n'))
	}
}

func (s *session) tokenDischargeCommand() *cobra.Command {
	var text string
	c := &cobra.Command{
		Use: "discharge", Short: "Make a token of an organization that requires single sign-on good for ten minutes", Args: exactly(),
		Long: `Print a token with the discharge that it needs: the word of the cluster that its user has a live
session by the organization's single sign-on. It is good for ten minutes, and while the session lives.

Commands of bulkhead do this by themselves, with the session of "bulkhead auth login --org ORG".
This is for other clients. The token is that of --token: "-" reads standard input, "current" is
the one in use, as on a terminal without the flag. Programs that run where nobody is logged in, such as CI, need an owner's leave:
"bulkhead orgs sso set ORG --service-tokens allowed".`,
		Example: `  bulkhead auth login --org acme
  FLY_API_TOKEN=$(bulkhead tokens discharge --token - < token.txt) flyctl status`,
		RunE: func(c *cobra.Command, _ []string) error {
			cluster, err := s.chooseCluster()
			if err != nil {
				return err
			}
			t, err := s.chooseToken(text)
			if err != nil {
				return err
			}
			cluster.Token = t.text
			list := cluster.Token
			var until time.Time
			switch d := s.discharger(cluster); {
			case d == nil:
				s.ui.progress("this token needs no discharge")
			case d.session == "":
				return hint(usagef("there is no session to discharge the token with"),
					"log in with \"bulkhead auth login --org ORG\", as the user whose token it is")
			default:
				if list, err = d.renew(c.Context(), true); err != nil {
					return err
				}
				until = d.until
				s.ui.progress("good until %s", until.Format(time.RFC3339))
			}
			return s.ui.result(struct {
				Token string    `json:"token"`
				Until time.Time `json:"until,omitzero"`
			}{list, until}, func(w io.Writer) { fmt.Fprintln(w, list) })
		},
	}
	c.Flags().StringVar(&text, "token", "", tokenHelp)
	return c
}
