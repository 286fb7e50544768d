package supervisor

import (
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// run is the state of one Run.
type run struct {
	*Supervisor
	cfg    Config
	procs  []*child
	spared []int // pids that the sweep leaves alone
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
			return &Result{Aborted: true}
		}
	}
}

// stop ends what still runs and fills in the exit.
func (r *run) stop(res *Result) {
	share := r.cfg.StopTimeout * 2 / 3
	deadline := time.NewTimer(share)
	defer deadline.Stop()

	reason := "a request"
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
	// A stop signal has been passed on already, by the signal goroutine, and reap has
	// signalled the group of a leader that ended.
	if res.StopSignal == 0 {
		r.signalAll(r.signals.tell())
		r.mu.Lock()
		for _, p := range r.procs {
			p.warned = true
		}
		r.mu.Unlock()
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
	if res.Aborted && r.cfg.Spare != nil {
		r.spared = ancestry(r.cfg.Spare())
	}
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

// report logs the end of each process, once.
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

// signalAll sends a signal to those whom the scope names.
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
