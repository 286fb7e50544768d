// Package config reads what a command is configured to do from its flags and the
// environment, and judges it. Config has it in groups that the rooms take as they are.
//
// A setting is one entry of the table in table.go: its name, default, help line, the
// commands that take it, and its reader. The rules between settings are in rules.go.
//
// Nothing here makes a request or changes anything.
package config

import (
	"net"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"github.com/superfly/ltx"

	"github.com/slashacom/slasha-init/internal/exit"
	"github.com/slashacom/slasha-init/internal/logs"
	"github.com/slashacom/slasha-init/replica"
	"github.com/slashacom/slasha-init/replicate"
	"github.com/slashacom/slasha-init/restore"
	"github.com/slashacom/slasha-init/restore/check"
)

// Config is the configuration of a command. A command fills in what it judges (see
// table.go) and leaves the rest zero.
type Config struct {
	Log    logs.Config
	Health Health

	// Databases are the absolute paths of the databases, none of which is a symbolic
	// link. It is empty where backups are off, and has one entry otherwise.
	Databases []string

	Replica   replica.Settings
	Restore   Restore
	Replicate replicate.Settings
	Verify    time.Duration // between drills; 0: there are none

	Processes Processes

	LockTimeout time.Duration // how long a start waits for another instance to leave the volume
	StopTimeout time.Duration // for a whole stop, the app and the last upload

	// ControlSocket is the absolute path of the socket: of the one to serve, or of the one
	// to ask. "" is none.
	ControlSocket string

	// Idle are the flags or variables that have no effect because backups are off. It is
	// empty where backups are on.
	Idle []string

	Ask Ask
}

// Health is what serves the health page, and what it calls healthy.
type Health struct {
	Addr   string        // host:port to listen on or to ask; "" serves nothing
	MaxLag time.Duration // how long commits may wait to be uploaded
}

// Restore says which restore is due when a container starts, and how it is checked.
type Restore struct {
	Request   string     // which restore over the existing database is requested; "" is none
	Timestamp time.Time  // the state to restore; zero is the newest
	Check     check.Kind // also for the restore command
	OnStale   restore.OnStale
}

// Ask has the settings of single commands.
type Ask struct {
	Output    string        // restore: the file to restore to
	Timestamp time.Time     // restore: the state to restore; zero is the newest
	TXID      ltx.TXID      // restore: the last transaction to restore; 0 is the newest
	Now       bool          // restore: in the container that runs
	Timeout   time.Duration // sync: how long to wait
	JSON      bool          // status: print it as JSON
}

// Enabled reports whether backups are on. When they are off, the app is only
// supervised.
func (c Config) Enabled() bool { return len(c.Databases) > 0 }

// Secrets lists what must never be printed.
func (c Config) Secrets() []string {
	return []string{c.Replica.Storage.SecretAccessKey, c.Replica.Storage.AccessKeyID}
}

// Pageless reports whether the health page is off, or on a port that the system chose:
// nobody outside the container's own process can know where it is.
func (h Health) Pageless() bool {
	_, port, err := net.SplitHostPort(h.Addr)
	return h.Addr == "" || err == nil && port == "0"
}

// ErrHelp is the error of Parse when the arguments ask for help.
var ErrHelp = pflag.ErrHelp

// Error is everything that is wrong with a configuration, one line for each problem.
type Error struct {
	problems []problem
	usage    bool // a flag or an argument is wrong, as opposed to a value
	secrets  []string
}

func (e *Error) Error() string {
	lines := make([]string, len(e.problems))
	for i, p := range e.problems {
		lines[i] = "slasha-init: " + logs.Redact(p.String(), e.secrets)
	}
	return strings.Join(lines, "\n")
}

// ExitCode is exit.Usage when a flag or an argument is wrong, else exit.Config.
func (e *Error) ExitCode() int {
	if e.usage {
		return exit.Usage
	}
	return exit.Config
}

// Parse reads the arguments and the environment of a command and judges them. The error
// is ErrHelp, or an *Error with all problems at once.
func Parse(command string, args, environ []string) (Config, error) {
	r := &reading{source: newSource(settings, command, environ), name: command, command: command, environ: environ}
	rest, usage, err := parseFlags(r.flags, args)
	if err != nil {
		return Config{}, err
	}
	r.args = rest
	if command == "restore" && yes(r.get("now").text) {
		r.command = restoreNow
	}
	for _, s := range settings {
		if slices.Contains(s.by.judge, r.command) {
			s.read(r, r.get(s.name))
		}
	}
	for _, rule := range rules {
		rule(r)
	}
	slices.SortStableFunc(r.problems, func(a, b problem) int { return strings.Compare(a.where, b.where) })
	if len(usage) == 0 { // else nobody knows where the flags end
		usage = wrongArguments(r)
	}
	if problems := slices.Concat(usage, r.problems); len(problems) > 0 {
		return Config{}, &Error{problems: problems, usage: len(usage) > 0, secrets: r.cfg.Secrets()}
	}
	return r.cfg, nil
}

// reading is the work of one Parse.
type reading struct {
	*source
	name    string   // of the command
	command string   // the same, or restoreNow
	args    []string // what follows the flags
	environ []string
	cfg     Config
	processes
}
