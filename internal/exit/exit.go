// Package exit has slasha-init's own exit codes, and says how an error carries one. The
// app's code takes precedence over them: see supervisor.Exit.
//
// An error that ends the program has a method ExitCode, which returns the code. Each
// package gives it to its own errors; main asks Code once, at the end.
package exit

import (
	"errors"
	"syscall"
)

// The codes. Those from 64 on are from sysexits.h, where they fit.
const (
	// No: a command that asks, like healthcheck or sync, was answered no. It is also the
	// code of an error without one.
	No = 1
	// Usage: a flag or an argument is wrong. By config.Error.
	Usage = 64
	// Upload: the app ended well, but the last upload failed. By replicate.UnsyncedError,
	// and by a follower that had no time to take over.
	Upload = 70
	// System: the system refuses something that every program needs. By main.run.
	System = 71
	// Restore: a restore failed, and the database is as it was; or a start must not go on
	// without one. By restore.Failure, and by main for the restore command.
	Restore = 74
	// Held: another instance holds this database (volume.HeldError) or its replica
	// (lease.HeldError), or has taken the lease (lease.LostError); or --lease=required,
	// and the replica did not answer in time (replica.Take).
	Held = 75
	// Config: the configuration is wrong. By config.Error, by main for an address or a
	// place that can't be used, and by replica.Take for --lease=required where the
	// service can't keep a lease.
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

// With gives an error an exit code, in the place of one that the error has already.
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

// ExitCode is 128+n, as in shells.
func (e *Stopped) ExitCode() int { return 128 + int(e.Signal) }
