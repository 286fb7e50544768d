package supervisor

// #include "early.h"
import "C"

import (
	"encoding/binary"
	"errors"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// lastSignal is SIGRTMAX on Linux.
const lastSignal = 64

// arrival is a signal that came.
type arrival struct {
	syscall.Signal
	fromKernel bool // a terminal's, or one that reports a child or a fault
	wasIgnored bool // when we began: whoever started us does not want us to act on it
}

// catchable reports whether a signal can be caught. The C library keeps 32
// and 33 to itself.
func catchable(sig syscall.Signal) bool {
	return sig != syscall.SIGKILL && sig != syscall.SIGSTOP && sig != 32 && sig != 33
}

// wasIgnored reports whether a signal was ignored when the process began.
func wasIgnored(sig syscall.Signal) bool { return C.slasha_was_ignored(C.int(sig)) != 0 }

// catchAll makes the handler take every signal, and returns the pipe that it writes
// to. It is called on the thread that is to take the signals.
func catchAll() (*os.File, error) {
	inbox := C.slasha_inbox()
	if inbox < 0 {
		return nil, errors.New("the system has no pipe for signals: too many files are open")
	}
	// Room for a storm. Where that is more than we may have, 64 KiB stay.
	_, _ = unix.FcntlInt(uintptr(inbox), unix.F_SETPIPE_SZ, 1<<20)
	for sig := syscall.Signal(1); sig <= lastSignal; sig++ {
		if !catchable(sig) {
			continue
		}
		if sig == syscall.SIGPIPE || wasIgnored(sig) {
			// Go's own record of what is ignored keeps it from ending itself by a
			// write to a stderr that nobody reads, and from making the app's
			// disposition the default.
			signal.Ignore(sig)
		}
		C.slasha_catch(C.int(sig))
	}
	C.slasha_open_mask()
	return os.NewFile(uintptr(inbox), "signals"), nil
}

// readSignals calls receive for each signal in the order of arrival. It calls lost
// after a batch that was so full that the pipe may have lost some.
func readSignals(inbox *os.File, receive func(arrival), lost func()) {
	const size = C.sizeof_struct_slasha_signal
	buf := make([]byte, size*1024)
	for {
		n, err := inbox.Read(buf)
		if err != nil {
			return
		}
		for b := buf[:n]; len(b) >= size; b = b[size:] {
			sig := syscall.Signal(int32(binary.NativeEndian.Uint32(b)))
			code := int32(binary.NativeEndian.Uint32(b[4:]))
			receive(arrival{sig, code > 0, wasIgnored(sig)})
		}
		if n == len(buf) {
			lost()
		}
	}
}

// forkAsFound runs f, which starts a child, with the signal mask and the ignored
// signals that the child is to have, on the thread that takes the signals.
func forkAsFound(f func()) {
	C.slasha_before_fork()
	defer C.slasha_after_fork()
	f()
}
