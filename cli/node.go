package cli

import (
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"bulkhead/client"
	"bulkhead/fault"
	"bulkhead/key"
)

func (s *session) nodeCommand() *cobra.Command {
	c := group("node", "List, add, remove and readmit the servers of the cluster", "List, add, remove and readmit the servers of the cluster.")
	c.AddCommand(s.nodeListCommand(), s.nodeRemoveCommand(), s.nodeReadmitCommand(), s.nodeTokenCommand())
	return c
}

func (s *session) nodeListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the nodes", Args: exactly(),
		Long: `List the nodes, with when each was last there. "unknown" is one that has not
reported since the controller started, "joined" one that has an identity and never
reported, "removed" one that is refused.`,
		RunE: func(c *cobra.Command, _ []string) error {
			api, err := s.client()
			if err != nil {
				return err
			}
			nodes, err := api.Nodes(c.Context())
			if err != nil {
				return err
			}
			if nodes == nil {
				nodes = []client.Node{}
			}
			return s.ui.result(nodes, func(w io.Writer) {
				var rows [][]string
				for _, n := range nodes {
					memory := strconv.FormatInt(n.UsedMemoryMB, 10)
					if n.MemoryMB > 0 {
						memory += "/" + strconv.FormatInt(n.MemoryMB, 10)
					}
					rows = append(rows, []string{string(n.Name), n.State, n.Region, strconv.Itoa(n.Machines), memory, n.LastSeen})
				}
				table(w, []string{"NAME", "STATE", "REGION", "MACHINES", "MEMORY MIB", "LAST SEEN"}, rows)
			})
		},
	}
}

func (s *session) nodeRemoveCommand() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use: "remove NAME", Aliases: []string{"rm"}, Short: "Remove a node that is gone for good", Args: exactly("NAME"),
		Long: `Remove a node that is gone for good. One that is connected or has Machines is
refused without --force.

With --force its Machines count as destroyed: their names are free, and deletions of
apps that waited for them end. From then on the node is refused. If it still runs, and
reaches the controller again, it is told, and destroys its Machines; one that cannot be
told runs them until it is switched off or wiped.`,
		RunE: func(c *cobra.Command, args []string) error {
			api, name, err := s.clientAndNode(args[0])
			if err != nil {
				return err
			}
			out, err := api.RemoveNode(c.Context(), name, force)
			if !force && fault.Is(err, fault.Precondition) {
				return hint(err, "add --force if the node is gone for good")
			}
			if err != nil {
				return nodeError(err)
			}
			s.ui.progress("removed node %s; %s destroyed with it", name, plural(len(out.Destroyed), "Machine"))
			return s.ui.result(out, func(w io.Writer) {
				for _, id := range out.Destroyed {
					fmt.Fprintln(w, id)
				}
			})
		},
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "remove it although it is connected, and give up its Machines")
	return c
}

func (s *session) nodeReadmitCommand() *cobra.Command {
	return &cobra.Command{
		Use: "readmit NAME", Short: "Take a removed node back", Args: exactly("NAME"),
		Long: "Take a removed node back: its worker may connect again, and destroys what it still runs of before.",
		RunE: func(c *cobra.Command, args []string) error {
			api, name, err := s.clientAndNode(args[0])
			if err != nil {
				return err
			}
			if err := api.ReadmitNode(c.Context(), name); err != nil {
				return nodeError(err)
			}
			s.ui.progress("readmitted node %s", name)
			return s.ui.result(map[string]any{"name": name, "readmitted": true}, func(io.Writer) {})
		},
	}
}

// clientAndNode is what commands on one node start with.
func (s *session) clientAndNode(arg string) (*client.Client, key.Node, error) {
	name, err := key.ParseNode(arg)
	if err != nil {
		return nil, "", hint(usagef("%s", err), "\"bulkhead node list\" shows the names")
	}
	api, err := s.client()
	return api, name, err
}

// nodeError adds the next step to a node that is not there.
func nodeError(err error) error {
	if fault.Is(err, fault.NotFound) {
		return hint(err, "\"bulkhead node list\" shows the nodes there are")
	}
	return err
}

func (s *session) nodeTokenCommand() *cobra.Command {
	var role, node string
	var life time.Duration
	c := &cobra.Command{
		Use: "token", Short: "Make a token with which one server joins the cluster", Args: exactly(),
		Long: `Make a token with which one server joins the cluster, once, as one role, within
minutes. Run "bulkheadd join TOKEN" there.

Without --node the token is good for any name that no node has. With it the token is
good for that name alone, also for a node that joined before and lost its certificate.`,
		RunE: func(c *cobra.Command, _ []string) error {
			api, err := s.client()
			if err != nil {
				return err
			}
			out, err := api.MakeJoinToken(c.Context(), role, key.Node(node), life)
			if err != nil {
				return err
			}
			s.ui.progress("good once, for a node that becomes %s, until %s", out.Role, out.ExpiresAt)
			return s.ui.result(out, func(w io.Writer) { fmt.Fprintln(w, out.Token) })
		},
	}
	c.Flags().StringVar(&role, "role", "worker", "what the node becomes: worker or edge")
	c.Flags().StringVar(&node, "node", "", "the only name the token is good for")
	c.Flags().DurationVar(&life, "expiry", 10*time.Minute, "how long the token is good, at most 1h")
	return c
}
