package supervisor

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// leastGrace is what a process that was left behind gets between TERM and
	// KILL, even when the app used up its share of the budget.
	leastGrace = 300 * time.Millisecond
	// patience bounds the wait for killed processes: one in an uninterruptible
	// system call (a dead network file system) dies when the kernel lets it.
	patience = 2 * time.Second
	// lookAgain is for processes whose end nobody reports to us: those of docker exec
	// have a parent outside.
	lookAgain = 10 * time.Millisecond
)

// sweep ends every process that is left: helpers in the background, orphans, as
// PID 1 also those of docker exec. Any of them may be writing to a database.
// Those in a process group that has had its stop signal don't get it twice.
func (r *run) sweep(budget time.Duration, force bool) {
	left := r.others()
	if len(left) == 0 {
		return
	}
	grace := max(budget, leastGrace)
	if force {
		grace = leastGrace
	}
	r.cfg.Logger.Info("ending processes that were left behind", "pids", pids(left), "budget", grace.Round(time.Millisecond))
	for _, p := range left {
		if !r.told(p.group) {
			p.signal(syscall.SIGTERM)
		}
	}
	if r.noneBefore(time.Now().Add(grace), 0) {
		return
	}
	r.cfg.Logger.Warn("killing processes that were left behind", "pids", pids(r.others()))
	if !r.noneBefore(time.Now().Add(patience), syscall.SIGKILL) {
		r.cfg.Logger.Error("processes can't be killed", "pids", pids(r.others()))
	}
}

// told reports whether a whole group has had its stop signal.
func (r *run) told(group int) bool {
	return r.cfg.Scope == Group && slices.ContainsFunc(r.procs, func(p *child) bool { return p.PID == group })
}

// noneBefore waits until no other process is left, and signals those that are
// with sig, unless it is 0. It reports whether none is left.
func (r *run) noneBefore(end time.Time, sig syscall.Signal) bool {
	insist := r.signals.insist
	if sig != 0 {
		insist = nil // already doing all that can be done
	}
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	timeout := time.NewTimer(time.Until(end))
	defer timeout.Stop()
	for {
		left := r.others()
		if len(left) == 0 {
			return true
		}
		if sig != 0 {
			for _, p := range left {
				p.signal(sig)
			}
		}
		select {
		case <-r.died:
		case <-tick.C:
		case <-insist:
			return false
		case <-timeout.C:
			return len(r.others()) == 0
		}
	}
}

// process is what /proc says of one.
type process struct{ pid, parent, group int }

func pids(list []process) []int {
	var numbers []int
	for _, p := range list {
		numbers = append(numbers, p.pid)
	}
	return numbers
}

// signal sends a signal to the process, and not to another one that has got its
// number since: it is looked at again while a descriptor holds on to it.
func (p process) signal(sig syscall.Signal) {
	self := os.Getpid()
	if self == 1 {
		_ = syscall.Kill(p.pid, sig) // all are ours to end, whichever it is
		return
	}
	fd, err := unix.PidfdOpen(p.pid, 0)
	if err == unix.ESRCH {
		return
	}
	if now, live := readStat(p.pid); !live || (now.parent != p.parent && now.parent != self) {
		p.pid = 0
	}
	if err != nil { // an old kernel
		if p.pid > 0 {
			_ = syscall.Kill(p.pid, sig)
		}
		return
	}
	if p.pid > 0 {
		_ = unix.PidfdSendSignal(fd, sig, nil, 0)
	}
	_ = unix.Close(fd)
}

// others lists the processes that live and are ours to end: as PID 1 all of the
// namespace, otherwise our descendants. Where /proc does not show them,
// PID 1 can still end all of them: then the list is -1, as for kill(2).
func (r *run) others() []process {
	self := os.Getpid()
	if self != 1 && !hasChildren() {
		return nil // nor grandchildren: the orphans among them would be ours
	}
	if link, err := os.Readlink("/proc/self"); err != nil || link != strconv.Itoa(self) {
		// No /proc, or one of another PID namespace.
		if self == 1 && syscall.Kill(-1, 0) == nil {
			return []process{{pid: -1}}
		}
		return nil
	}
	all := processes()
	var left []process
	for pid, p := range all {
		if pid != self && (self == 1 || descends(pid, self, all)) && !slices.Contains(r.spared, pid) {
			left = append(left, p)
		}
	}
	return left
}

// ancestry returns a process of our PID namespace that came from the outside,
// and those between it and there. It is nil for a process that is ours to end:
// one that we or the app started, or that was left to us.
func ancestry(pid int) []int {
	self := os.Getpid()
	var line []int
	for all := processes(); pid > 0 && pid != self && len(line) < len(all); pid = all[pid].parent {
		line = append(line, pid)
	}
	if pid != 0 {
		return nil
	}
	return line
}

func descends(pid, from int, all map[int]process) bool {
	// No chain is longer than the number of processes; a loop can come from
	// reading /proc while it changes.
	for range len(all) {
		p, ok := all[pid]
		if !ok {
			return false
		}
		if p.parent == from {
			return true
		}
		pid = p.parent
	}
	return false
}

// processes reads every live process from /proc. Zombies do not count: they
// run no code.
func processes() map[int]process {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer func() { _ = dir.Close() }()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil
	}
	all := make(map[int]process, len(names))
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if p, live := readStat(pid); live {
			all[pid] = p
		}
	}
	return all
}

// readStat looks a process up, and reports whether it lives. The second field of
// stat(5) is the name in parentheses and may itself hold anything, so the fields
// are counted from its last parenthesis: state, parent, group.
func readStat(pid int) (p process, live bool) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return process{}, false
	}
	var state byte
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return process{}, false
	}
	p.pid = pid
	if _, err := fmt.Sscanf(string(b[i+1:]), " %c %d %d", &state, &p.parent, &p.group); err != nil {
		return process{}, false
	}
	return p, state != 'Z' && state != 'X'
}
