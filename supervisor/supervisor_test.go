package supervisor

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
)

func closed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func sent(sig syscall.Signal) arrival { return arrival{Signal: sig} }

// recorder notes what reaches the app.
type recorder []syscall.Signal

func (r *recorder) take(a arrival) { *r = append(*r, a.Signal) }

// A signal that comes before the processes run is kept, and delivered once.
func TestSignalsBeforeTheProcessesRun(t *testing.T) {
	s := newSignals()
	var got recorder
	for _, a := range []arrival{sent(syscall.SIGUSR1), {syscall.SIGTTOU, true, false}, sent(syscall.SIGWINCH)} {
		s.receive(a)
	}
	s.deliver(got.take)
	s.receive(sent(syscall.SIGUSR2))
	s.receive(sent(syscall.SIGHUP)) // the app's to interpret, now that there is one
	if want := []syscall.Signal{syscall.SIGUSR1, syscall.SIGWINCH, syscall.SIGUSR2, syscall.SIGHUP}; !slices.Equal(got, want) {
		t.Errorf("delivered %v, want %v", got, want)
	}
	if closed(s.stopping) {
		t.Error("stopping")
	}
}

func TestStopSignals(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT} {
		s := newSignals()
		s.receive(sent(sig))
		if !closed(s.stopping) || s.first() != sig {
			t.Errorf("%s before the app runs does not stop", sig)
		}
		// One that came in the last moment before the processes ran is theirs too.
		var got recorder
		if s.passed() {
			t.Errorf("%s was passed on to nobody", sig)
		}
		s.deliver(got.take)
		if !slices.Equal(got, []syscall.Signal{sig}) || !s.passed() {
			t.Errorf("%s: delivered %v", sig, got)
		}
	}
}

// Under nohup, HUP is nothing for us, and still the app's; TERM always stops.
func TestIgnoredSignals(t *testing.T) {
	s := newSignals()
	var got recorder
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGINT, syscall.SIGINT} {
		s.receive(arrival{Signal: sig, wasIgnored: true})
	}
	if closed(s.stopping) || closed(s.insist) {
		t.Error("an ignored signal stops")
	}
	s.deliver(got.take)
	if len(got) != 4 {
		t.Errorf("the app got %v", got)
	}
	s.receive(arrival{Signal: syscall.SIGTERM, wasIgnored: true})
	if !closed(s.stopping) {
		t.Error("TERM does not stop")
	}
}

func TestStopAs(t *testing.T) {
	s := newSignals()
	var got recorder
	s.receive(sent(syscall.SIGUSR1)) // before we know that it is the stop signal
	s.stopAs(syscall.SIGUSR1)
	if !closed(s.stopping) || s.first() != syscall.SIGUSR1 {
		t.Error("a stop signal of one's own that came early does not stop")
	}
	s.deliver(got.take)
	s.receive(sent(syscall.SIGTERM))
	s.receive(sent(syscall.SIGHUP))
	if want := []syscall.Signal{syscall.SIGUSR1, syscall.SIGUSR1, syscall.SIGHUP}; !slices.Equal(got, want) {
		t.Errorf("delivered %v, want %v", got, want)
	}
	if s.tell() != syscall.SIGUSR1 {
		t.Errorf("processes are asked to stop by %v", s.tell())
	}
}

func TestRepeatedInterrupts(t *testing.T) {
	s := newSignals()
	s.deliver(func(arrival) {})
	for n, want := range [][3]bool{{true, false, false}, {true, true, false}, {true, true, true}, {true, true, true}} {
		s.receive(sent(syscall.SIGINT))
		if got := [3]bool{closed(s.stopping), closed(s.insist), closed(s.gaveUp)}; got != want {
			t.Errorf("after %d: %v, want %v", n+1, got, want)
		}
	}
	s = newSignals()
	for range 5 {
		s.receive(sent(syscall.SIGTERM))
	}
	if closed(s.insist) {
		t.Error("a repeated TERM changes something")
	}
}

func TestFind(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	for file, mode := range map[string]os.FileMode{
		filepath.Join(a, "plain"): 0o644, filepath.Join(b, "plain"): 0o755, filepath.Join(a, "never"): 0o644, filepath.Join(b, "tool"): 0o755,
	} {
		if err := os.WriteFile(file, nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(a, "tool"), 0o755); err != nil {
		t.Fatal(err)
	}
	env := []string{"PATH=/usr/bin", "PATH=" + a + ":" + b}
	for name, want := range map[string]string{
		"plain": filepath.Join(b, "plain"), // the first one can't be executed
		"tool":  filepath.Join(b, "tool"),  // the first one is a folder
		"/x/y":  "/x/y",
		"./z":   "./z",
	} {
		if got, err := find(name, env); err != nil || got != want {
			t.Errorf("%s is %s, %v", name, got, err)
		}
	}
	for name, code := range map[string]int{"never": 126, "nowhere": 127, "": 127} {
		_, err := find(name, env)
		var e *StartError
		if !errors.As(err, &e) || startCode(err) != code {
			t.Errorf("%q: %v, code %d", name, err, startCode(err))
		}
	}
}

func TestDescends(t *testing.T) {
	all := make(map[int]process)
	for pid, parent := range map[int]int{10: 1, 20: 10, 30: 20, 40: 1, 50: 51, 51: 50} {
		all[pid] = process{pid: pid, parent: parent}
	}
	for pid, want := range map[int]bool{10: false, 20: true, 30: true, 40: false, 50: false, 99: false} {
		if got := descends(pid, 10, all); got != want {
			t.Errorf("%d: %v", pid, got)
		}
	}
}
