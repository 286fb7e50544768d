package supervisor

import (
	"slices"
	"sync"
	"syscall"
)

// signals is the inbox of this process. One goroutine fills it, in order.
type signals struct {
	stopping chan struct{} // closed by the first stop signal
	insist   chan struct{} // closed by the second interrupt
	gaveUp   chan struct{} // closed by the third

	mu         sync.Mutex
	stop       syscall.Signal // the first stop signal, as it came
	as         syscall.Signal // what stop signals are passed on as; 0 leaves them as they are
	interrupts int
	kept       []arrival     // came while nobody was there to take them
	to         func(arrival) // nil until the processes run
}

func newSignals() *signals {
	return &signals{
		stopping: make(chan struct{}),
		insist:   make(chan struct{}),
		gaveUp:   make(chan struct{}),
	}
}

// receive takes a signal. It passes it on at once, or keeps it.
func (s *signals) receive(a arrival) {
	if a.fromKernel && (a.Signal == syscall.SIGTTIN || a.Signal == syscall.SIGTTOU) {
		return // we touched a terminal from the background; nobody sent it
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// The app may have a handler all the same, so it gets what we don't act on.
	acts := !a.wasIgnored || a.Signal == syscall.SIGTERM || a.Signal == s.as
	if a.Signal == syscall.SIGINT && acts {
		s.interrupted()
	}
	if acts && s.isStop(a.Signal) {
		first := s.stop == 0
		if first {
			s.stop = a.Signal
			defer close(s.stopping) // after it was passed on, for those who wait for it
		}
		if s.to == nil && first {
			return // deliver passes it on
		}
		if s.as != 0 {
			a.Signal = s.as
		}
	}
	if s.to != nil {
		s.to(a)
		return
	}
	s.kept = append(s.kept, a)
}

// isStop: TERM and INT always stop the container, and so does the signal that
// stops the app. HUP and QUIT are the app's to interpret, so they stop it
// only while there is no app.
func (s *signals) isStop(sig syscall.Signal) bool {
	switch sig {
	case syscall.SIGTERM, syscall.SIGINT:
		return true
	case syscall.SIGHUP, syscall.SIGQUIT:
		return s.to == nil || sig == s.as
	}
	return sig == s.as
}

// stopAs makes stop signals reach the app as sig, which is one itself then,
// also if it came already.
func (s *signals) stopAs(sig syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.as = sig
	i := slices.IndexFunc(s.kept, func(a arrival) bool { return a.Signal == sig })
	if i >= 0 && s.stop == 0 {
		s.kept = slices.Delete(s.kept, i, i+1)
		s.stop = sig
		close(s.stopping)
	}
}

func (s *signals) interrupted() {
	s.interrupts++
	switch s.interrupts {
	case 2:
		close(s.insist)
	case 3:
		close(s.gaveUp)
	}
}

// deliver hands over what was kept, and from now on each signal as it comes.
// With nil, signals are kept again.
func (s *signals) deliver(to func(arrival)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.to = to
	if to == nil {
		return
	}
	if s.stop != 0 {
		to(arrival{Signal: s.passedOn(s.stop)})
	}
	for _, a := range s.kept {
		to(a)
	}
	s.kept = nil
}

// passedOn is what a stop signal reaches the app as.
func (s *signals) passedOn(sig syscall.Signal) syscall.Signal {
	if s.as != 0 {
		return s.as
	}
	return sig
}

// tell returns the signal that asks processes to stop when no stop signal has come.
func (s *signals) tell() syscall.Signal {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.passedOn(syscall.SIGTERM)
}

// passed reports whether a stop signal has come and been passed on. One that
// came before the processes were there has not, until deliver has run.
func (s *signals) passed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stop != 0 && s.to != nil
}

func (s *signals) first() syscall.Signal {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stop
}
