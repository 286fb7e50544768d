package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/slashacom/slasha-init/internal/text"
)

// given is the value of a setting and where it came from.
type given struct {
	*setting
	text string
	from string // "--name", "SLASHA_NAME", "SLASHA_NAME_FILE", the fallback, or "" for the default
}

// problem is one thing that is wrong, in one line.
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

// source looks values up: flags first, then variables, then files that variables
// name, then fallbacks, then the default. It collects what is wrong.
type source struct {
	// settings is the table. Readers look other settings up, so that the table can't be
	// a global here: Go refuses a variable that depends on itself.
	settings []setting
	flags    *pflag.FlagSet
	env      map[string]string
	found    map[string]given // so that each file is read once, and each problem reported once
	problems []problem
}

func newSource(settings []setting, command string, environ []string) *source {
	s := &source{settings: settings, flags: flagSet(settings, command), env: make(map[string]string), found: make(map[string]given)}
	for _, kv := range environ {
		if name, value, ok := strings.Cut(kv, "="); ok {
			s.env[name] = value
		}
	}
	return s
}

// get returns the value of a setting, and reports a source that can't be used as a
// problem. A variable that is set to nothing counts as not set.
func (s *source) get(name string) given {
	g, ok := s.found[name]
	if !ok {
		g = s.look(&s.settings[slices.IndexFunc(s.settings, func(x setting) bool { return x.name == name })])
		s.found[name] = g
	}
	return g
}

func (s *source) look(x *setting) given {
	if f := s.flags.Lookup(x.name); f != nil && f.Changed {
		return given{x, f.Value.String(), "--" + x.name}
	}
	direct, file := s.env[x.variable()], s.env[x.fileVariable()]
	switch {
	case !x.secret:
	case direct != "" && file != "":
		g := given{setting: x, from: x.variable()}
		s.wrong(g, "is set, and so is "+x.fileVariable()+"; set one of them")
		return g
	case file != "":
		v, err := readSecret(file)
		g := given{x, v, x.fileVariable()}
		if err != nil {
			s.wrong(g, err.Error())
		}
		return g
	}
	if direct != "" {
		return given{x, direct, x.variable()}
	}
	if v := s.env[x.fallback]; x.fallback != "" && v != "" {
		return given{x, v, x.fallback}
	}
	return given{setting: x, text: x.value}
}

// wrong reports a problem of a value. It shows the value, unless it is a secret.
func (s *source) wrong(g given, want string) {
	p := problem{where: "--" + g.name, want: want}
	if g.from != "" && g.from != p.where {
		p.where += " (from " + g.from + ")"
	}
	if !g.secret && g.text != "" {
		p.value = text.Quote(g.text)
	}
	s.problems = append(s.problems, p)
}

// maxSecret is in bytes, and more than any key is long.
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

// appEnviron is the environment for the app: all of ours, minus the variables of our
// settings and the credentials.
func appEnviron(environ []string) []string {
	ours := make(map[string]bool)
	for _, s := range settings {
		ours[s.variable()] = true
		if s.secret {
			ours[s.fileVariable()] = true
		}
		if s.fallback != "" {
			ours[s.fallback] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(environ), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return ours[name]
	})
}

// flagSet makes the flags of a command. All values are strings here: so a value that
// can't be parsed is reported by us, and together with all other problems.
func flagSet(settings []setting, command string) *pflag.FlagSet {
	fs := pflag.NewFlagSet("slasha-init", pflag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.SetInterspersed(false)
	fs.SortFlags = false
	fs.Usage = func() {}
	for _, s := range settings {
		if slices.Contains(s.by.take, command) {
			fs.String(s.name, s.value, s.usage)
			fs.Lookup(s.name).NoOptDefVal = s.bare
		}
	}
	return fs
}

// parseFlags reads args and returns what follows the flags. It reports each flag that
// does not exist, not only the first. The error is pflag.ErrHelp, for --help.
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

// forget takes the flag that does not exist out of args, so that the next one can be
// found. It returns nil when it does not find where the flag was.
func forget(args []string, e *pflag.NotExistError) (problem, []string) {
	name := "--" + e.GetSpecifiedName()
	shown := text.Word(name)
	want := "there is no such flag; see slasha-init help"
	if short := e.GetSpecifiedShortnames(); short != "" {
		// Only the first letter: the rest may be a name and a value, as in the
		// one-dash style of other programs.
		return problem{where: "-" + text.Word(e.GetSpecifiedName()), want: "there are no one-letter flags; write two dashes, like --db-path"}, nil
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
