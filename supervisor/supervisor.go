// Package supervisor runs processes as PID 1 should: it forwards every signal
// exactly once, reaps every orphan, stops what it started inside a budget, and
// returns the exit code. It knows nothing of SQLite and S3.
//
// What it guarantees:
//   - New takes all signals. One that arrives before a process runs is kept, and
//     delivered once the processes exist. Run starts them even after a stop signal:
//     whoever would rather not start them asks StopSignal first.
//   - There is one owner of wait, so no exit code is lost to a race.
//   - The first process to end ends all.
//   - When Run returns, no process that it started is alive, nor any that those
//     left behind; as PID 1, no other process of the PID namespace is.
//   - When this process dies without running another line, the processes die.
package supervisor

import (
	"fmt"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Command is a process to run.
type Command struct {
	Type string   // process type, like "web"; for status
	Name string   // what it is called in logs, like "worker.2"; Type if empty
	Args []string // file and arguments; a file without a slash is looked up in the PATH of Env
	Env  []string // the whole environment, as "name=value"
}

// Process is a Command that runs.
type Process struct {
	Type      string
	Name      string
	PID       int
	StartedAt time.Time
}

// Scope is to whom signals go.
type Scope int

const (
	// Group passes signals on to the whole process group of each command. What
	// a shell script started gets them too.
	Group Scope = iota
	// Child passes them on to the command alone.
	Child
)

// Config is what Run needs besides the commands.
type Config struct {
	// StopTimeout is the budget of a whole stop. The processes have two thirds
	// of it; the rest belongs to whoever works after Run has returned.
	StopTimeout time.Duration

	Scope Scope

	// User is whom the processes run as; nil is whoever we are.
	User *User

	// NoNewPrivs keeps the processes from gaining privileges by executing a
	// setuid program; see prctl(2), PR_SET_NO_NEW_PRIVS.
	NoNewPrivs bool

	// Prefix, if not nil, gets what the processes write, with the name of the
	// process before each line. Otherwise they have our own stdout and stderr.
	Prefix *Prefix

	// OnStart and OnExit are called when a process was started and when it was
	// reaped, OnReady once, when all were started. OnStopping is called once, when
	// the stop begins. All are optional, and must not block.
	OnStart    func(Process)
	OnReady    func()
	OnExit     func(Process, Exit)
	OnStopping func(reason string)

	// Abort ends the processes when it is closed, like a stop signal would.
	Abort <-chan struct{}
	// Spare returns the pid of a process that an abort leaves alone, or 0:
	// whoever asked for the abort from the outside, by docker exec, waits for its
	// outcome. So does the shell that runs it. It is never one that descends from
	// us.
	Spare func() int

	Logger *slog.Logger
}

// Exit is how a process ended.
type Exit struct {
	Code   int            // exit code; 128+n when signal n ended it
	Signal syscall.Signal // 0 when it ended by itself
	Err    error          // not nil when it could not be started
}

// String writes the exit for logs.
func (e Exit) String() string {
	switch {
	case e.Err != nil:
		return e.Err.Error()
	case e.Signal != 0:
		return fmt.Sprintf("ended by signal %d (%s)", int(e.Signal), SignalName(e.Signal))
	}
	return fmt.Sprintf("exit code %d", e.Code)
}

// Result is how a Run ended.
type Result struct {
	// Exit is the exit of the process that decides the container's exit code.
	Exit Exit
	// StopSignal is the signal that began the stop, or 0 if a process ended first.
	StopSignal syscall.Signal
	// Aborted says that the stop began by Config.Abort, and by nothing else.
	Aborted bool
	// Began is when the stop began: the start of the StopTimeout.
	Began time.Time

	decided bool // Exit is known: a process was the first to end, or did not start
}

// Supervisor takes this process's signals and owns its children.
type Supervisor struct {
	signals *signals
	spawn   *spawner

	mu       sync.Mutex // held while a child is made, so that its end can't be reaped before it is known
	children map[int]*child
	ends     int // how many of ours were reaped
	scope    Scope
	job      *job          // nil when there is no terminal to share
	died     chan struct{} // has room for one: something was reaped
}

type child struct {
	Process
	exit Exit
	gone bool // reaped
	nth  int  // its place in the order in which they were reaped
	told bool // reported

	warned bool // its group has got the stop signal, though none has come to us
}

// New takes all signals and starts to reap. Call it once, first of all. What
// arrived before it, from the first instant of the process, arrives now; early.c
// explains how. The error says that the system gave us no pipe.
func New() (*Supervisor, error) {
	s := &Supervisor{
		children: make(map[int]*child),
		died:     make(chan struct{}, 1),
		signals:  newSignals(),
		spawn:    newSpawner(),
	}
	var inbox *os.File
	var err error
	s.spawn.do(func() { inbox, err = catchAll() })
	if err != nil {
		return nil, err
	}
	go readSignals(inbox, func(a arrival) {
		if a.Signal == syscall.SIGCHLD {
			s.reap()
			return
		}
		s.signals.receive(a)
	}, s.reap)
	if os.Getpid() != 1 {
		becomeSubreaper()
	}
	return s, nil
}

// StopAs makes every stop signal reach the processes as sig, which is a stop
// signal itself from then on.
func (s *Supervisor) StopAs(sig syscall.Signal) { s.signals.stopAs(sig) }

// DieWithParent makes the death of our parent arrive as a signal. Parent is its
// pid at the start: where it is gone already, the signal comes at once.
func (s *Supervisor) DieWithParent(sig syscall.Signal, parent int) error {
	var err error
	// The setting belongs to a thread, so to one that stays.
	s.spawn.do(func() { err = unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(sig), 0, 0, 0) })
	if err != nil {
		return err
	}
	if os.Getppid() != parent {
		return syscall.Kill(os.Getpid(), sig)
	}
	return nil
}

// Stopping is closed by the first stop signal.
func (s *Supervisor) Stopping() <-chan struct{} { return s.signals.stopping }

// StopSignal returns the first stop signal, or 0.
func (s *Supervisor) StopSignal() syscall.Signal { return s.signals.first() }

// GaveUp is closed by the third interrupt: whoever waits at the keyboard no
// longer wants to wait for anything.
func (s *Supervisor) GaveUp() <-chan struct{} { return s.signals.gaveUp }

// Run starts the commands, waits until the first of them ends, a stop signal
// comes or cfg.Abort is closed, ends the others, and returns when none is left.
// It can be called again afterwards.
func (s *Supervisor) Run(cfg Config, commands []Command) Result {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	r := &run{Supervisor: s, cfg: cfg}
	s.mu.Lock()
	s.scope = cfg.Scope
	s.mu.Unlock()
	res := r.start(named(commands, cfg.Prefix))
	if res == nil {
		res = r.wait()
	}
	res.Began = time.Now()
	r.stop(res)
	cfg.Prefix.finish()
	return *res
}
