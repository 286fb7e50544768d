package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// envPrefix and an option's name make the name of its variable.
const envPrefix = "SLASHA_"

// option is one setting: a flag, and the variable of the same name.
type option struct {
	name     string
	value    string   // default
	usage    string   // what it means; a word in `back quotes` names the value
	secret   bool     // never printed; can come from a file named by its _FILE variable
	fallback string   // another variable, asked last
	bare     string   // value of the flag without one, like "true"
	only     []string // subcommands that know it; nil for all that run or restore
}

// options is every setting there is, in the order in which help shows them.
var options = []option{
	{name: "db-path", usage: "absolute `path` of the SQLite database"},
	{name: "bucket", usage: "bucket `name`"},
	{name: "endpoint", usage: "`address` of an S3-compatible service, or file:///dir for a local folder (default Amazon S3)"},
	{name: "access-key-id", secret: true, fallback: "LITESTREAM_ACCESS_KEY_ID", usage: "access key `id`; then LITESTREAM_ACCESS_KEY_ID, then the AWS SDK's own chain"},
	{name: "secret-access-key", secret: true, fallback: "LITESTREAM_SECRET_ACCESS_KEY", usage: "secret access `key`; better set as a variable or a _FILE than as a flag"},
	{name: "path-prefix", value: "litestream", usage: "`folder` inside the bucket"},
	{name: "region", usage: "bucket's `region` (default from the endpoint, else as the server answers)"},
	{name: "restore-pending", value: "false", only: onlyRun, usage: "restore over the existing database, once: true (once for each container), or an `id` of the request"},
	{name: "restore-timestamp", only: onlyRun, usage: "a restore leads to the state at this `time`, as RFC 3339 (default the newest)"},
	{name: "on-stale", value: "restore", only: onlyRun, usage: "when the replica has left the database behind: `restore` its newest state (the database is set aside), or fail"},
	{name: "restore-check", value: "quick", usage: "how a restored database is checked: `quick`, full or off"},
	{name: "sync-interval", value: "500ms", usage: "least `time` between the uploads of a steady writer"},
	{name: "max-lag", value: "10s", usage: "commits that wait for longer make /healthz unhealthy"},
	{name: "snapshot-interval", value: "24h", usage: "`time` between full snapshots"},
	{name: "retention", value: "168h", usage: "how far back in `time` the replica can restore"},
	{name: "verify-interval", value: "off", only: onlyRun, usage: "restore the replica to a scratch file this `often` and check it, or off"},
	{name: "process-type", value: "web", usage: "what COMMAND is, or which of the Procfile's types runs: web, worker, ..."},
	{name: "procfile", only: onlyRun, usage: "run the processes of this `file` instead of COMMAND, one \"type: command\" a line"},
	{name: "formation", only: onlyRun, usage: "how many of each type, like `web=1,worker=2` (default one of each)"},
	{name: "log-prefix", bare: "true", only: onlyRun, usage: "put the process's name before each line that it writes"},
	{name: "user", only: onlyRun, usage: "run the app as this `user`: a name, uid, uid:gid or name:group"},
	{name: "no-new-privs", bare: "true", only: onlyRun, usage: "keep the app from gaining privileges by setuid programs"},
	{name: "signal-scope", value: "group", only: onlyRun, usage: "who gets signals: `group`, all that the command started, or child, the command alone"},
	{name: "stop-signal", only: onlyRun, usage: "`signal` that the app is stopped by (default the one that came, or TERM)"},
	{name: "lease", value: "auto", only: onlyRun, usage: "the lock in the bucket that keeps out instances on other volumes: `auto`, required or off"},
	{name: "lease-ttl", value: "60s", only: onlyRun, usage: "how much `time` after its last sign of life a crashed host's lease ends"},
	{name: "lock-timeout", value: "90s", only: onlyRun, usage: "for how much `time` to wait for another instance to leave the volume or the bucket"},
	{name: "stop-timeout", value: "9s", usage: "`time` for a whole stop, the app and the last upload"},
	{name: "kill-on-parent-death", bare: "TERM", only: onlyRun, usage: "stop when our parent dies, as by this `signal` (without a value TERM)"},
	{name: "health-addr", value: ":9180", usage: "`address` of the health page; port 0 takes a free one, off serves none"},
	{name: "control-socket", usage: "`path` of the socket for sync and restore --now, or off (default in our folder beside the database)"},
	{name: "log-format", value: "text", usage: "`format` of our own log: text or json"},
	{name: "log-level", value: "info", usage: "least `level` of our own log: debug, info, warn or error"},

	{name: "now", bare: "true", only: []string{"restore"}, usage: "restore in the container that runs: the app is stopped, and started again"},
	{name: "output", only: []string{"restore"}, usage: "restore to this `path`, where nothing is yet (default --db-path)"},
	{name: "timestamp", only: []string{"restore"}, usage: "restore the state at this `time`, as RFC 3339"},
	{name: "txid", only: []string{"restore"}, usage: "restore the state after this transaction `id`, 16 hex digits"},
	{name: "timeout", value: "30s", only: []string{"sync"}, usage: "for how much `time` to wait"},
	{name: "json", bare: "true", only: []string{"status"}, usage: "print the status as JSON"},
}

// onlyRun is for settings that only running an app has.
var onlyRun = []string{"run"}

func (o option) variable() string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(o.name, "-", "_"))
}

func (o option) knownTo(command string) bool {
	return o.only == nil || slices.Contains(o.only, command)
}

// setting is an option's value and where it came from.
type setting struct {
	value string
	from  string // "--name", "SLASHA_NAME", "the file of ...", or "" for the default
}

// problem is one thing that is wrong, told in one line.
type problem struct {
	where string // "--flag", or "--flag (from VARIABLE)"
	value string // quoted; empty when it is a secret, or when there is none
	want  string // what is wrong and what would be right
}

func (p problem) String() string {
	if p.value == "" {
		return p.where + ": " + p.want
	}
	return p.where + " " + p.value + ": " + p.want
}

// source looks settings up: flags first, then variables, then files that
// variables name, then fallbacks, then the default.
type source struct {
	command  string
	flags    *pflag.FlagSet
	env      map[string]string
	problems []problem
}

// flagSet makes the flags of a command. All values are strings here: so a value
// that can't be parsed is told together with all other problems, and by us.
func flagSet(command string) *pflag.FlagSet {
	fs := pflag.NewFlagSet("slasha-init", pflag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.SetInterspersed(false)
	fs.SortFlags = false
	fs.Usage = func() {}
	for _, o := range options {
		if o.knownTo(command) {
			fs.String(o.name, o.value, o.usage)
			fs.Lookup(o.name).NoOptDefVal = o.bare
		}
	}
	return fs
}

// parseFlags reads args and returns what follows the flags. Each flag that does
// not exist is told, not only the first. It returns pflag.ErrHelp for --help.
func parseFlags(fs *pflag.FlagSet, args []string) (rest []string, problems []problem, err error) {
	for {
		err := fs.Parse(args)
		var unknown *pflag.NotExistError
		var valueless *pflag.ValueRequiredError
		switch {
		case err == nil:
			return fs.Args(), problems, nil
		case errors.Is(err, pflag.ErrHelp):
			return nil, nil, pflag.ErrHelp
		case errors.As(err, &valueless):
			return nil, append(problems, problem{where: "--" + valueless.GetSpecifiedName(), want: "needs a value"}), nil
		case errors.As(err, &unknown):
			p, rest := forget(args, unknown)
			problems = append(problems, p)
			if rest == nil {
				return nil, problems, nil
			}
			args = rest
		default:
			// pflag's own words may repeat a value, and so a secret.
			return nil, append(problems, problem{where: "flags", want: "can't be understood; write them as --name=value, before -- and the command"}), nil
		}
	}
}

// forget takes the flag that does not exist out of args, so that the next one
// can be found. It returns nil when it can't tell where the flag was.
func forget(args []string, e *pflag.NotExistError) (problem, []string) {
	name := "--" + e.GetSpecifiedName()
	shown := oneWord(name)
	want := "there is no such flag; see slasha-init help"
	if short := e.GetSpecifiedShortnames(); short != "" {
		// Only the first letter: the rest may be a name and a value, as in the
		// one-dash style of other programs.
		return problem{where: "-" + oneWord(e.GetSpecifiedName()), want: "there are no one-letter flags; write two dashes, like --db-path"}, nil
	}
	for i, a := range args {
		if a == "--" {
			break
		}
		if a == name || strings.HasPrefix(a, name+"=") {
			return problem{where: shown, want: want}, slices.Concat(args[:i], args[i+1:])
		}
	}
	return problem{where: shown, want: want}, nil
}

func (s *source) complain(o option, set setting, want string) {
	p := problem{where: "--" + o.name, want: want}
	if set.from != "" && set.from != p.where {
		p.where += " (from " + set.from + ")"
	}
	if !o.secret && set.value != "" {
		p.value = quote(set.value)
	}
	s.problems = append(s.problems, p)
}

// quote makes a value safe to print: control characters escaped, and short.
func quote(v string) string {
	const most = 120
	if len(v) > most {
		v = v[:most] + "..."
	}
	return fmt.Sprintf("%q", v)
}

// get returns the value of an option, and complains about a source that can't
// be used. A variable that is set to nothing counts as not set.
func (s *source) get(name string) setting {
	o := options[slices.IndexFunc(options, func(o option) bool { return o.name == name })]
	if f := s.flags.Lookup(name); f != nil && f.Changed {
		return setting{f.Value.String(), "--" + name}
	}
	direct, file := s.env[o.variable()], s.env[o.variable()+"_FILE"]
	switch {
	case !o.secret:
	case direct != "" && file != "":
		s.complain(o, setting{from: o.variable()}, "is set, and so is "+o.variable()+"_FILE; set one of them")
		return setting{from: o.variable()}
	case file != "":
		v, err := readSecret(file)
		if err != nil {
			s.complain(o, setting{from: o.variable() + "_FILE"}, err.Error())
		}
		return setting{v, o.variable() + "_FILE"}
	}
	if direct != "" {
		return setting{direct, o.variable()}
	}
	if v := s.env[o.fallback]; o.fallback != "" && v != "" {
		return setting{v, o.fallback}
	}
	return setting{value: o.value}
}

// maxSecret is more than any key is long, in bytes.
const maxSecret = 16 << 10

// readSecret reads a file that holds a secret and maybe a line break.
func readSecret(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("the file can't be read: %w", err)
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err != nil {
		return "", fmt.Errorf("the file can't be read: %w", err)
	}
	v := strings.TrimSpace(string(b))
	switch {
	case len(b) > maxSecret:
		return "", fmt.Errorf("the file %s is longer than a secret can be", path)
	case v == "":
		return "", fmt.Errorf("the file %s is empty", path)
	}
	return v, nil
}

// appEnviron is the environment for the app: all of ours, minus the variables
// that set us up and the credentials.
func appEnviron(environ []string) []string {
	ours := make(map[string]bool)
	for _, o := range options {
		ours[o.variable()] = true
		if o.secret {
			ours[o.variable()+"_FILE"] = true
		}
		if o.fallback != "" {
			ours[o.fallback] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(environ), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return ours[name]
	})
}
