package supervisor

import (
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// spawner makes children from one thread that lives as long as the process: a
// child's parent-death signal is tied to the thread that made it, and Go ends
// threads when it likes. The same thread takes the signals.
type spawner struct{ jobs chan func() }

func newSpawner() *spawner {
	s := &spawner{jobs: make(chan func())}
	go func() {
		runtime.LockOSThread() // and never unlocked
		for job := range s.jobs {
			job()
		}
	}()
	return s
}

// do runs f on the thread, and returns when it has.
func (s *spawner) do(f func()) {
	done := make(chan struct{})
	s.jobs <- func() {
		defer close(done)
		f()
	}
	<-done
}

// how is what a child gets besides its command.
type how struct {
	files      []uintptr // descriptors of its stdin, stdout and stderr
	foreground bool      // make its group the foreground of the terminal that stdin is
	user       *User     // nil for our own
	noNewPrivs bool
}

// start runs a command in a process group of its own and returns its pid. When
// it returns without an error, the program has been executed: the group is
// there for signals. The rest is inherited: umask, limits (Go puts back the one
// that it raised for itself), signal mask, ignored signals and the working
// directory. That one is not named, because one that we may not enter, or that is
// gone, is inherited all the same.
func (s *spawner) start(c Command, h how) (pid int, err error) {
	file, err := find(c.Args[0], c.Env)
	if err != nil {
		return 0, err
	}
	attr := &syscall.ProcAttr{
		Env:   c.Env,
		Files: h.files,
		Sys:   &syscall.SysProcAttr{Setpgid: true, Foreground: h.foreground, Ctty: 0},
	}
	if h.user != nil {
		attr.Sys.Credential = h.user.credential()
	}
	if os.Getpid() != 1 {
		// As PID 1 our end is the end of the namespace. Otherwise the app would
		// go on without replication, and what it writes would be lost.
		attr.Sys.Pdeathsig = syscall.SIGKILL
	}
	s.do(func() {
		if h.noNewPrivs {
			// Of this thread, and so of what it starts from now on.
			if err = unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
				return
			}
		}
		forkAsFound(func() { pid, err = syscall.ForkExec(file, c.Args, attr) })
	})
	if err != nil {
		return 0, diagnose(file, h.user, err)
	}
	return pid, nil
}
