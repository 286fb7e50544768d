package supervisor

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// firstRealTime is what SIGRTMIN is for programs: glibc keeps 32 and 33.
const firstRealTime = 34

// SignalName returns the name of a signal as kill(1) writes it, like "SIGTERM"
// or "SIGRTMIN+3".
func SignalName(sig syscall.Signal) string {
	switch name := unix.SignalName(sig); {
	case name != "":
		return name
	case sig == firstRealTime:
		return "SIGRTMIN"
	case sig > firstRealTime && sig <= lastSignal:
		return fmt.Sprintf("SIGRTMIN+%d", int(sig)-firstRealTime)
	}
	return strconv.Itoa(int(sig))
}

// ParseSignal reads a signal that a program can catch: "TERM", "SIGTERM", "15",
// "RTMIN+3" or "RTMAX-1". The error is a sentence about the word, without it.
func ParseSignal(word string) (syscall.Signal, error) {
	sig := signalNumber(strings.ToUpper(strings.TrimSpace(word)))
	switch {
	case sig <= 0 || sig > lastSignal:
		return 0, fmt.Errorf("is not a signal; write it like TERM, SIGQUIT, 15 or RTMIN+3")
	case !catchable(sig) || sig == syscall.SIGCHLD:
		return 0, fmt.Errorf("is not a signal that asks a program to do something; write one like TERM, INT or QUIT")
	}
	return sig, nil
}

func signalNumber(word string) syscall.Signal {
	if n, err := strconv.Atoi(word); err == nil {
		return syscall.Signal(n)
	}
	word = strings.TrimPrefix(word, "SIG")
	for _, base := range []struct {
		name string
		sig  int
		sign string
	}{{"RTMIN", firstRealTime, "+"}, {"RTMAX", lastSignal, "-"}} {
		rest, ok := strings.CutPrefix(word, base.name)
		switch {
		case !ok:
			continue
		case rest == "":
			return syscall.Signal(base.sig)
		case !strings.HasPrefix(rest, base.sign):
			return 0
		}
		n, err := strconv.Atoi(rest)
		if sig := base.sig + n; err == nil && sig >= firstRealTime && sig <= lastSignal {
			return syscall.Signal(sig)
		}
		return 0
	}
	return unix.SignalNum("SIG" + word)
}
