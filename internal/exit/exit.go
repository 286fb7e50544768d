// Package exit has the exit codes of slasha-init's own, and how an error carries
// one. The app's own code goes before them: see supervisor.Exit.
//
// An error that ends the program says with which code by a method ExitCode. Each
// package gives it to its own errors; main asks Code once, at the end.
package exit

import (
	"errors"
	"syscall"
)

// The codes. Those from 64 on are from sysexits.h, where they fit.
const (
	// No: a command that asks, like healthcheck or sync, was answered no.
	No = 1
	// Usage: a flag or an argument is wrong.
	Usage = 64
	// Upload: the app ended well, but the last upload failed.
	Upload = 70
	// System: the system refuses something that every program needs.
	System = 71
	// Restore: a restore failed. The database is as it was.
	Restore = 74
	// Held: another instance holds this database or its replica, or has taken the
	// lease.
	Held = 75
	// Config: the configuration is wrong.
	Config = 78
)

// Code returns the exit code that an error means: that of the first error in its
// chain which has a method ExitCode. It is 0 for nil, and No for an error without.
func Code(err error) int {
	if err == nil {
		return 0
	}
	var coded interface{ ExitCode() int }
	if errors.As(err, &coded) {
		return coded.ExitCode()
	}
	return No
}

// With gives an error an exit code. It goes before one that the error has already.
// With(code, nil) is nil.
func With(code int, err error) error {
	if err == nil {
		return nil
	}
	return &withCode{err, code}
}

type withCode struct {
	error
	code int
}

func (e *withCode) ExitCode() int { return e.code }
func (e *withCode) Unwrap() error { return e.error }

// Stopped says that a signal ended what was being done, before the app was started.
// It is the cause of a context that a stop signal cancels.
type Stopped struct{ Signal syscall.Signal }

func (e *Stopped) Error() string { return "stopped by signal " + e.Signal.String() }

// ExitCode is 128+n, as shells have it.
func (e *Stopped) ExitCode() int { return 128 + int(e.Signal) }
