// Package supervisor runs processes as PID 1 should: it forwards every signal
// exactly once, reaps every orphan, stops what it started inside a budget, and
// tells with which code to exit. It knows no SQLite and no S3.
//
// What it guarantees:
//   - New takes all signals. One that arrives before a process runs is either
//     obeyed (a stop signal: nothing is started) or kept and delivered once the
//     processes exist.
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
	"slices"
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
	nth  int  // the how manieth to be reaped
	told bool // reported
}

// New takes all signals and starts to reap. Call it once, first of all. What
// arrived before it, from the first instant of the process, arrives now; early.c
// tells how. The error says that the system gave us no pipe.
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

// run is the state of one Run.
type run struct {
	*Supervisor
	cfg   Config
	procs []*child
}

// start runs the commands. It returns a result only if one could not start.
func (r *run) start(commands []Command) *Result {
	for _, c := range commands {
		p, err := r.startOne(c, len(commands) == 1)
		if err != nil {
			exit := Exit{Code: startCode(err), Err: err}
			r.cfg.Logger.Error("cannot start the command", "process", c.Name, "error", err)
			return &Result{Exit: exit, decided: true}
		}
		r.cfg.Logger.Info("started", "process", p.Name, "pid", p.PID)
		if r.cfg.OnStart != nil {
			r.cfg.OnStart(p)
		}
	}
	if r.cfg.OnReady != nil {
		r.cfg.OnReady()
	}
	r.signals.deliver(r.forward)
	return nil
}

// named gives every command a name, and the prefix the width of the longest.
func named(commands []Command, prefix *Prefix) []Command {
	commands = slices.Clone(commands)
	for i := range commands {
		if commands[i].Name == "" {
			commands[i].Name = commands[i].Type
		}
		if prefix != nil {
			prefix.width = max(prefix.width, len(commands[i].Name))
		}
	}
	return commands
}

// startOne runs a command. Only a process that is alone can have our stdin and
// our terminal.
func (r *run) startOne(c Command, alone bool) (Process, error) {
	how := how{files: []uintptr{0, 1, 2}, user: r.cfg.User, noNewPrivs: r.cfg.NoNewPrivs}
	if alone {
		how.foreground = ownsTerminal()
	} else if null, err := os.Open(os.DevNull); err == nil {
		defer func() { _ = null.Close() }()
		how.files[0] = null.Fd()
	}
	if r.cfg.Prefix != nil {
		out, err := r.cfg.Prefix.open(c.Name)
		if err != nil {
			return Process{}, err
		}
		defer out.close()
		how.files[1], how.files[2] = out.stdout.Fd(), out.stderr.Fd()
	}

	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := r.spawn.start(c, how)
	if err != nil {
		if how.foreground {
			_ = setForeground(unix.Getpgrp())
		}
		return Process{}, err
	}
	p := &child{Process: Process{Type: c.Type, Name: c.Name, PID: pid, StartedAt: time.Now()}}
	r.children[pid] = p
	r.procs = append(r.procs, p)
	if alone && foreground() != noTerminal {
		r.job = &job{group: pid}
	}
	return p.Process, nil
}

// wait returns when the first thing happened that ends the run.
func (r *run) wait() *Result {
	for {
		// In this order: an app that ended because of the signal did not end first.
		if sig := r.signals.first(); sig != 0 {
			return &Result{StopSignal: sig}
		}
		if p := r.firstGone(); p != nil {
			return &Result{Exit: p.exit, decided: true}
		}
		select {
		case <-r.died:
		case <-r.signals.stopping:
		case <-r.cfg.Abort:
			return &Result{}
		}
	}
}

// stop ends what still runs and fills in the exit.
func (r *run) stop(res *Result) {
	share := r.cfg.StopTimeout * 2 / 3
	deadline := time.NewTimer(share)
	defer deadline.Stop()

	reason := "told to"
	switch {
	case res.Exit.Err != nil:
		reason = "a process could not be started"
	case res.StopSignal != 0:
		reason = "signal " + SignalName(res.StopSignal)
	case r.firstGone() != nil:
		reason = r.firstGone().Name + " ended"
	}
	r.cfg.Logger.Info("stopping", "reason", reason, "budget", r.cfg.StopTimeout, "app", share)
	if r.cfg.OnStopping != nil {
		r.cfg.OnStopping(reason)
	}
	// A stop signal has been passed on already, by the signal goroutine, and the
	// group of a leader that ended has been told by reap.
	if res.StopSignal == 0 {
		r.signalAll(r.signals.tell())
	}

	killed := false
	var immortal <-chan time.Time
	kill := func(why string) {
		if !killed {
			killed = true
			immortal = time.After(patience)
			r.cfg.Logger.Warn("killing what is left", "why", why, "left", left(res, r.cfg))
		}
		r.signalGroups(syscall.SIGKILL)
	}
	for insist, wait := r.signals.insist, true; wait && r.anyAlive(); r.report(res) {
		select {
		case <-r.died:
		case <-insist:
			insist = nil
			kill("second interrupt")
		case <-deadline.C:
			kill("the stop timeout's share is used up")
		case <-immortal:
			wait = false
			r.cfg.Logger.Error("a process can't be killed: it hangs in the kernel")
		}
	}
	r.report(res)
	r.sweep(time.Until(res.Began.Add(share)), killed)

	if !res.decided {
		res.Exit = r.deciding(res.StopSignal)
	}
	r.signals.deliver(nil)
}

// left is what remains of the whole stop's budget.
func left(res *Result, cfg Config) time.Duration {
	return time.Until(res.Began.Add(cfg.StopTimeout)).Round(time.Millisecond)
}

// report tells of each process once that it has ended.
func (r *run) report(res *Result) {
	r.mu.Lock()
	var gone []child
	for _, p := range r.procs {
		if p.gone && !p.told {
			p.told = true
			gone = append(gone, *p)
		}
	}
	r.mu.Unlock()
	for _, p := range gone {
		r.cfg.Logger.Info("ended", "process", p.Name, "pid", p.PID, "how", p.exit.String(), "left", left(res, r.cfg))
		if r.cfg.OnExit != nil {
			r.cfg.OnExit(p.Process, p.exit)
		}
	}
}

// deciding picks the exit that stands for all after a stop signal: that of the
// first command, unless it ended well and another one did not.
func (r *run) deciding(stop syscall.Signal) Exit {
	r.mu.Lock()
	defer r.mu.Unlock()
	var exits []Exit
	for _, p := range r.procs {
		if !p.gone {
			p.exit = Exit{Code: 128 + int(syscall.SIGKILL), Signal: syscall.SIGKILL}
		}
		exits = append(exits, p.exit)
	}
	if len(exits) == 0 {
		return Exit{}
	}
	bad := func(e Exit) bool { return e.Code != 0 && (e.Signal == 0 || e.Signal != stop) }
	if i := slices.IndexFunc(exits, bad); i > 0 && !bad(exits[0]) {
		return exits[i]
	}
	return exits[0]
}

// firstGone returns the process that was the first to end, or nil.
func (r *run) firstGone() *child {
	r.mu.Lock()
	defer r.mu.Unlock()
	var first *child
	for _, p := range r.procs {
		if p.gone && (first == nil || p.nth < first.nth) {
			first = p
		}
	}
	return first
}

func (r *run) anyAlive() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(r.procs, func(p *child) bool { return !p.gone })
}

// forward passes a signal on. It is called from the signal goroutine, in the
// order of arrival.
func (r *run) forward(a arrival) {
	r.mu.Lock()
	alone := r.job != nil
	if alone {
		r.job.sent(a.Signal)
	}
	r.mu.Unlock()
	if !alone && a.fromKernel && a.Signal == syscall.SIGTSTP {
		// ctrl-Z while several processes share the terminal: all of us stop, as
		// one job.
		if hasShell() {
			r.signalAll(a.Signal)
			_ = syscall.Kill(0, syscall.SIGSTOP)
		}
		return
	}
	r.signalAll(a.Signal)
}

// signalAll sends a signal to whom it goes by the scope.
func (r *run) signalAll(sig syscall.Signal) {
	if r.cfg.Scope == Child {
		r.signal(sig, 1)
		return
	}
	r.signalGroups(sig)
}

// signalGroups signals the group of each process whose leader lives. What is
// left of the others is found by sweep: their number may be another's by now.
func (r *run) signalGroups(sig syscall.Signal) { r.signal(sig, -1) }

func (r *run) signal(sig syscall.Signal, sign int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.procs {
		if p.gone {
			continue
		}
		if err := syscall.Kill(sign*p.PID, sig); err != nil && err != syscall.ESRCH {
			r.cfg.Logger.Debug("cannot signal", "pid", p.PID, "signal", SignalName(sig), "error", err)
		}
	}
}
