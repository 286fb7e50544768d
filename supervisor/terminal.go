package supervisor

import (
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// job is the app as a job of the terminal that stdin is: what a shell does for
// its jobs, we do for the one that we run. There is a job only when stdin is
// our controlling terminal and there is a single process to hand it to.
type job struct {
	group int
	// stopSent is true while a stop signal that somebody sent us has been passed
	// on: such a stop is meant.
	stopSent bool
}

// noTerminal is what foreground returns when stdin is not our controlling
// terminal.
const noTerminal = -1

// foreground returns the terminal's foreground process group. It is 0 for one
// outside our PID namespace, and so is our own group then.
func foreground() int {
	group, err := unix.IoctlGetInt(0, unix.TIOCGPGRP)
	if err != nil {
		return noTerminal
	}
	return group
}

// ownsTerminal reports whether stdin is our controlling terminal and we are in
// its foreground, so that it is ours to hand over.
func ownsTerminal() bool { return foreground() == unix.Getpgrp() }

// setForeground makes a process group of our session the terminal's foreground.
// From the background that raises SIGTTOU, unless this thread blocks it.
func setForeground(group int) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var ttou, before unix.Sigset_t
	ttou.Val[0] = 1 << (unix.SIGTTOU - 1)
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &ttou, &before); err != nil {
		return err
	}
	defer func() { _ = unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil) }()
	return unix.IoctlSetPointerInt(0, unix.TIOCSPGRP, group)
}

// sent is called for each signal before the app gets it.
func (j *job) sent(sig syscall.Signal) {
	switch sig {
	case syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU:
		j.stopSent = true
	case syscall.SIGCONT:
		// A shell's fg makes us the foreground first; it is the app that is meant.
		j.stopSent = false
		if ownsTerminal() {
			_ = setForeground(j.group)
		}
	}
}

// stopped is called when the app was stopped by sig. At the keyboard that is
// ctrl-Z, and means us too: the shell that started us is to have its terminal
// back, and will continue us. As PID 1, and as leader of a session, we have no
// such shell, and nobody could continue the app: as POSIX has it for orphaned
// process groups, such a stop does not count.
func (j *job) stopped(sig syscall.Signal) {
	switch {
	case sig == syscall.SIGSTOP:
	case hasShell():
		if foreground() == j.group {
			_ = setForeground(unix.Getpgrp())
		}
		_ = syscall.Kill(0, syscall.SIGSTOP)
	case sig == syscall.SIGTSTP && !j.stopSent:
		_ = syscall.Kill(-j.group, syscall.SIGCONT)
	}
}

// ended takes the terminal back from an app that ended, so that ctrl-C reaches
// us during the last upload.
func (j *job) ended() {
	if now := foreground(); now == j.group || (now > 0 && syscall.Kill(-now, 0) == syscall.ESRCH) {
		_ = setForeground(unix.Getpgrp())
	}
}

// hasShell reports whether there is somebody in our session who may have put us
// in its foreground and can continue us.
func hasShell() bool {
	pid := os.Getpid()
	session, err := unix.Getsid(0)
	if err != nil || pid == 1 || session == pid {
		return false
	}
	parents, err := unix.Getsid(os.Getppid())
	return err == nil && parents == session
}

// stopOf returns the signal that a child was stopped by since the last call, or
// 0. It does not reap.
func stopOf(pid int) syscall.Signal {
	info, ok := waitid(unix.P_PID, pid, unix.WSTOPPED|unix.WNOHANG)
	if !ok || info.pid == 0 {
		return 0
	}
	return syscall.Signal(info.status)
}
