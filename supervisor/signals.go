package supervisor

import (
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// signals is the inbox of this process. One goroutine reads it, in order.
type signals struct {
	stopping chan struct{} // closed by the first stop signal
	insist   chan struct{} // closed by the second interrupt
	gaveUp   chan struct{} // closed by the third

	mu         sync.Mutex
	stop       syscall.Signal
	interrupts int
	kept       []syscall.Signal     // arrived while nobody was there to take them
	to         func(syscall.Signal) // nil until the processes run
}

func newSignals() *signals {
	return &signals{
		stopping: make(chan struct{}),
		insist:   make(chan struct{}),
		gaveUp:   make(chan struct{}),
	}
}

// take takes every signal that can be caught, and calls reap for SIGCHLD.
func (s *signals) take(reap func()) {
	// os/signal drops what a full channel can't take; the goroutine below only
	// appends, so 512 are many more than can wait.
	inbox := make(chan os.Signal, 512)
	signal.Notify(inbox)
	go func() {
		for sig := range inbox {
			if n, ok := sig.(syscall.Signal); ok {
				s.receive(n, reap)
			}
		}
	}()
}

func (s *signals) receive(sig syscall.Signal, reap func()) {
	switch sig {
	case syscall.SIGCHLD:
		reap()
		return
	case syscall.SIGURG:
		// Go's runtime sends it to itself, to preempt goroutines.
		return
	case syscall.SIGPIPE:
		// A write to a closed connection or a gone log reader raised it here;
		// it is news for us, as an error, and not for the app.
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if sig == syscall.SIGINT {
		s.interrupted()
	}
	if s.isStop(sig) && s.stop == 0 {
		s.stop = sig
		if s.to != nil {
			s.to(sig) // before anybody who waits for stopping acts on it
		}
		close(s.stopping)
		return
	}
	if s.to != nil {
		s.to(sig)
		return
	}
	s.kept = append(s.kept, sig)
}

// isStop: TERM and INT always stop the container. HUP and QUIT are the app's to
// interpret, so they stop it only while there is no app.
func (s *signals) isStop(sig syscall.Signal) bool {
	switch sig {
	case syscall.SIGTERM, syscall.SIGINT:
		return true
	case syscall.SIGHUP, syscall.SIGQUIT:
		return s.to == nil
	}
	return false
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
func (s *signals) deliver(to func(syscall.Signal)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.to = to
	if to == nil {
		return
	}
	if s.stop != 0 {
		to(s.stop)
	}
	for _, sig := range s.kept {
		to(sig)
	}
	s.kept = nil
}

func (s *signals) first() syscall.Signal {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stop
}
