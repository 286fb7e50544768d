package config

import (
	"io"
	"os"
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

// web is the process type that serves requests, and writes.
const web = "web"

// Web reports whether one of the processes is of the type web.
func (p Processes) Web() bool { return p.count(web) > 0 }

func (p Processes) count(kind string) int {
	n := 0
	for _, c := range p.Commands {
		if c.Type == kind {
			n++
		}
	}
	return n
}

// processes is what the settings of processes say, before chooseProcesses makes commands of it.
type processes struct {
	entries   []supervisor.Entry   // of the Procfile; nil without one that can be read
	formation supervisor.Formation // nil without one that can be read
}

func readProcessType(r *reading, g given) {
	if !supervisor.ValidType(g.text) {
		r.wrong(g, "must be a word of letters, digits, - and _, like web or worker")
	}
}

func readProcfile(r *reading, g given) {
	if g.text == "" {
		return
	}
	content, err := contentOf(g.text)
	if err != nil {
		r.wrong(g, "can't be read: "+err.Error())
		return
	}
	if r.entries, err = supervisor.ParseProcfile(content); err != nil {
		r.wrong(g, err.Error())
	}
}

// longestProcfile is in bytes, and more than the parser accepts, so that the parser
// reports a file that is too long.
const longestProcfile = 2 << 20

func contentOf(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return io.ReadAll(io.LimitReader(f, longestProcfile))
}

func readFormation(r *reading, g given) {
	if g.text == "" || r.entries == nil {
		return
	}
	var err error
	if r.formation, err = supervisor.ParseFormation(g.text); err != nil {
		r.wrong(g, err.Error())
	}
}

func readUser(r *reading, g given) {
	if g.text == "" {
		return
	}
	user, err := supervisor.LookupUser(g.text)
	if err != nil {
		r.wrong(g, err.Error())
	}
	r.cfg.Processes.User = user
}

// readParentDeath reads the name of a signal, or yes for TERM, or no.
func readParentDeath(r *reading, g given) {
	switch {
	case no(g.text):
	case yes(g.text):
		r.cfg.Processes.ParentDeath = syscall.SIGTERM
	default:
		signal(func(c *Config) *syscall.Signal { return &c.Processes.ParentDeath })(r, g)
	}
}

// chooseProcesses makes the commands: the one behind --, or those of the Procfile. Of
// these it takes one of each type, or as many as the formation says, or only the one of
// the process type.
func chooseProcesses(r *reading) {
	if r.command != "run" {
		return
	}
	kind, procfile, formation := r.get("process-type"), r.get("procfile"), r.get("formation")
	environ := appEnviron(r.environ)
	switch {
	case procfile.text == "" && formation.text != "":
		r.wrong(formation, "says how many processes of a Procfile run; set --procfile too")
	case procfile.text == "" && len(r.args) > 0:
		r.cfg.Processes.Commands = []supervisor.Command{{Type: kind.text, Args: r.args, Env: environ}}
	case r.entries == nil: // nothing is given, or the Procfile is wrong
	case formation.text != "" && kind.from != "":
		r.wrong(kind, "can't be used together with --formation; leave one out")
	case formation.text != "":
		r.fill(formation, r.formation, environ)
	default:
		from, words := formation, "all=1"
		if kind.from != "" {
			from, words = kind, kind.text+"=1"
		}
		f, err := supervisor.ParseFormation(words)
		if err != nil {
			r.wrong(from, err.Error())
		}
		r.fill(from, f, environ)
	}
}

// fill makes the commands of a formation that the setting from asks for. If the
// formation is wrong, fill makes none.
func (r *reading) fill(from given, f supervisor.Formation, environ []string) {
	if f == nil {
		return
	}
	commands, err := f.Commands(r.entries, environ)
	if err != nil {
		r.wrong(from, err.Error())
	}
	r.cfg.Processes.Commands = commands
}
