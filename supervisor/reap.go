package supervisor

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// becomeSubreaper makes orphans of our descendants our children, as they would
// be of PID 1. See prctl(2), PR_SET_CHILD_SUBREAPER.
func becomeSubreaper() {
	_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
}

// reap collects every child that ended, ours and adopted ones. It is called
// for each SIGCHLD; several ends may share one. It is the only owner of wait.
func (s *Supervisor) reap() {
	told := s.signals.passed() // before our lock: signals are forwarded the other way round
	tell := s.signals.tell()
	s.mu.Lock()
	defer s.mu.Unlock()
	for pid := ended(); pid > 0; pid = ended() {
		p, ours := s.children[pid]
		if ours && !told && !p.warned && s.scope == Group {
			// The leader ended first, so its group is to end too. Until it is
			// reaped, its number can't belong to anything else.
			_ = syscall.Kill(-pid, tell)
		}
		var status syscall.WaitStatus
		if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil {
			break
		}
		if ours {
			delete(s.children, pid)
			s.ends++
			p.gone, p.exit, p.nth = true, exitOf(status), s.ends
			if s.job != nil {
				s.job.ended()
				s.job = nil
			}
		}
	}
	if s.job != nil {
		if sig := stopOf(s.job.group); sig != 0 {
			s.job.stopped(sig)
		}
	}
	select {
	case s.died <- struct{}{}:
	default:
	}
}

func exitOf(status syscall.WaitStatus) Exit {
	if status.Signaled() {
		return Exit{Code: 128 + int(status.Signal()), Signal: status.Signal()}
	}
	return Exit{Code: status.ExitStatus()}
}

// siginfo is the head of siginfo_t as waitid(2) fills it in on 64-bit Linux.
type siginfo struct {
	signo, errno, code, _ int32
	pid, uid, status      int32
	_                     [100]byte
}

// waitid asks for children in a state, and reports whether the question could
// be answered.
func waitid(kind, id, options int) (info siginfo, ok bool) {
	for {
		//nolint:gosec // the kernel fills in a struct of the right size and layout
		_, _, errno := syscall.Syscall6(syscall.SYS_WAITID, uintptr(kind), uintptr(id), uintptr(unsafe.Pointer(&info)), uintptr(options), 0, 0)
		switch errno {
		case 0:
			return info, true
		case syscall.EINTR:
		default:
			return siginfo{}, false
		}
	}
}

// ended returns the pid of a child that has ended and is still to be reaped, or
// 0. It leaves the child as it is.
func ended() int {
	info, ok := waitid(unix.P_ALL, 0, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT)
	if !ok {
		return 0
	}
	return int(info.pid)
}

// hasChildren reports whether there is any child, adopted ones included.
func hasChildren() bool {
	_, ok := waitid(unix.P_ALL, 0, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT)
	return ok
}
