package supervisor

import (
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"
)

func TestWords(t *testing.T) {
	for line, want := range map[string][]string{
		"/app serve":                    {"/app", "serve"},
		"  app \t  -x  ":                {"app", "-x"},
		`app "a b" 'c "d"' e\ f`:        {"app", "a b", `c "d"`, "e f"},
		`app "" ''`:                     {"app", "", ""},
		`app "say \"hi\" \n"`:           {"app", `say "hi" \n`},
		`app a"b"'c'`:                   {"app", "abc"},
		"app --port=80":                 {"app", "--port=80"},
		"app '$PORT;|'":                 {"app", "$PORT;|"},
		"app $PORT":                     {"/bin/sh", "-c", "app $PORT"},
		`app "$PORT"`:                   {"/bin/sh", "-c", `app "$PORT"`},
		"a && b":                        {"/bin/sh", "-c", "a && b"},
		"PORT=1 app":                    {"/bin/sh", "-c", "PORT=1 app"},
		"exec app":                      {"/bin/sh", "-c", "exec app"},
		"app >log":                      {"/bin/sh", "-c", "app >log"},
		"app *.txt":                     {"/bin/sh", "-c", "app *.txt"},
		"bundle exec puma -C config.rb": {"bundle", "exec", "puma", "-C", "config.rb"},
	} {
		if got, err := Words(line); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %q, %v; want %q", line, got, err, want)
		}
	}
	for _, line := range []string{"", "  ", `app "`, "app 'x", `app \`, `""`} {
		if got, err := Words(line); err == nil {
			t.Errorf("%q gives %q", line, got)
		}
	}
}

func TestParseProcfile(t *testing.T) {
	entries, err := ParseProcfile([]byte("\ufeff# shop\r\nweb: /app serve --addr :80\r\n\r\n  worker-2:  a:b\nUpper_1:x"))
	want := []Entry{{"web", "/app serve --addr :80"}, {"worker-2", "a:b"}, {"Upper_1", "x"}}
	if err != nil || !slices.Equal(entries, want) {
		t.Errorf("%+v, %v", entries, err)
	}
	for text, says := range map[string]string{
		"":                                     "has no process",
		"# only this\n":                        "has no process",
		"web: /app\nworker /app":               "line 2 has no colon",
		"web 1: /app":                          `line 1: "web 1" is not a process type`,
		": /app":                               "is not a process type",
		"web:":                                 "line 1: web has no command",
		"web: a\n\nweb: b":                     "line 3: web is there already, in line 1",
		"web: a\x00b":                          "zero byte",
		strings.Repeat("x", 2*longestProcfile): "is longer than",
	} {
		if _, err := ParseProcfile([]byte(text)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%.20q: %v, want %q", text, err, says)
		}
	}
}

func TestFormation(t *testing.T) {
	entries := []Entry{{"web", "/app serve"}, {"worker", "/app work"}, {"odd", `"`}}
	for words, want := range map[string]string{
		"web=1,worker=2":    "web.1 worker.1 worker.2",
		"worker = 1 ,web=0": "worker.1",
		"all=1,odd=0":       "web.1 worker.1",
		"all=0,web=1":       "web.1",
	} {
		f, err := ParseFormation(words)
		if err != nil {
			t.Errorf("%q: %v", words, err)
			continue
		}
		commands, err := f.Commands(entries, nil)
		var names []string
		for _, c := range commands {
			names = append(names, c.Name)
		}
		if got := strings.Join(names, " "); err != nil || got != want {
			t.Errorf("%q: %s, %v", words, got, err)
		}
	}
	for words, says := range map[string]string{
		"":                   "is wrong at",
		"web":                "is wrong at",
		"web=1,":             "is wrong at",
		"web=-1":             "has no number from 0 to 256 for web",
		"web=1000":           "has no number",
		"web=1,web=2":        "names web twice",
		"web=0":              "asks for zero processes",
		"clock=1":            "asks for clock, which is not in the Procfile",
		"odd=1":              "asks for odd, whose command in the Procfile has a quote",
		"web=200,worker=200": "asks for 400 processes",
	} {
		f, err := ParseFormation(words)
		if err == nil {
			_, err = f.Commands(entries, nil)
		}
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want %q", words, err, says)
		}
	}
}

func TestParseSignal(t *testing.T) {
	for word, want := range map[string]syscall.Signal{
		"TERM": 15, "SIGTERM": 15, "sigquit": 3, "15": 15, "RTMIN": 34, "SIGRTMIN+3": 37, "RTMAX": 64, "RTMAX-1": 63, "SIGWINCH": 28,
	} {
		if got, err := ParseSignal(word); err != nil || got != want {
			t.Errorf("%s is %d, %v", word, got, err)
		}
	}
	for _, word := range []string{"", "NOPE", "0", "-1", "65", "KILL", "9", "STOP", "CHLD", "32", "33", "RTMIN-1", "RTMIN+31", "RTMAX+1", "RTMIN+x"} {
		if got, err := ParseSignal(word); err == nil {
			t.Errorf("%q is %d", word, got)
		}
	}
	for sig := syscall.Signal(1); sig <= lastSignal; sig++ {
		if got, err := ParseSignal(SignalName(sig)); err == nil && got != sig {
			t.Errorf("%d is called %s, which is %d", sig, SignalName(sig), got)
		}
	}
}

// Whatever a Procfile holds, what is read from it is what stands there, and can
// be started as it is.
func FuzzParseProcfile(f *testing.F) {
	for _, s := range []string{"web: /app serve\nworker: \"a b\"", "#\n\n", "web:", "\ufeffweb: a\r\n", "a: b\na: c", "a: $x 'y"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		entries, err := ParseProcfile(text)
		if (err == nil) != (len(entries) > 0) {
			t.Fatalf("%d entries and %v", len(entries), err)
		}
		seen := make(map[string]bool)
		for _, e := range entries {
			if !ValidType(e.Type) || seen[e.Type] || e.Command == "" || strings.ContainsAny(e.Command, "\n\x00") || strings.TrimSpace(e.Command) != e.Command {
				t.Fatalf("%+v", e)
			}
			seen[e.Type] = true
			if !strings.Contains(string(text), e.Command) {
				t.Fatalf("%q does not stand there", e.Command)
			}
			if words, err := Words(e.Command); err == nil && (len(words) == 0 || words[0] == "") {
				t.Fatalf("%q has the words %q", e.Command, words)
			}
		}
	})
}

func FuzzParseFormation(f *testing.F) {
	for _, s := range []string{"web=1,worker=2", "all=1", "web=", "=1", "a=1,,", "web = 3"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, words string) {
		formation, err := ParseFormation(words)
		if err != nil {
			if formation != nil || err.Error() == "" {
				t.Fatalf("%v, %v", formation, err)
			}
			return
		}
		var entries []Entry
		sum := 0
		for name, n := range formation {
			if !ValidType(name) || n < 0 || n > mostProcesses {
				t.Fatalf("%q: %s=%d", words, name, n)
			}
			if name != all {
				entries = append(entries, Entry{name, "/app"})
				sum += n
			}
		}
		commands, err := formation.Commands(entries, nil)
		if err == nil && len(commands) != sum {
			t.Fatalf("%q: %d commands", words, len(commands))
		}
	})
}

// Where we split a line ourselves, a shell splits it in the same way.
func FuzzWords(f *testing.F) {
	for _, s := range []string{"app a b", `app "a b" 'c'`, `app a\ b`, `app "\\" '\'`, "app\ta", `app "\a"`} {
		f.Add(s)
	}
	sh, err := exec.LookPath("sh")
	if err != nil {
		f.Skip("no shell")
	}
	f.Fuzz(func(t *testing.T, line string) {
		words, err := Words(line)
		if err != nil || words[0] == "/bin/sh" || strings.ContainsAny(line, "\n\r\x00") || !utf8.ValidString(line) {
			return
		}
		out, err := exec.Command(sh, "-c", "for w in "+line+`; do printf '%s\n' "$w"; done`).Output()
		if err != nil {
			t.Fatalf("the shell does not take %q, which we split into %q: %v", line, words, err)
		}
		if want := strings.Join(words, "\n") + "\n"; string(out) != want {
			t.Fatalf("%q: the shell has %q, we %q", line, out, want)
		}
	})
}
