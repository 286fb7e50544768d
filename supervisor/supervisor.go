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
)

// Command is a process to run.
type Command struct {
	Type string   // process type, like "web"; for logs and status
	Args []string // file and arguments; a file without a slash is looked up in the PATH of Env
	Env  []string // the whole environment, as "name=value"
}

// Process is a Command that runs.
type Process struct {
	Type      string
	PID       int
	StartedAt time.Time
}

// Config is what Run needs besides the commands.
type Config struct {
	// StopTimeout is the budget of a whole stop. The processes have two thirds
	// of it; the rest belongs to whoever works after Run has returned.
	StopTimeout time.Duration

	// OnStart and OnExit are called when a process was started and when it was
	// reaped. OnStopping is called once, when the stop begins, before any
	// process is told. All are optional, and must not block.
	OnStart    func(Process)
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
		return fmt.Sprintf("ended by signal %d (%s)", int(e.Signal), e.Signal)
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
}

// Supervisor takes this process's signals and owns its children.
type Supervisor struct {
	signals *signals
	spawn   *spawner

	mu       sync.Mutex // held while a child is made, so that its end can't be reaped before it is known
	children map[int]*child
	died     chan struct{} // has room for one: something was reaped
}

type child struct {
	Process
	exit Exit
	gone bool // reaped
	told bool // reported
}

// New takes all signals and starts to reap. Call it once, first of all.
func New() *Supervisor {
	s := &Supervisor{
		children: make(map[int]*child),
		died:     make(chan struct{}, 1),
		signals:  newSignals(),
		spawn:    newSpawner(),
	}
	s.signals.take(s.reap)
	if os.Getpid() != 1 {
		becomeSubreaper()
	}
	return s
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
	res := r.start(commands)
	if res == nil {
		res = r.wait()
	}
	res.Began = time.Now()
	r.stop(res)
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
		r.mu.Lock()
		pid, err := r.spawn.start(c)
		if err != nil {
			r.mu.Unlock()
			exit := Exit{Code: startCode(err), Err: err}
			r.cfg.Logger.Error("cannot start the command", "type", c.Type, "error", err)
			return &Result{Exit: exit}
		}
		p := &child{Process: Process{Type: c.Type, PID: pid, StartedAt: time.Now()}}
		r.children[pid] = p
		r.procs = append(r.procs, p)
		r.mu.Unlock()
		r.cfg.Logger.Info("started", "type", p.Type, "pid", pid)
		if r.cfg.OnStart != nil {
			r.cfg.OnStart(p.Process)
		}
	}
	r.signals.deliver(r.forward)
	return nil
}

// wait returns when the first thing happened that ends the run.
func (r *run) wait() *Result {
	for {
		// In this order: an app that ended because of the signal did not end first.
		if sig := r.signals.first(); sig != 0 {
			return &Result{StopSignal: sig}
		}
		if p := r.firstGone(); p != nil {
			return &Result{Exit: p.exit}
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

	reason := "a process ended"
	switch {
	case res.Exit.Err != nil:
		reason = "a process could not be started"
	case res.StopSignal != 0:
		reason = "signal " + res.StopSignal.String()
	case r.firstGone() == nil:
		reason = "told to"
	}
	r.cfg.Logger.Info("stopping", "reason", reason, "budget", share)
	if r.cfg.OnStopping != nil {
		r.cfg.OnStopping(reason)
	}
	// A stop signal has been forwarded already, to each group, by the signal
	// goroutine, and the group of a leader that ended has been told by reap.
	if res.StopSignal == 0 {
		r.signalGroups(syscall.SIGTERM)
	}

	killed := false
	var immortal <-chan time.Time
	kill := func(why string) {
		if !killed {
			killed = true
			immortal = time.After(patience)
			r.cfg.Logger.Warn("killing what is left", "why", why)
		}
		r.signalGroups(syscall.SIGKILL)
	}
	for insist, wait := r.signals.insist, true; wait && r.anyAlive(); r.report() {
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
	r.report()
	r.sweep(time.Until(res.Began.Add(share)), killed)

	if res.Exit == (Exit{}) {
		res.Exit = r.deciding()
	}
	r.signals.deliver(nil)
}

// report tells of each process once that it has ended.
func (r *run) report() {
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
		r.cfg.Logger.Info("ended", "type", p.Type, "pid", p.PID, "how", p.exit.String())
		if r.cfg.OnExit != nil {
			r.cfg.OnExit(p.Process, p.exit)
		}
	}
}

// deciding picks the exit of the first command: with one command, its own.
func (r *run) deciding() Exit {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case len(r.procs) == 0:
		return Exit{}
	case !r.procs[0].gone:
		return Exit{Code: 128 + int(syscall.SIGKILL), Signal: syscall.SIGKILL}
	}
	return r.procs[0].exit
}

func (r *run) firstGone() *child {
	r.mu.Lock()
	defer r.mu.Unlock()
	if i := slices.IndexFunc(r.procs, func(p *child) bool { return p.gone }); i >= 0 {
		return r.procs[i]
	}
	return nil
}

func (r *run) anyAlive() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(r.procs, func(p *child) bool { return !p.gone })
}

// forward passes a signal on to the process groups. It is called from the
// signal goroutine, in the order of arrival.
func (r *run) forward(sig syscall.Signal) { r.signalGroups(sig) }

// signalGroups signals the group of each process whose leader lives. What is
// left of the others is found by sweep: their number may be another's by now.
func (r *run) signalGroups(sig syscall.Signal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.procs {
		if p.gone {
			continue
		}
		if err := syscall.Kill(-p.PID, sig); err != nil && err != syscall.ESRCH {
			r.cfg.Logger.Debug("cannot signal", "pid", p.PID, "signal", sig, "error", err)
		}
	}
}

// reap collects every child that ended, ours and adopted ones. It is called
// for each SIGCHLD; several ends may share one.
func (s *Supervisor) reap() {
	stopping := s.StopSignal() != 0 // before our lock: signals are forwarded the other way round
	s.mu.Lock()
	defer s.mu.Unlock()
	for pid := ended(); pid > 0; pid = ended() {
		p, ours := s.children[pid]
		if ours && !stopping {
			// The leader ended first, so its group is to end too. Until it is
			// reaped, its number can't belong to anything else.
			_ = syscall.Kill(-pid, syscall.SIGTERM)
		}
		var status syscall.WaitStatus
		if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil {
			break
		}
		if ours {
			delete(s.children, pid)
			p.gone, p.exit = true, exitOf(status)
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
