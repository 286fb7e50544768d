package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"github.com/slashacom/slasha-init/supervisor"
)

// Processes is what is run, and how.
type Processes struct {
	Commands    []supervisor.Command
	StopSignal  syscall.Signal // 0: as it came
	Scope       supervisor.Scope
	User        *supervisor.User // nil: ours
	NoNewPrivs  bool
	LogPrefix   bool
	ParentDeath syscall.Signal // 0: not watched
}

// readProcesses reads what the app is: the command behind --, or a Procfile and
// a formation.
func (c *Config) readProcesses(s *source, command []string, environ []string) {
	p := &c.Processes
	p.NoNewPrivs = s.yes("no-new-privs")
	p.LogPrefix = s.yes("log-prefix")
	p.StopSignal = s.signal("stop-signal")
	if set := s.get("kill-on-parent-death"); no(set.value) {
		p.ParentDeath = 0
	} else if yes(set.value) {
		p.ParentDeath = syscall.SIGTERM
	} else {
		p.ParentDeath = s.signal("kill-on-parent-death")
	}
	p.Scope = choose(s, "signal-scope", "must be group, for all that the command started too, or child, for the command alone",
		map[string]supervisor.Scope{"group": supervisor.Group, "child": supervisor.Child})
	if set := s.get("user"); set.value != "" {
		user, err := supervisor.LookupUser(set.value)
		if err != nil {
			s.complain(option{name: "user"}, set, err.Error())
		}
		p.User = user
	}
	kind, procfile, formation := s.get("process-type"), s.get("procfile"), s.get("formation")
	if !supervisor.ValidType(kind.value) {
		s.complain(option{name: "process-type"}, kind, "must be a word of letters, digits, - and _, like web or worker")
	}
	switch {
	case procfile.value != "":
		p.Commands = s.formation(procfile, formation, kind, environ)
	case formation.value != "":
		s.complain(option{name: "formation"}, formation, "says how many processes of a Procfile run; set --procfile too")
	case len(command) > 0:
		p.Commands = []supervisor.Command{{Type: kind.value, Args: command, Env: environ}}
	}
	c.checkOneWriter(s, formation)
}

// formation makes the commands of a Procfile: of each type one, or as many as
// the formation says, or only those of the process type.
func (s *source) formation(procfile, formation, kind setting, environ []string) []supervisor.Command {
	text, err := readProcfile(procfile.value)
	if err != nil {
		s.complain(option{name: "procfile"}, procfile, "can't be read: "+err.Error())
		return nil
	}
	entries, err := supervisor.ParseProcfile(text)
	if err != nil {
		s.complain(option{name: "procfile"}, procfile, err.Error())
		return nil
	}
	from := option{name: "formation"}
	words := formation.value
	switch {
	case words != "" && kind.from != "":
		s.complain(option{name: "process-type"}, kind, "can't be used together with --formation; leave one out")
		return nil
	case kind.from != "":
		from, formation, words = option{name: "process-type"}, kind, kind.value+"=1"
	case words == "":
		words = "all=1"
	}
	f, err := supervisor.ParseFormation(words)
	if err != nil {
		s.complain(from, formation, err.Error())
		return nil
	}
	commands, err := f.Commands(entries, environ)
	if err != nil {
		s.complain(from, formation, err.Error())
	}
	return commands
}

// longestProcfile is more than any is, in bytes; the parser tells.
const longestProcfile = 2 << 20

func readProcfile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return io.ReadAll(io.LimitReader(f, longestProcfile))
}

// web is the process type that serves requests, and writes.
const web = "web"

// checkOneWriter refuses a formation that can only end in "database is locked"
// and, with instances on several hosts, in a spoiled replica.
func (c *Config) checkOneWriter(s *source, formation setting) {
	n := 0
	for _, cmd := range c.Processes.Commands {
		if cmd.Type == web {
			n++
		}
	}
	if n > 1 && c.Enabled() {
		s.complain(option{name: "formation"}, formation, fmt.Sprintf(
			"asks for %d web processes of an app with backups. SQLite has one writer: a second web process waits for its locks, and can't run on another host. Set web=1, and let one process serve more requests at a time", n))
	}
}

// signal reads a setting that names a signal, or nothing.
func (s *source) signal(name string) syscall.Signal {
	set := s.get(name)
	if set.value == "" {
		return 0
	}
	sig, err := supervisor.ParseSignal(set.value)
	if err != nil {
		s.complain(option{name: name}, set, err.Error())
	}
	return sig
}

// yes reads a setting that is on or off.
func (s *source) yes(name string) bool {
	set := s.get(name)
	if !yes(set.value) && !no(set.value) {
		s.complain(option{name: name}, set, "must be true or false")
	}
	return yes(set.value)
}

func yes(word string) bool { return isOneOf(word, "true", "1", "yes", "on") }

func no(word string) bool { return isOneOf(word, "", "false", "0", "no", "off") }

func isOneOf(word string, words ...string) bool {
	for _, w := range words {
		if strings.EqualFold(word, w) {
			return true
		}
	}
	return false
}
