package supervisor

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Entry is one line of a Procfile: a process type and its command.
type Entry struct {
	Type    string
	Command string
}

const (
	// mostProcesses bounds what a formation can start: more is a typing error.
	mostProcesses = 256
	// longestProcfile is in bytes, and more than any is.
	longestProcfile = 1 << 20
	// longestType is in bytes.
	longestType = 63
)

// ParseProcfile reads a Procfile: one "type: command" a line, empty lines and
// those that begin with # left out. The error names the line.
func ParseProcfile(text []byte) ([]Entry, error) {
	if len(text) > longestProcfile {
		return nil, fmt.Errorf("is longer than %d bytes", longestProcfile)
	}
	text = bytes.TrimPrefix(text, []byte("\ufeff")) // some editors put it there
	var entries []Entry
	seen := make(map[string]int)
	for i, line := range strings.Split(string(text), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		name, command, found := strings.Cut(line, ":")
		command = strings.TrimSpace(command)
		switch {
		case !found:
			return nil, fmt.Errorf("line %d has no colon; write it like: web: /app serve", i+1)
		case !ValidType(name):
			return nil, fmt.Errorf("line %d: %q is not a process type: a word of letters, digits, - and _", i+1, name)
		case command == "":
			return nil, fmt.Errorf("line %d: %s has no command", i+1, name)
		case strings.ContainsRune(command, 0):
			return nil, fmt.Errorf("line %d: the command holds a zero byte", i+1)
		case seen[name] > 0:
			return nil, fmt.Errorf("line %d: %s is there already, in line %d", i+1, name, seen[name])
		}
		seen[name] = i + 1
		entries = append(entries, Entry{name, command})
	}
	if len(entries) == 0 {
		return nil, errors.New("has no process; write a line like: web: /app serve")
	}
	return entries, nil
}

// ValidType reports whether a word can name a process type.
func ValidType(name string) bool {
	const chars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"
	return name != "" && len(name) <= longestType && strings.Trim(name, chars) == "" && strings.Trim(name, "-_") != ""
}

// Formation is how many processes of each type run. The type "all" stands for
// those that are not named.
type Formation map[string]int

// all is the word for every type in a formation.
const all = "all"

// ParseFormation reads "web=1,worker=2". The error is a sentence about the
// words.
func ParseFormation(words string) (Formation, error) {
	f := make(Formation)
	for _, part := range strings.Split(words, ",") {
		name, count, found := strings.Cut(strings.TrimSpace(part), "=")
		name = strings.TrimSpace(name)
		n, err := strconv.ParseUint(strings.TrimSpace(count), 10, 16)
		_, twice := f[name]
		switch {
		case !found || !ValidType(name):
			return nil, fmt.Errorf("is wrong at %q; write it like web=1,worker=2", part)
		case err != nil || n > mostProcesses:
			return nil, fmt.Errorf("has no number from 0 to %d for %s; write it like web=1,worker=2", mostProcesses, name)
		case twice:
			return nil, fmt.Errorf("names %s twice", name)
		}
		f[name] = int(n)
	}
	return f, nil
}

// Count is how many processes of a type run.
func (f Formation) Count(name string) int {
	if n, ok := f[name]; ok {
		return n
	}
	return f[all]
}

// Commands makes the commands that a formation asks for, in the order of the
// Procfile. The error is a sentence about the formation.
func (f Formation) Commands(entries []Entry, env []string) ([]Command, error) {
	known := make(map[string]bool)
	var commands []Command
	for _, e := range entries {
		known[e.Type] = true
		args, err := Words(e.Command)
		if err != nil && f.Count(e.Type) > 0 {
			return nil, fmt.Errorf("asks for %s, whose command in the Procfile %w", e.Type, err)
		}
		for n := range f.Count(e.Type) {
			commands = append(commands, Command{Type: e.Type, Name: fmt.Sprintf("%s.%d", e.Type, n+1), Args: args, Env: env})
		}
	}
	for name := range f {
		if name != all && !known[name] {
			return nil, fmt.Errorf("asks for %s, which is not in the Procfile", name)
		}
	}
	switch {
	case len(commands) == 0:
		return nil, errors.New("asks for zero processes")
	case len(commands) > mostProcesses:
		return nil, fmt.Errorf("asks for %d processes; at most %d can run", len(commands), mostProcesses)
	}
	return commands, nil
}

// shellWords are characters that only a shell can act on.
const shellWords = "$`|&;<>()*?[]{}~#!"

// Words splits a command line as a shell does: at blanks, with quotes and
// backslashes. A line that asks for more than that, like a variable or a pipe, is
// given to /bin/sh, as foreman does with every line; so an image without a shell
// can have a Procfile too. The error is a sentence about the line.
func Words(line string) ([]string, error) {
	var words []string
	var word strings.Builder
	inWord, quote := false, byte(0)
	for i := 0; i < len(line); i++ {
		c := line[i]
		switch {
		case quote == '\'' && c != quote:
			word.WriteByte(c)
		case quote != 0 && c == quote:
			quote = 0
		case c == '$' || c == '`', quote == 0 && strings.IndexByte(shellWords, c) >= 0:
			return []string{"/bin/sh", "-c", line}, nil
		case c == '\\' && i+1 == len(line):
			return nil, errors.New("ends with a backslash")
		case c == '\\' && quote == '"' && strings.IndexByte("\"\\", line[i+1]) < 0:
			word.WriteByte(c)
		case c == '\\':
			i++
			word.WriteByte(line[i])
			inWord = true
		case quote == 0 && (c == '"' || c == '\''):
			quote, inWord = c, true
		case quote == 0 && (c == ' ' || c == '\t'):
			if inWord {
				words = append(words, word.String())
				word.Reset()
				inWord = false
			}
		default:
			word.WriteByte(c)
			inWord = true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("has a quote %c that does not end", quote)
	}
	if inWord {
		words = append(words, word.String())
	}
	if len(words) == 0 || words[0] == "" {
		return nil, errors.New("has no program")
	}
	if strings.Contains(words[0], "=") || builtin[words[0]] {
		return []string{"/bin/sh", "-c", line}, nil // a variable for the command, or a word of the shell
	}
	return words, nil
}

// builtin are words that a shell understands and that no file need exist for.
var builtin = map[string]bool{
	"exec": true, "cd": true, ".": true, "source": true, "export": true, "unset": true, "set": true, "ulimit": true,
	"umask": true, "trap": true, "if": true, "for": true, "while": true, "until": true, "case": true, "eval": true, "command": true, ":": true,
}
