package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"bulkhead/audit"
	"bulkhead/client"
)

// notProven is a failed verification.
func notProven(format string, args ...any) error {
	return hint(&failure{msg: fmt.Sprintf(format, args...), kind: "not_proven", exit: ExitFailed},
		"keep what you have: the checkpoint, and a copy of the log's directory; docs/audit.md says what it can mean")
}

// verified is the result of a verification.
type verified struct {
	Records    uint64 `json:"records"`         // that were checked
	Size       uint64 `json:"size"`            // of the log, by its checkpoint
	Extends    uint64 `json:"extends"`         // size of the kept checkpoint that it extends
	Root       []byte `json:"root"`            // hash of the tree
	Later      uint64 `json:"later,omitempty"` // records after the checkpoint
	Files      int    `json:"files,omitempty"` // of a directory, every byte of which was looked at
	Pinned     bool   `json:"pinned"`          // the key is that of a kept checkpoint, or was named
	Cosigners  int    `json:"cosignatures"`    // signatures of others on the checkpoint
	Witnesses  int    `json:"witnesses"`       // of these, those that were asked for, and are good
	Unverified string `json:"hint,omitempty"`  // what is not proven
}

func (s *session) auditVerifyCommand() *cobra.Command {
	var scope auditScope
	var kept, dir, key, proof string
	var witnesses []string
	c := &cobra.Command{
		Use: "verify", Short: "Prove that the log was not changed", Args: exactly(),
		Long: `Prove that the log was not changed, without believing the server: everything is computed
here. Without other flags it proves that every record that you may see is in the tree
that the log signs for, and that none in between was withheld. With --checkpoint it proves
also that this tree is the one of the kept checkpoint with records added after it, and
nothing else.

With --dir it reads a log's directory, or a copy, instead of asking the server, and
explains every byte of it: records, tiles, checkpoint, indexes. The directory is
controller/audit in bulkheadd's data directory; --key or --checkpoint says whose it is.

With --witness it wants the checkpoint signed by that witness too, whose key you have from
the witness: who holds the log's key and its disk cannot write another log then.

With --proof it checks a file that "bulkhead audit proof" made.`,
		Example: `  bulkhead audit verify --org acme --checkpoint audit-2026-01-02.checkpoint
  bulkhead audit verify --dir /backup/bulkhead/controller/audit --checkpoint audit-2026-01-02.checkpoint`,
		RunE: func(c *cobra.Command, _ []string) error {
			old, oldKey, err := readKept(kept)
			if err != nil {
				return err
			}
			if oldKey != "" {
				key = oldKey
			}
			switch {
			case dir != "" && proof != "":
				return usagef("--dir and --proof are two different things to check")
			case proof != "":
				return s.verifyProof(proof, key)
			case dir != "":
				return s.verifyDir(c.Context(), dir, key, old, witnesses)
			}
			api, err := s.client()
			if err != nil {
				return err
			}
			return s.verifyServer(c.Context(), api, scope.of(), key, old, witnesses)
		},
	}
	scope.flags(c)
	c.Flags().StringVar(&kept, "checkpoint", "", "a kept checkpoint that the log must extend")
	c.Flags().StringVar(&dir, "dir", "", "check this directory of a log")
	c.Flags().StringVar(&key, "key", "", "the log's key, for --dir and --proof without --checkpoint")
	c.Flags().StringArrayVar(&witnesses, "witness", nil, "key of a witness that must have signed the checkpoint, as its operator gives it; may be repeated")
	c.Flags().StringVar(&proof, "proof", "", "check this proof of a record")
	return c
}

// verifyServer checks what the server shows.
func (s *session) verifyServer(ctx context.Context, api *client.Client, org, key string, old *audit.Checkpoint, witnesses []string) error {
	out := verified{Pinned: key != "", Witnesses: len(witnesses)}
	if key == "" {
		var err error
		if key, err = api.AuditKey(ctx); err != nil {
			return err
		}
		s.ui.warn("the key and the checkpoint are the server's word of now; with --checkpoint they are yours")
	}
	newest, err := api.Audit(ctx, client.AuditQuery{Org: org, Limit: 1})
	if err != nil {
		return err
	}
	last, size := newest.Last, uint64(0)
	for _, e := range newest.Records {
		size = e.N + 1
	}
	cp, err := fetchCheckpoint(ctx, api, key, size)
	if err != nil {
		return err
	}
	if err := cosigned(cp, witnesses); err != nil {
		return err
	}
	v := audit.NewVerifier(cp, api.AuditFile)
	if old != nil {
		if err := v.Extends(ctx, old); err != nil {
			return notProven("%v", err)
		}
		out.Extends = old.Size
	}
	for next := uint64(1); next <= last; {
		p, err := api.Audit(ctx, client.AuditQuery{Org: org, Up: true, From: strconv.FormatUint(next, 10), Limit: 500})
		if err != nil {
			return err
		}
		if len(p.Records) == 0 {
			return notProven("the server shows no record %d of organization %q, and there are %d", next, org, last)
		}
		for _, e := range p.Records {
			if next > last {
				break
			}
			if err := checkShown(ctx, v, e, org, next); err != nil {
				return notProven("%v", err)
			}
			next++
		}
	}
	out.Records, out.Size, out.Root, out.Cosigners = last, cp.Size, cp.Root, len(cp.Others)
	return s.showVerified(out)
}

// cosigned wants a checkpoint signed by all witnesses named.
func cosigned(cp *audit.Checkpoint, witnesses []string) error {
	for _, w := range witnesses {
		if err := cp.Cosigned(w); err != nil {
			return notProven("%v", err)
		}
	}
	return nil
}

// checkShown checks one record that the server shows.
func checkShown(ctx context.Context, v *audit.Verifier, e audit.Entry, org string, seq uint64) error {
	r, err := e.Open()
	if err != nil {
		return err
	}
	if r.Org != org || r.Seq != seq {
		return fmt.Errorf("the server shows number %d of organization %q where number %d of %q is due: a record is withheld, or put in", r.Seq, r.Org, seq, org)
	}
	return v.Included(ctx, e)
}

// verifyDir checks a directory.
func (s *session) verifyDir(ctx context.Context, dir, key string, old *audit.Checkpoint, witnesses []string) error {
	if key == "" {
		return usagef("--dir needs the log's key: --checkpoint FILE, or --key KEY")
	}
	r, err := audit.VerifyDir(ctx, dir, key, old)
	if err != nil {
		return err
	}
	if len(r.Problems) > 0 {
		f := &failure{msg: "the log in " + dir + " is not what was written", kind: "not_proven", exit: ExitFailed, more: r.Problems, details: r.Problems}
		return f
	}
	if err := cosigned(r.Checkpoint, witnesses); err != nil {
		return err
	}
	out := verified{Witnesses: len(witnesses), Records: r.Records, Later: r.Later, Files: r.Files, Pinned: true, Size: r.Checkpoint.Size, Root: r.Checkpoint.Root, Cosigners: len(r.Checkpoint.Others)}
	if old != nil {
		out.Extends = old.Size
	}
	return s.showVerified(out)
}

func (s *session) showVerified(v verified) error {
	if !v.Pinned {
		v.Unverified = "not checked against a kept checkpoint"
	}
	return s.ui.result(v, func(w io.Writer) {
		fmt.Fprintf(w, "%s checked, in a log of %d", plural(int(v.Records), "record"), v.Size)
		if v.Files > 0 {
			fmt.Fprintf(w, ", %s", plural(v.Files, "file"))
		}
		fmt.Fprintln(w)
		if v.Extends > 0 {
			fmt.Fprintf(w, "the log extends the kept checkpoint of %d\n", v.Extends)
		}
		if v.Later > 0 {
			fmt.Fprintf(w, "%s came after the checkpoint and wait for the next\n", plural(int(v.Later), "record"))
		}
		if v.Cosigners > 0 {
			fmt.Fprintf(w, "%s of witnesses on the checkpoint, %d of them checked\n", plural(v.Cosigners, "signature"), v.Witnesses)
		}
	})
}

func (s *session) auditProofCommand() *cobra.Command {
	var scope auditScope
	c := &cobra.Command{
		Use: "proof NUMBER", Short: "Print a record with the proof that it is in the log", Args: exactly("NUMBER"),
		Long: `Print a record, by its number (seq) in its organization, with the proof that it is in the
log. The file proves itself to whoever has the log's key: "bulkhead audit verify --proof".`,
		Example: "  bulkhead audit proof 17 --org acme > record-17.proof",
		RunE: s.with(func(ctx context.Context, api *client.Client, args []string) error {
			seq, err := strconv.ParseUint(args[0], 10, 63)
			if err != nil || seq == 0 {
				return usagef("%q is no number of a record; \"bulkhead audit log --json\" shows them as seq", args[0])
			}
			p, err := api.Audit(ctx, client.AuditQuery{Org: scope.of(), Up: true, From: args[0], Limit: 1})
			if err != nil {
				return err
			}
			if len(p.Records) == 0 {
				return &failure{msg: fmt.Sprintf("there is no record %d; the newest is %d", seq, p.Last), kind: "not_found", exit: ExitNotFound}
			}
			key, err := api.AuditKey(ctx)
			if err != nil {
				return err
			}
			cp, err := fetchCheckpoint(ctx, api, key, p.Records[0].N+1)
			if err != nil {
				return err
			}
			proof, err := audit.NewVerifier(cp, api.AuditFile).Prove(ctx, p.Records[0], key)
			if err != nil {
				return notProven("%v", err)
			}
			e := json.NewEncoder(s.env.Stdout)
			e.SetEscapeHTML(false)
			e.SetIndent("", "  ")
			return e.Encode(proof)
		}),
	}
	scope.flags(c)
	return c
}

// verifyProof checks a file of auditProofCommand's.
func (s *session) verifyProof(path, key string) error {
	b, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		return usagef("the proof cannot be read: %v", err)
	}
	var p audit.Proof
	if err := json.Unmarshal(b, &p); err != nil {
		return usagef("%s is no proof: %v", path, err)
	}
	if key == "" {
		return usagef("--proof needs the log's key: --checkpoint FILE, or --key KEY")
	}
	e, err := p.Verify(strings.TrimSpace(key))
	if err != nil {
		return notProven("%v", err)
	}
	return s.showRecord(e)
}
