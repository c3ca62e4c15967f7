package client

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"

	"bulkhead/api/execstream"
	"bulkhead/fault"
	"bulkhead/key"
)

// Streams are where the bytes of a command come from and go to. Stdin may be nil.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// ExecStream runs a command inside a started Machine and carries its bytes, as they are,
// while it runs; in.Stdin is not used. The result has no output. A Read of Stdin that is
// under way when the command ends may outlast the call.
func (c *Client) ExecStream(ctx context.Context, app string, id key.MachineID, in ExecInput, s Streams) (ExecResult, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	body, frames := io.Pipe()
	defer body.CloseWithError(io.ErrClosedPipe)
	in.Stdin = ""
	begin, err := json.Marshal(in)
	if err != nil {
		return ExecResult{}, fault.Wrap(fault.Invalid, err, "the command cannot be written as JSON")
	}
	go func() { frames.CloseWithError(sendInput(frames, begin, s.Stdin)) }()
	resp, err := c.send(ctx, call{method: http.MethodPost, path: machinePath(app, id, "exec", "stream"), stream: body, media: execstream.MediaType})
	if err != nil {
		return ExecResult{}, err
	}
	defer resp.Body.Close()
	return c.receiveOutput(ctx, resp.Body, s)
}

// sendInput writes the first frame and then what comes out of stdin.
func sendInput(w io.Writer, begin []byte, stdin io.Reader) error {
	if err := execstream.Write(w, execstream.Begin, begin); err != nil {
		return err
	}
	for b := make([]byte, execstream.MaxData/2); stdin != nil; {
		n, err := stdin.Read(b)
		if n > 0 {
			if err := execstream.Write(w, execstream.Stdin, b[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	return execstream.Write(w, execstream.StdinEnd, nil)
}

// receiveOutput takes the frames of an answer.
func (c *Client) receiveOutput(ctx context.Context, from io.Reader, s Streams) (res ExecResult, err error) {
	for r := execstream.NewReader(from); ; {
		t, b, err := r.Next()
		if err == io.EOF {
			return res, fault.New(fault.Unavailable, "%s ended the stream without the command's result; the command was killed", c.base.Host)
		}
		if err != nil {
			return res, c.transportError(ctx, err)
		}
		switch t {
		case execstream.Stdout:
			_, err = s.Stdout.Write(b)
		case execstream.Stderr:
			_, err = s.Stderr.Write(b)
		case execstream.Beat:
		case execstream.Exit:
			if err := json.Unmarshal(b, &res); err != nil {
				return res, fault.Wrap(fault.Internal, err, "%s sent a result that is not the expected JSON", c.base.Host)
			}
			return res, nil
		case execstream.Failed:
			var f struct {
				Error, Status string
				Code          int
			}
			if err := json.Unmarshal(b, &f); err != nil {
				return res, fault.Wrap(fault.Internal, err, "%s sent an error that is not the expected JSON", c.base.Host)
			}
			e := fault.New(kindOf(f.Code), "%s", f.Error)
			if f.Status != "" && f.Status != "unknown" {
				e = e.WithStatus(f.Status)
			}
			return res, e
		default:
			return res, fault.New(fault.Internal, "%s sent a frame of type %q, which this client does not know", c.base.Host, byte(t))
		}
		if err != nil {
			return res, fault.New(fault.Invalid, "the command's output cannot be written: %v; the command was killed", err)
		}
	}
}
