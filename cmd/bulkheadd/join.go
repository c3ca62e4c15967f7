package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"time"

	"bulkhead/supervisor"
)

const joinUsage = `Usage: bulkheadd join TOKEN --node NAME --dir DIR [flags]

Makes this server a node of a cluster: makes a key, spends the token of
"bulkhead node token", and keeps key, certificate and where the cluster is in DIR. The key
never leaves it. TOKEN is - to read it from standard input.

So far this is all: a role that renews and works with the identity comes with clusters of
several machines.

Flags:
  --node NAME            what the node is called in the cluster
  --dir DIR              directory for identity.pem and node.json; it is made
  --address HOST:PORT    where to connect to, if the name in the token leads elsewhere
`

func joinCommand(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	var j supervisor.Join
	fs := flag.NewFlagSet("join", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&j.Node, "node", "", "")
	fs.StringVar(&j.Dir, "dir", "", "")
	fs.StringVar(&j.Address, "address", "", "")
	if len(args) > 0 && (args[0] == "-" || args[0] != "" && args[0][0] != '-') {
		j.Token, args = args[0], args[1:]
	}
	err := fs.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(stdout, joinUsage)
		return exitOK
	}
	if j.Token == "" && fs.NArg() == 1 {
		j.Token = fs.Arg(0)
	}
	if err != nil || j.Token == "" || j.Node == "" || j.Dir == "" {
		fmt.Fprintln(stderr, "bulkheadd: join wants a token, --node and --dir; \"bulkheadd join --help\" says more")
		return exitUsage
	}
	if j.Token == "-" {
		b, err := io.ReadAll(io.LimitReader(stdin, 1<<16))
		if err != nil {
			fmt.Fprintf(stderr, "bulkheadd: %v\n", err)
			return exitFailed
		}
		j.Token = string(b)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	id, err := j.Run(ctx)
	if err != nil {
		fmt.Fprintf(stderr, "bulkheadd: %v\n", err)
		return exitFailed
	}
	fmt.Fprintln(stdout, id)
	return exitOK
}
