package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"bulkhead/client"
)

func (s *session) logsCommand() *cobra.Command {
	var follow bool
	var tail int
	var id string
	var f logFilter
	c := &cobra.Command{
		Use: "logs", Short: "Show what an app wrote to its output", Args: exactly(),
		Long: `Show what an app's Machines wrote to standard output and standard error.

--since and --until take a time such as 2026-01-02T15:04:05Z, or how long ago such as 10m.
They and --grep look through the lines that the platform keeps, and -n is then the number
of lines shown at most, all of them by default.

With --json every line is one object: {"timestamp", "machine", "stream", "message"}.`,
		Example: `  bulkhead logs --app shop --follow
  bulkhead logs --app shop --since 1h --grep "(?i)error"`,
		RunE: func(c *cobra.Command, _ []string) error {
			if tail < 0 {
				return usagef("-n %d is negative", tail)
			}
			keep, err := f.parse(time.Now(), follow)
			if err != nil {
				return err
			}
			q := client.LogQuery{Tail: tail, Follow: follow}
			if keep != nil {
				q.Tail = mostLogLines
				if !c.Flags().Changed("tail") {
					tail = mostLogLines
				}
			}
			api, app, err := s.clientAndApp()
			if err != nil {
				return err
			}
			if id != "" {
				if q.Machine, err = s.machineID(c.Context(), api, app, id); err != nil {
					return err
				}
			}
			q.App = app
			shown, err := s.logs(c.Context(), api, q, tail, keep)
			if err == nil && shown == 0 && !follow {
				s.ui.progress("%s", nothingSaid(app, keep != nil))
			}
			if q.Machine != "" {
				return machineError(err, app, q.Machine)
			}
			return s.noApp(c.Context(), api, app, err)
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what is written from now on, until Ctrl-C")
	c.Flags().IntVarP(&tail, "tail", "n", 100, "number of past lines to show")
	c.Flags().StringVar(&f.since, "since", "", "only lines from this time on")
	c.Flags().StringVar(&f.until, "until", "", "only lines before this time")
	c.Flags().StringVar(&f.grep, "grep", "", "only lines that this regular expression matches")
	c.Flags().StringVar(&id, "machine", "", "only this Machine, by id or name")
	return c
}

// logs prints the lines as they come. Past lines of several Machines come Machine by
// Machine, each with its own tail: they are put in order, and the last ones kept.
func (s *session) logs(ctx context.Context, api *client.Client, q client.LogQuery, tail int,
	keep func(client.LogLine) bool) (shown int, err error) {
	print := func(l client.LogLine) error {
		if keep != nil && !keep(l) {
			return nil
		}
		shown++
		return s.ui.line(l, s.logText(l))
	}
	if q.Follow || q.Machine != "" && keep == nil {
		err = api.Logs(ctx, q, print)
		return shown, err
	}
	var lines []client.LogLine
	err = api.Logs(ctx, q, func(l client.LogLine) error {
		if keep == nil || keep(l) {
			lines = append(lines, l)
		}
		return nil
	})
	slices.SortStableFunc(lines, func(a, b client.LogLine) int { return a.Timestamp.Compare(b.Timestamp) })
	for _, l := range lines[max(len(lines)-tail, 0):] {
		if perr := print(l); perr != nil {
			return shown, perr
		}
	}
	return shown, err
}

// nothingSaid says why no line is shown.
func nothingSaid(app string, filtered bool) string {
	if filtered {
		return "no line that the platform keeps matches"
	}
	return "no Machine of app " + app + " has written anything"
}

// logText is a log line as people read it. On a terminal the app's control
// characters are made harmless; a file or pipe gets the bytes that it wrote.
func (s *session) logText(l client.LogLine) string {
	msg := string(l.Raw())
	if s.ui.outTTY {
		msg = clean(l.Message)
	}
	msg = strings.TrimRight(msg, "\r\n")
	return fmt.Sprintf("%s %s %s %s", l.Timestamp.UTC().Format("2006-01-02T15:04:05.000Z"), clean(string(l.Machine)),
		clean(l.Stream), msg)
}

func (s *session) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show an app and its Machines", Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			api, name, err := s.clientAndApp()
			if err != nil {
				return err
			}
			app, err := api.App(c.Context(), name)
			if err != nil {
				return s.noApp(c.Context(), api, name, err)
			}
			ms, err := s.machines(c.Context(), api, name)
			if err != nil {
				return err
			}
			out := struct {
				client.App
				URL      string           `json:"url,omitempty"`
				Machines []client.Machine `json:"machines"`
			}{app, "", ms}
			if slices.ContainsFunc(ms, reachable) {
				out.URL = api.AppURL(name)
			}
			return s.ui.result(out, func(w io.Writer) {
				fmt.Fprintf(w, "app      %s\n", clean(app.Name))
				fmt.Fprintf(w, "status   %s\n", clean(app.Status))
				if app.StatusReason != "" {
					fmt.Fprintf(w, "reason   %s\n", clean(app.StatusReason))
				}
				fmt.Fprintf(w, "url      %s\n\n", orElse(out.URL, "none: no Machine has a service on port 443"))
				machineTable(w, ms)
				unhealthy(w, ms, time.Now())
			})
		},
	}
}

// reachable reports whether a Machine serves the app's HTTPS address.
func reachable(m client.Machine) bool { return m.Config != nil && hasHTTPS(m.Config) }

func (s *session) openCommand() *cobra.Command {
	var print bool
	c := &cobra.Command{
		Use: "open", Short: "Open an app in the browser", Args: exactly(),
		Long: "Open an app in the browser: the one that $BROWSER names, or the system's own.",
		RunE: func(c *cobra.Command, _ []string) error {
			api, name, err := s.clientAndApp()
			if err != nil {
				return err
			}
			if _, err := api.App(c.Context(), name); err != nil {
				return s.noApp(c.Context(), api, name, err)
			}
			url := api.AppURL(name)
			if ms, err := api.Machines(c.Context(), name); err == nil && !slices.ContainsFunc(ms, reachable) {
				s.ui.warn("no Machine of app %s has a service on port 443: nothing answers there", name)
			}
			if !print && !s.ui.json {
				if err := s.browse(url); err != nil {
					return hint(&failure{msg: fmt.Sprintf("cannot open a browser: %v", err), kind: "internal", exit: ExitFailed,
						cause: err}, "open %s yourself", url)
				}
				s.ui.progress("opened %s", url)
				return nil
			}
			return s.ui.result(map[string]string{"url": url}, func(w io.Writer) { fmt.Fprintln(w, url) })
		},
	}
	c.Flags().BoolVar(&print, "print", false, "print the address instead")
	return c
}

func (s *session) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version of this program", Args: exactly(),
		RunE: func(*cobra.Command, []string) error {
			v := versionInfo()
			return s.ui.result(v, func(w io.Writer) { fmt.Fprintf(w, "bulkhead %s %s/%s %s\n", v.Version, v.OS, v.Arch, v.Go) })
		},
	}
}

func (s *session) completionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "completion bash|zsh|fish|powershell", Short: "Print a script that completes commands in a shell",
		Long: `Print a script that completes bulkhead's commands and flags in a shell.

  bash        source <(bulkhead completion bash)
  zsh         bulkhead completion zsh > "${fpath[1]}/_bulkhead"
  fish        bulkhead completion fish > ~/.config/fish/completions/bulkhead.fish
  powershell  bulkhead completion powershell | Out-String | Invoke-Expression`,
		ValidArgs: []string{"bash", "zsh", "fish", "powershell"},
		Args:      exactly("a shell: bash, zsh, fish or powershell"),
		RunE: func(c *cobra.Command, args []string) error {
			root := c.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(s.env.Stdout, true)
			case "zsh":
				return root.GenZshCompletion(s.env.Stdout)
			case "fish":
				return root.GenFishCompletion(s.env.Stdout, true)
			case "powershell":
				return root.GenPowerShellCompletionWithDesc(s.env.Stdout)
			}
			return usagef("there is no completion for %q; there is for bash, zsh, fish and powershell", args[0])
		},
	}
}
