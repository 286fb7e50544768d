package supervisor

import (
	"bytes"
	"os"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// leastGrace is what a process that was left behind gets between TERM and
	// KILL, even when the app used up its share of the budget.
	leastGrace = 300 * time.Millisecond
	// patience bounds the wait for killed processes: one in an uninterruptible
	// system call (a dead network file system) dies when the kernel lets it.
	patience = 2 * time.Second
	// lookAgain is for processes whose end nobody tells us: those of docker exec
	// have a parent outside.
	lookAgain = 10 * time.Millisecond
)

// becomeSubreaper makes orphans of our descendants our children, as they would
// be of PID 1. See prctl(2), PR_SET_CHILD_SUBREAPER.
func becomeSubreaper() {
	_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
}

// sweep ends every process that is left: helpers in the background, orphans, as
// PID 1 also those of docker exec. Any of them may be writing to a database.
func (r *run) sweep(budget time.Duration, force bool) {
	left := others()
	if len(left) == 0 {
		return
	}
	grace := max(budget, leastGrace)
	if force {
		grace = leastGrace
	}
	r.cfg.Logger.Info("ending processes that were left behind", "pids", left, "budget", grace)
	for _, pid := range left {
		_ = syscall.Kill(pid, syscall.SIGTERM)
	}
	if r.noneBefore(time.Now().Add(grace), 0) {
		return
	}
	r.cfg.Logger.Warn("killing processes that were left behind", "pids", others())
	if !r.noneBefore(time.Now().Add(patience), syscall.SIGKILL) {
		r.cfg.Logger.Error("processes can't be killed", "pids", others())
	}
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
		left := others()
		if len(left) == 0 {
			return true
		}
		if sig != 0 {
			for _, pid := range left {
				_ = syscall.Kill(pid, sig)
			}
		}
		select {
		case <-r.died:
		case <-tick.C:
		case <-insist:
			return false
		case <-timeout.C:
			return len(others()) == 0
		}
	}
}

// others lists the processes that live and are ours to end: as PID 1 all of the
// namespace, otherwise our descendants. Where /proc can't tell, PID 1 still can
// end everybody: then the list is -1, as for kill(2).
func others() []int {
	self := os.Getpid()
	if link, err := os.Readlink("/proc/self"); err != nil || link != strconv.Itoa(self) {
		// No /proc, or one of another PID namespace.
		if self == 1 && syscall.Kill(-1, 0) == nil {
			return []int{-1}
		}
		return nil
	}
	parents := processes()
	var left []int
	for pid := range parents {
		if pid != self && (self == 1 || descends(pid, self, parents)) {
			left = append(left, pid)
		}
	}
	return left
}

func descends(pid, from int, parents map[int]int) bool {
	// No chain is longer than the number of processes; a loop can come from
	// reading /proc while it changes.
	for range len(parents) {
		parent, ok := parents[pid]
		if !ok {
			return false
		}
		if parent == from {
			return true
		}
		pid = parent
	}
	return false
}

// processes reads the parent of every live process from /proc. Zombies do not
// count: they run no code.
func processes() map[int]int {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer func() { _ = dir.Close() }()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil
	}
	parents := make(map[int]int, len(names))
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if parent, live := readStat(name); live {
			parents[pid] = parent
		}
	}
	return parents
}

// readStat returns the parent of a process and whether it lives. The second
// field of stat(5) is the name in parentheses and may itself hold anything, so
// the fields are counted from its last parenthesis.
func readStat(pid string) (parent int, live bool) {
	b, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return 0, false
	}
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return 0, false
	}
	fields := bytes.Fields(b[i+1:])
	if len(fields) < 2 {
		return 0, false
	}
	parent, err = strconv.Atoi(string(fields[1]))
	if err != nil {
		return 0, false
	}
	state := fields[0][0]
	return parent, state != 'Z' && state != 'X'
}

// ended returns the pid of a child that has ended and is still to be reaped, or
// 0. It leaves the child as it is.
func ended() int {
	// The head of siginfo_t as waitid(2) fills it in on 64-bit Linux.
	var info struct {
		signo, errno, code, _ int32
		pid                   int32
		_                     [108]byte
	}
	for {
		//nolint:gosec // the kernel fills in a struct of the right size and layout
		_, _, errno := syscall.Syscall6(syscall.SYS_WAITID, unix.P_ALL, 0, uintptr(unsafe.Pointer(&info)),
			unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, 0, 0)
		if errno == syscall.EINTR {
			continue
		}
		if errno != 0 {
			return 0
		}
		return int(info.pid)
	}
}
