package testbed

import (
	"io"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
)

// StartOnTerminal runs a prepared command on a new terminal, and returns the end of
// it where somebody types. What is written on the terminal is in the process's
// Stdout. The process leads a session, whose controlling terminal this is if
// controlling is true.
func StartOnTerminal(t testing.TB, cmd *exec.Cmd, controlling bool) (*Process, *os.File) {
	t.Helper()
	master, tty, err := pty.Open()
	if err != nil {
		t.Fatalf("no terminal: %v", err)
	}
	// The library leaves it blocking, and then a read keeps it open.
	if fd, err := syscall.Dup(int(master.Fd())); err == nil && syscall.SetNonblock(fd, true) == nil {
		_ = master.Close()
		syscall.CloseOnExec(fd)
		master = os.NewFile(uintptr(fd), "terminal")
	}
	t.Cleanup(func() { _ = master.Close() })
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: controlling}
	read := make(chan struct{})
	p := start(t, cmd, func() {
		select {
		case <-read: // nobody has the terminal open any more
		case <-time.After(5 * time.Second): // a child of the process has
		}
	})
	_ = tty.Close()
	go func() {
		defer close(read)
		_, _ = io.Copy(p.Stdout, master)
	}()
	return p, master
}
