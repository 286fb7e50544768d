package conformance

import (
	"flag"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/slashacom/slasha-init/internal/testbed"
)

var (
	peers = flag.Bool("peers", false, "examine tini, dumb-init and catatonit too")
	write = flag.Bool("write", false, "write the table to docs/pid1.md")
)

// TestConformance wants ours to pass every check. With -peers it examines the
// others too; their failures are logged and don't fail the test.
func TestConformance(t *testing.T) {
	testbed.NeedRoot(t)
	t.Parallel()
	all := subjects(t)
	if !*peers {
		all = all[:1]
	}
	var results []*result
	t.Cleanup(func() { // when the last check has ended
		table := scores(all, results)
		t.Log("\n" + table)
		if *write {
			save(t, all, table, results)
		}
	})
	for _, s := range all {
		for _, pid1 := range []bool{true, false} {
			for _, c := range checks {
				if (pid1 && c.pid1 == onlyNotPID1) || (!pid1 && c.pid1 == onlyPID1) {
					continue
				}
				r := &result{check: c, subject: s.name, pid1: pid1}
				results = append(results, r)
				t.Run(fmt.Sprintf("%s/%s/%s", s.name, where(pid1), c.name), func(t *testing.T) {
					if !*peers { // peers get less patience than ours, so each of their checks runs alone
						t.Parallel()
					}
					r.failure = examine(t, s, pid1, c.run)
					switch {
					case r.failure == "":
					case s.ours:
						t.Error(r.failure)
					default:
						t.Log(r.failure)
					}
				})
			}
		}
	}
}

// result is what one check has shown about one init.
type result struct {
	check
	subject string
	pid1    bool
	failure string
}

func where(pid1 bool) string {
	if pid1 {
		return "PID 1"
	}
	return "not PID 1"
}

// scores makes the table of how many checks each init passes.
func scores(all []subject, results []*result) string {
	var b strings.Builder
	b.WriteString("| init | as PID 1 | not as PID 1 |\n|---|---|---|\n")
	for _, s := range all {
		fmt.Fprintf(&b, "| %s |", title(s))
		for _, pid1 := range []bool{true, false} {
			passed, of := 0, 0
			for _, r := range results {
				if r.subject == s.name && r.pid1 == pid1 {
					of++
					if r.failure == "" {
						passed++
					}
				}
			}
			fmt.Fprintf(&b, " %d of %d |", passed, of)
		}
		b.WriteString("\n")
	}
	return b.String()
}

// title names an init with its version.
func title(s subject) string {
	if s.ours {
		return s.name
	}
	out, _ := exec.Command(s.path, "--version").CombinedOutput()
	for _, word := range strings.Fields(string(out)) {
		if word = strings.TrimPrefix(word, "v"); word[0] >= '0' && word[0] <= '9' && strings.Contains(word, ".") {
			word, _, _ = strings.Cut(word, "_")
			return s.name + " " + word
		}
	}
	return s.name
}

// save writes the results into the document.
func save(t *testing.T, all []subject, table string, results []*result) {
	var b strings.Builder
	b.WriteString("\n" + table + "\n| check |")
	for _, s := range all {
		b.WriteString(" " + s.name + " |")
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(all)) + "\n")
	var notes strings.Builder
	for _, c := range checks {
		fmt.Fprintf(&b, "| %s |", c.name)
		var failed []string
		for _, s := range all {
			mark, why := verdict(s, c, results)
			fmt.Fprintf(&b, " %s |", mark)
			if why != "" {
				failed = append(failed, why)
			}
		}
		b.WriteString("\n")
		if len(failed) > 0 {
			sentence := ""
			if c.why != "" {
				sentence = ": " + c.why
			}
			fmt.Fprintf(&notes, "- **%s**%s. %s.\n", c.name, sentence, strings.Join(failed, "; "))
		}
	}
	b.WriteString("\n## What was seen where a peer fails\n\n" + notes.String())
	testbed.WriteDocument(t, "pid1.md", "conformance", b.String())
}

// verdict is a cell of the table, and what was seen.
func verdict(s subject, c check, results []*result) (mark, seen string) {
	var failed, all []*result
	for _, r := range results {
		if r.subject == s.name && r.name == c.name {
			all = append(all, r)
			if r.failure != "" {
				failed = append(failed, r)
			}
		}
	}
	switch {
	case len(failed) == 0:
		return "yes", ""
	case len(failed) == len(all):
		return "no", s.name + ": " + oneLine(failed[0].failure)
	}
	return "not as " + strings.TrimPrefix(where(failed[0].pid1), "not "), s.name + " (" + where(failed[0].pid1) + "): " + oneLine(failed[0].failure)
}

func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	const most = 160
	if len(s) > most {
		s = s[:most] + "..."
	}
	return strings.TrimSuffix(s, ".")
}
