package warden

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/failpoint"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/privnet"
	"bulkhead/sandbox"
	"bulkhead/warden/router"
	"bulkhead/warden/wire"
)

// removeTimeout bounds the killing of a Machine's processes.
const removeTimeout = 30 * time.Second

// machine is what the warden holds in memory of a Machine. The Server's mu guards
// record; the rest belongs to who holds the Machine's lock.
type machine struct {
	record record
	// done is closed when the shim has been waited for; nil when it is not our child.
	done chan struct{}
	// stdout and stderr keep what the Machine wrote until somebody has read it, also
	// when the Machine ends while no worker runs. Nobody reads from them.
	stdout, stderr *os.File
	pidfd          *os.File
}

func (m *machine) close() {
	closeFiles([]*os.File{m.stdout, m.stderr, m.pidfd})
}

// adopt takes up a Machine whose sandbox runs or has ended, as its record says.
func (s *Server) adopt(m *machine, r record) error {
	err := s.holdOutput(m, r.Machine)
	if err != nil {
		return err
	}
	s.mu.Lock()
	m.record = r
	s.machines[r.Machine] = m
	s.slots[r.Slot] = r.Machine
	s.mu.Unlock()
	if m.pidfd, err = wire.OpenProcess(r.Shim); err == nil {
		go s.afterShim(r.Machine, m.pidfd)
	}
	return nil
}

// holdOutput keeps what the Machine writes, as soon as it may write anything: a command may
// have ended, and its shim with it, before anybody else reads.
func (s *Server) holdOutput(m *machine, id key.MachineID) (err error) {
	if m.stdout == nil {
		if m.stdout, err = s.openOutput(id, stdoutFile); err != nil {
			return err
		}
	}
	if m.stderr == nil {
		m.stderr, err = s.openOutput(id, stderrFile)
	}
	return err
}

// afterShim waits for the shim. One that was killed leaves its sandbox without a
// parent; it is ended, too.
func (s *Server) afterShim(id key.MachineID, pidfd *os.File) {
	if err := wire.WaitProcess(context.Background(), pidfd); err != nil {
		return // the warden closes
	}
	s.groups.Kill(string(id))
}

// openOutput opens the read end of a FIFO.
func (s *Server) openOutput(id key.MachineID, name string) (*os.File, error) {
	return openFIFO(filepath.Join(s.runDir(id), name), unix.O_RDONLY|unix.O_NONBLOCK)
}

// get returns the record of the Machine, which must have been started.
func (s *Server) get(id key.MachineID) (record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.machines[id]
	if m == nil || !m.record.Started {
		return record{}, fault.New(fault.NotFound, "machine %s has no sandbox", id)
	}
	return m.record, nil
}

// running reports whether the Machine's sandbox runs.
func (r record) running() bool {
	f, err := wire.OpenProcess(r.Shim)
	if err != nil {
		return false
	}
	defer f.Close()
	p := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}
	n, err := unix.Poll(p, 0)
	return err == nil && n == 0
}

// filesOf opens the files of an answer to OpStart and OpAttach.
func (s *Server) filesOf(r record) (files []*os.File, err error) {
	defer func() {
		if err != nil {
			closeFiles(files)
			files = nil
		}
	}()
	for _, name := range []string{stdoutFile, stderrFile, exitFile} {
		f, err := openFIFO(filepath.Join(s.runDir(r.Machine), name), unix.O_RDONLY|unix.O_NONBLOCK)
		if err != nil {
			return files, err
		}
		files = append(files, f)
	}
	if f, err := wire.OpenProcess(r.Shim); err == nil {
		files = append(files, f)
	}
	return files, nil
}

// attach finds a Machine started earlier.
func (s *Server) attach(id key.MachineID) ([]*os.File, error) {
	r, err := s.get(id)
	if err != nil {
		return nil, err
	}
	return s.filesOf(r)
}

// list is the census.
func (s *Server) list() ([]sandbox.Info, error) {
	s.mu.Lock()
	records := make([]record, 0, len(s.machines))
	for _, m := range s.machines {
		if m.record.Started {
			records = append(records, m.record)
		}
	}
	s.mu.Unlock()
	list := make([]sandbox.Info, 0, len(records))
	for _, r := range records {
		list = append(list, sandbox.Info{Machine: r.Machine, Instance: r.Instance, Slot: r.Slot, Running: r.running()})
	}
	return list, nil
}

// remove ends the Machine and takes away everything that start made.
func (s *Server) remove(ctx context.Context, id key.MachineID) error {
	ctx, cancel := context.WithTimeout(ctx, removeTimeout)
	defer cancel()
	unlock, err := s.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	return s.removeLocked(ctx, id)
}

// removeLocked works on whatever is there, in the order in which nothing is lost
// track of when it is interrupted: the directory with the record goes last.
func (s *Server) removeLocked(ctx context.Context, id key.MachineID) error {
	ctx, cancel := context.WithTimeout(ctx, removeTimeout)
	defer cancel()
	s.mu.Lock()
	m := s.machines[id]
	s.mu.Unlock()
	r, rerr := s.readRecord(id)
	if m != nil {
		r, rerr = m.record, nil
	}
	if err := failpoint.Write("warden/remove/cgroup", func() error { return s.groups.Remove(ctx, string(id)) }); err != nil {
		return err
	}
	if m != nil && m.done != nil {
		select {
		case <-m.done:
		case <-ctx.Done():
			return fault.Wrap(fault.Internal, ctx.Err(), "the shim of machine %s did not die", id)
		}
	}
	if rerr == nil {
		// The slot is this Machine's alone, so what hangs on it is, too.
		if owner := s.slotOwner(r.Slot); owner == "" || owner == id {
			if err := failpoint.Write("warden/remove/network", func() error { return s.router.Remove(r.member()) }); err != nil {
				return err
			}
		}
	}
	if err := failpoint.Write("warden/remove/disk", func() error { return s.removeDisk(id) }); err != nil {
		return err
	}
	if err := failpoint.Write("warden/remove/directory", func() error { return s.removeRunDir(id) }); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if m != nil {
		m.close()
		delete(s.machines, id)
	}
	if rerr == nil && s.slots[r.Slot] == id {
		delete(s.slots, r.Slot)
	}
	return nil
}

func (s *Server) slotOwner(slot privnet.Slot) key.MachineID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.slots[slot]
}

// removeRunDir removes the Machine's directory, the record last.
func (s *Server) removeRunDir(id key.MachineID) error {
	dir := s.runDir(id)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != recordFile {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return failpoint.Write("warden/remove/record", func() error { return os.RemoveAll(dir) })
}

// recover takes up what an earlier warden left: Machines that were started stay,
// everything half-made goes.
func (s *Server) recover(ctx context.Context) error {
	ids, err := s.idsOnDisk()
	if err != nil {
		return err
	}
	var members []router.Member
	var half []key.MachineID
	for _, id := range ids {
		r, err := s.readRecord(id)
		if err != nil || !r.Started {
			half = append(half, id)
			continue
		}
		if err := s.adopt(&machine{}, r); err != nil {
			s.log.Error("a machine cannot be taken up and is removed", "machine", id, "err", err)
			half = append(half, id)
			continue
		}
		members = append(members, r.member())
	}
	if s.router, err = router.Open(router.Config{RunDir: s.config.RunDir, Tag: s.config.Tag, Host: s.config.Host, Denied: s.config.Denied}, members); err != nil {
		return err
	}
	groups, err := s.groups.List()
	if err != nil {
		return err
	}
	for _, name := range groups {
		if id, err := key.ParseMachineID(name); err == nil && s.machines[id] == nil {
			half = append(half, id)
		}
	}
	for _, id := range half {
		s.log.Info("undoing a start that was interrupted", "machine", id)
		if err := s.removeLocked(ctx, id); err != nil {
			return fmt.Errorf("undo the interrupted start of machine %s: %w", id, err)
		}
	}
	return s.recoverNetwork()
}

// recoverNetwork removes connections without a Machine and ends Machines that have
// lost their connection, which cannot be given back to a running sandbox: their
// worker sees them end and starts them again.
func (s *Server) recoverNetwork() error {
	slots, err := s.router.Slots()
	if err != nil {
		return err
	}
	connected := map[privnet.Slot]bool{}
	for _, slot := range slots {
		connected[slot] = true
		if s.slotOwner(slot) == "" {
			if err := s.router.Remove(router.Member{Slot: slot}); err != nil {
				return err
			}
		}
	}
	for _, m := range s.machines {
		if !connected[m.record.Slot] && m.record.running() {
			s.log.Warn("a machine has lost its network and is ended", "machine", m.record.Machine)
			s.groups.Kill(string(m.record.Machine))
		}
	}
	return nil
}
