// Package wire is what passes between a worker, its warden and the shims, below the
// level of meaning: frames on unix sockets with open files riding on them, the
// shim's few messages, and processes as pidfds.
//
// It links neither net nor encoding/json, because the shim links it, and one shim
// lives beside every Machine.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
)

// MaxMessage bounds a frame in bytes. It equals sandbox.MaxMessage.
const MaxMessage = 16 << 20

// MaxFiles bounds the open files of a frame.
const MaxFiles = 8

// Conn is a stream socket that can carry files. *net.UnixConn fits it through
// client.Conn, a bare descriptor through FD.
type Conn interface {
	io.ReadWriter
	// ReadRights reads bytes and control messages. n is 0 at the end of the stream.
	ReadRights(b, oob []byte) (n, oobn int, truncated bool, err error)
	// WriteRights writes all of b with the control message oob.
	WriteRights(b, oob []byte) error
}

// Send sends one frame: a length of four bytes, big-endian, and body. The files stay
// open and the caller's.
func Send(c Conn, body []byte, files ...*os.File) error {
	if len(body) > MaxMessage || len(files) > MaxFiles {
		return fmt.Errorf("message of %d bytes and %d files is over the limit of %d and %d", len(body), len(files), MaxMessage, MaxFiles)
	}
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		rights = syscall.UnixRights(fds...)
	}
	if err := c.WriteRights(binary.BigEndian.AppendUint32(nil, uint32(len(body))), rights); err != nil {
		return err
	}
	_, err := c.Write(body)
	return err
}

// Receive returns the body and the files of one frame; the files are the caller's to
// close. At a clean end of the stream the error is io.EOF. After any other error
// the connection is of no more use.
func Receive(c Conn) (body []byte, files []*os.File, err error) { return ReceiveAtMost(c, MaxMessage) }

// ReceiveAtMost is Receive of a frame whose body has at most limit bytes.
func ReceiveAtMost(c Conn, limit int) (body []byte, files []*os.File, err error) {
	defer func() {
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			body, files = nil, nil
		}
	}()
	var head [4]byte
	for got := 0; got < len(head); {
		oob := make([]byte, syscall.CmsgSpace(MaxFiles*4))
		n, oobn, truncated, err := c.ReadRights(head[got:], oob)
		if err != nil {
			return nil, files, err
		}
		fs, err := parseRights(oob[:oobn])
		files = append(files, fs...)
		if err != nil {
			return nil, files, err
		}
		if truncated || len(files) > MaxFiles {
			return nil, files, fmt.Errorf("message carries more than %d files", MaxFiles)
		}
		if n == 0 {
			if got == 0 {
				return nil, files, io.EOF
			}
			return nil, files, io.ErrUnexpectedEOF
		}
		got += n
	}
	size := int(binary.BigEndian.Uint32(head[:]))
	if size > limit {
		return nil, files, fmt.Errorf("message of %d bytes is over the limit of %d", size, limit)
	}
	// Grow with what arrives, not with what the length claims.
	body, err = io.ReadAll(io.LimitReader(c, int64(size)))
	if err == nil && len(body) < size {
		err = fmt.Errorf("message ends after %d of %d bytes: %w", len(body), size, io.ErrUnexpectedEOF)
	}
	return body, files, err
}

// parseRights takes the files out of control messages.
func parseRights(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for i := range msgs {
		fds, err := syscall.ParseUnixRights(&msgs[i])
		if err != nil {
			return files, err
		}
		for _, fd := range fds {
			syscall.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

// FD is a Conn on a blocking descriptor.
type FD int

// Read implements io.Reader.
func (fd FD) Read(b []byte) (int, error) {
	n, _, _, err := fd.ReadRights(b, nil)
	if err == nil && n == 0 && len(b) > 0 {
		err = io.EOF
	}
	return n, err
}

// Write implements io.Writer.
func (fd FD) Write(b []byte) (int, error) {
	for done := 0; done < len(b); {
		n, err := syscall.Write(int(fd), b[done:])
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return done, err
		}
		done += n
	}
	return len(b), nil
}

// ReadRights implements Conn.
func (fd FD) ReadRights(b, oob []byte) (n, oobn int, truncated bool, err error) {
	for {
		n, oobn, flags, _, err := syscall.Recvmsg(int(fd), b, oob, syscall.MSG_CMSG_CLOEXEC)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		return max(n, 0), oobn, flags&syscall.MSG_CTRUNC != 0, err
	}
}

// WriteRights implements Conn.
func (fd FD) WriteRights(b, oob []byte) error {
	n, err := syscall.SendmsgN(int(fd), b, oob, nil, syscall.MSG_NOSIGNAL)
	if err != nil {
		return err
	}
	_, err = fd.Write(b[n:])
	return err
}
