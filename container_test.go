package main

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slashacom/slasha-init/config"
	"github.com/slashacom/slasha-init/healthz"
	"github.com/slashacom/slasha-init/internal/exit"
	"github.com/slashacom/slasha-init/supervisor"
)

func TestEndedWell(t *testing.T) {
	for name, c := range map[string]struct {
		stop syscall.Signal // 0: the app ended by itself
		exit supervisor.Exit
		want bool
	}{
		"well":                        {0, supervisor.Exit{}, true},
		"with a code of its own":      {0, supervisor.Exit{Code: 3}, false},
		"by the stop signal":          {syscall.SIGTERM, supervisor.Exit{Code: 143, Signal: syscall.SIGTERM}, true},
		"with the stop signal's code": {syscall.SIGTERM, supervisor.Exit{Code: 143}, true},
		"with another's":              {syscall.SIGTERM, supervisor.Exit{Code: 130}, false},
		"with that code by itself":    {0, supervisor.Exit{Code: 143}, false},
		"killed":                      {syscall.SIGTERM, supervisor.Exit{Code: 137, Signal: syscall.SIGKILL}, false},
	} {
		if got := endedWell(supervisor.Result{StopSignal: c.stop, Exit: c.exit}); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// An error that ends a start has its exit code, its line in the log and its sentence in
// health.
func TestRefuse(t *testing.T) {
	stopped := &exit.Stopped{Signal: syscall.SIGTERM}
	held := exit.With(exit.Held, errors.New("another instance holds this database"))
	for name, c := range map[string]struct {
		err     error
		started bool
		code    int
		logged  string
		failed  bool
	}{
		"a stop":             {fmt.Errorf("restore: %w", stopped), false, 143, "stopped before the app was started", false},
		"another instance":   {held, false, exit.Held, "waited=1m30s", true},
		"a restore":          {exit.With(exit.Restore, errors.New("the file is damaged")), false, exit.Restore, "the app is not started", true},
		"after the lease":    {held, true, exit.Held, "the app is not started again", true},
		"an error by itself": {errors.New("no reason given"), false, exit.No, "no reason given", true},
	} {
		var log bytes.Buffer
		box := &container{
			cfg: config.Config{LockTimeout: 90 * time.Second}, started: c.started,
			log: slog.New(slog.NewTextHandler(&log, nil)), health: healthz.New(healthz.Config{Enabled: true}),
		}
		if code := box.refuse(c.err); code != c.code {
			t.Errorf("%s: exit code %d, not %d", name, code, c.code)
		}
		if !strings.Contains(log.String(), c.logged) {
			t.Errorf("%s: it logs %q", name, log.String())
		}
		s := box.health.Status()
		if failed := s.Phase == healthz.Failed; failed != c.failed || failed && *s.HealthError != c.err.Error() {
			t.Errorf("%s: health is %+v", name, s)
		}
	}
}

// A command reports an error in one line, and a wrong configuration in one line for each
// problem. An answer that was printed is not repeated.
func TestReport(t *testing.T) {
	_, wrong := config.Parse("run", []string{"--bucket=x y", "--", "true"}, nil)
	for name, c := range map[string]struct {
		err  error
		code int
		said string
	}{
		"nothing":         {nil, 0, ""},
		"no":              {errNo, exit.No, ""},
		"an error":        {exit.With(exit.Restore, errors.New("damaged")), exit.Restore, "slasha-init: damaged\n"},
		"a configuration": {wrong, exit.Config, wrong.Error() + "\n"},
	} {
		var out bytes.Buffer
		if code := conclude(&out, c.err); code != c.code || out.String() != c.said {
			t.Errorf("%s: exit code %d, said %q", name, code, out.String())
		}
	}
}
