package config

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/slashacom/slasha-init/internal/exit"
)

// What several settings say together, by command. want is a part of the only problem;
// "" is none.
func TestRules(t *testing.T) {
	const bucket, db = "--bucket=my-bucket", "--db-path=/data/app.db"
	procfile := "--procfile=" + sampleDir(t) + "/Procfile"
	for _, c := range []struct {
		command string
		args    string
		want    string
		code    int
	}{
		{"run", bucket + " -- /app", "--db-path: is not set, but other settings", exit.Config},
		{"restore", bucket, "--db-path: is not set, but other settings", exit.Config},
		{"restore", bucket + " --output=/data/look.db", "", 0},
		{"restore", "--output=/data/look.db", "--bucket: is not set; a restore needs to know its replica", exit.Config},
		{"restore", bucket + " " + db + " --timestamp=2020-01-02T03:04:05Z --txid=0000000000000001", `--txid "0000000000000001": can't be used together with --timestamp`, exit.Config},
		{"restore", "--now " + db + " --timestamp=2020-01-02T03:04:05Z", "", 0},
		{"restore", "--now " + db + " --txid=0000000000000001", "can't be used together with --now", exit.Config},
		{"restore", "--now " + db + " --output=/data/look.db", "can't be used together with --now", exit.Config},
		{"restore", "--now " + db + " now", `restore "now": takes no arguments`, exit.Usage},
		{"restore", "--now", "--db-path: is not set; set it, or --control-socket", exit.Config},
		{"sync", "", "--db-path: is not set; set it, or --control-socket", exit.Config},
		{"sync", db + " --control-socket=off", "so there is no container to ask", exit.Config},
		{"sync", "--control-socket=/slasha.sock", "", 0},
		{"sync", "--health-addr=9180", "--health-addr", exit.Config},
		{"healthcheck", "--db-path=is/run's/business --log-level=loud --secret-access-key=half", "", 0},
		{"healthcheck", "--health-addr=off", "--db-path: is not set; set it, or --control-socket", exit.Config},
		{"status", "--health-addr=127.0.0.1:0 " + db, "", 0},
		{"run", "--restore-pending=true -- /app", "asks for a restore, but backups are off", exit.Config},
		{"run", procfile, "", 0},
		{"run", procfile + " --formation=web=1 --process-type=web", "--process-type \"web\": can't be used together with --formation", exit.Config},
		{"run", procfile + " --process-type=clock", "--process-type \"clock\": asks for clock, which is not in the Procfile", exit.Config},
		{"run", procfile + " --formation=web=2", "", 0},
		{"run", procfile + " --formation=web=2 --endpoint=file:///backups " + db, "asks for 2 web processes", exit.Config},
		{"run", procfile + " -- /app", "can't be used together with --procfile", exit.Usage},
		{"run", "--formation=web=1 -- /app", "set --procfile too", exit.Config},
	} {
		_, err := Parse(c.command, strings.Fields(c.args), nil)
		if c.want == "" {
			if err != nil {
				t.Errorf("%s %s: %v", c.command, c.args, err)
			}
			continue
		}
		var wrong *Error
		if !errors.As(err, &wrong) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") || wrong.ExitCode() != c.code {
			t.Errorf("%s %s: code %d, %v", c.command, c.args, exit.Code(err), err)
		}
	}
}

// Problems come in the order of the flags' names, those of usage first.
func TestOrderOfProblems(t *testing.T) {
	_, err := Parse("run", []string{"--stop-timeout=x", "--nope", "--bucket=a/b", "--", "/app"}, []string{"SLASHA_LEASE=x"})
	var got []string
	for line := range strings.Lines(err.Error()) {
		got = append(got, strings.Fields(line)[1])
	}
	if want := []string{"--nope:", "--bucket", "--db-path:", "--lease", "--stop-timeout"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

// A Procfile's processes are of the types that the formation or the process type asks for.
func TestProcesses(t *testing.T) {
	procfile := "--procfile=" + sampleDir(t) + "/Procfile"
	for flags, want := range map[string]string{
		"":                     "web.1 worker.1",
		"--formation=worker=2": "worker.1 worker.2",
		"--process-type=web":   "web.1",
	} {
		cfg, err := Parse("run", append([]string{procfile}, strings.Fields(flags)...), []string{"SLASHA_LEASE=auto", "HOME=/"})
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, c := range cfg.Processes.Commands {
			names = append(names, c.Name)
			if !slices.Equal(c.Env, []string{"HOME=/"}) {
				t.Errorf("%s: the app sees %q", c.Name, c.Env)
			}
		}
		if got := strings.Join(names, " "); got != want || cfg.Processes.Web() != strings.Contains(want, "web") {
			t.Errorf("%q: %s, web %v", flags, got, cfg.Processes.Web())
		}
	}
}
