package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/slashacom/slasha-init/healthz"
	"github.com/slashacom/slasha-init/internal/durable"
	"github.com/slashacom/slasha-init/internal/logs"
	"github.com/slashacom/slasha-init/lineage"
	"github.com/slashacom/slasha-init/lock"
	"github.com/slashacom/slasha-init/replica/storage"
	"github.com/slashacom/slasha-init/restore"
)

// dispatch runs the command that the first argument names. Only the first can:
// everything behind -- belongs to the app.
func dispatch(args, environ []string) int {
	if len(args) == 0 || strings.HasPrefix(args[0], "-") {
		return run(args, environ)
	}
	name, args := args[0], args[1:]
	switch name {
	case "run":
		return run(args, environ)
	case "restore":
		return restoreCommand(args, environ)
	case "healthcheck":
		return healthcheck(args, environ)
	case "status":
		return status(args, environ)
	case "version":
		fmt.Printf("slasha-init %s %s/%s %s\n", version, runtime.GOOS, runtime.GOARCH, runtime.Version())
		return 0
	case "help":
		help(os.Stdout)
		return 0
	case "sync":
		return syncCommand(args, environ)
	}
	fmt.Fprintf(os.Stderr, "slasha-init: there is no command %s; to run it as the app, write: slasha-init -- %s\n", quote(name), oneWord(name))
	return exitUsage
}

// oneWord keeps control characters of an argument off the terminal.
func oneWord(s string) string { return strings.Trim(quote(s), `"`) }

// tellConfig prints why a command can't be run as asked, and returns the exit code.
func tellConfig(out io.Writer, err error) int {
	if errors.Is(err, pflag.ErrHelp) {
		help(os.Stdout)
		return 0
	}
	fmt.Fprintln(out, err)
	var wrong *configError
	if errors.As(err, &wrong) && !wrong.usage {
		return exitConfig
	}
	return exitUsage
}

// restoreCommand restores to a file for a person who wants to look, or to the
// database's path while the app does not run. It refuses to touch a file that
// is there.
func restoreCommand(args, environ []string) int {
	cfg, err := Parse("restore", args, environ)
	if err != nil {
		return tellConfig(os.Stderr, err)
	}
	if cfg.Now {
		return restoreNow(cfg)
	}
	out := logs.NewWriter(os.Stderr)
	out.Hide(cfg.Secrets())
	defer out.Flush(500 * time.Millisecond)
	log := logs.New(out, cfg.Log)
	if err := restoreTo(cfg, log, out); err != nil {
		fmt.Fprintf(out, "slasha-init: %v\n", err)
		var stopped *stoppedError
		var held *lock.HeldError
		switch {
		case errors.As(err, &stopped):
			return 128 + int(stopped.sig)
		case errors.As(err, &held):
			return exitHeld
		}
		return exitRestore
	}
	return 0
}

type stoppedError struct{ sig syscall.Signal }

func (e *stoppedError) Error() string {
	return "stopped by " + e.sig.String() + "; nothing was restored"
}

// restoreTo restores into a scratch folder beside the output, verifies, and moves
// the file into place.
func restoreTo(cfg Config, log *slog.Logger, out io.Writer) error {
	dst, err := filepath.Abs(cfg.Output)
	if err != nil {
		return err
	}
	if dst == cfg.DBPath {
		unlock, err := lockVolume(cfg)
		if err != nil {
			return err
		}
		defer unlock()
	}
	if _, err := os.Lstat(dst); err == nil {
		return fmt.Errorf("%s is there already; restore to another path with --output, or move it away", dst)
	}
	if left := restore.Leftover(dst); left != "" && dst != cfg.DBPath {
		return fmt.Errorf("%s is there, and would be taken for a part of the restored database; move it away", left)
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	go func() {
		if sig, ok := (<-signals).(syscall.Signal); ok {
			cancel(&stoppedError{sig})
		}
	}()

	storage.IsolateEnvironment(cfg.AccessKeyID != "")
	sc := cfg.Storage()
	sc.Logger = log
	debug.SetGCPercent(smallHeap)
	client, err := storage.Open(sc)
	if err != nil {
		return err
	}
	scratch, done, err := scratchFor(cfg, dst)
	if err != nil {
		return err
	}
	defer done()

	show := newProgress(log, os.Stderr)
	file := filepath.Join(scratch, "restored")
	rc := restore.Config{
		DBPath:   cfg.DBPath,
		StateDir: cfg.StateDir(),
		Client:   client,
		Explain: func(err error) (string, bool) {
			p := client.Explain(err)
			return p.Sentence, p.Temporary
		},
		Timestamp:  cfg.Timestamp,
		Check:      cfg.RestoreCheck,
		OnProgress: show.show,
		Logger:     log,
	}
	got, err := restore.Fetch(ctx, rc, file, cfg.TXID)
	show.done()
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if err != nil {
		return err
	}
	if dst == cfg.DBPath {
		// With the owner and mode that an app expects, and as what goes on from the
		// replica.
		if err = lineage.Adopt(cfg.DBPath, cfg.StateDir(), file, got.Newest); err == nil && got.TXID < got.Newest {
			err = restore.BeginNewLine(cfg.StateDir())
		}
		if err == nil {
			err = restore.Install(rc, file)
		}
	} else {
		err = moveToNew(file, dst)
	}
	if err != nil {
		return fmt.Errorf("cannot put the restored database into place: %w", err)
	}
	fmt.Fprintf(out, "slasha-init: restored %s from %s: %s in %s\n", dst, client, healthz.Bytes(got.BytesDone), got.Took.Round(time.Millisecond))
	return nil
}

// scratchFor makes the folder on the file system of dst in which that is put together,
// for as long as done is not called. What an earlier restore to dst left there,
// because it was killed, is removed; one that runs is a *lock.HeldError.
func scratchFor(cfg Config, dst string) (dir string, done func(), err error) {
	dir = filepath.Join(filepath.Dir(dst), "."+filepath.Base(dst)+".slasha-restore")
	if dst == cfg.DBPath {
		dir = restore.ScratchDir(cfg.StateDir()) // which a container's start clears too
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", nil, fmt.Errorf("cannot restore beside the output: %w", err)
	}
	mine, err := lock.Try(filepath.Join(dir, "lock"), "slasha-init restore, "+whoWeAre())
	var held *lock.HeldError
	if errors.As(err, &held) {
		return "", nil, fmt.Errorf("%s is being restored already: %w", dst, held)
	}
	left, err := os.ReadDir(dir)
	for _, e := range left {
		if e.Name() != "lock" {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	done = func() {
		if mine != nil { // else this volume has no locks
			_ = mine.Release()
		}
		_ = os.RemoveAll(dir)
	}
	if err != nil {
		done()
		return "", nil, fmt.Errorf("cannot clear what an earlier restore left behind: %w", err)
	}
	return dir, done, nil
}

// moveToNew moves a file to a path, and fails where another has come there meanwhile.
func moveToNew(file, dst string) error {
	err := unix.Renameat2(unix.AT_FDCWD, file, unix.AT_FDCWD, dst, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // not on this file system
		err = os.Link(file, dst)
	}
	if err != nil {
		return &os.PathError{Op: "move to", Path: dst, Err: err}
	}
	return durable.SyncDir(filepath.Dir(dst))
}

// askTimeout is how long healthcheck and status wait for an answer.
const askTimeout = 4 * time.Second

func ask(cfg Config) (healthz.Status, error) {
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	if cfg.pageless() {
		return askSocket(ctx, cfg)
	}
	return healthz.Fetch(ctx, cfg.HealthAddr)
}

// healthcheck exits with 0 when the container is healthy and with 1 when not.
func healthcheck(args, environ []string) int {
	cfg, err := Parse("healthcheck", args, environ)
	if err != nil {
		return tellConfig(os.Stderr, err)
	}
	s, err := ask(cfg)
	switch {
	case err != nil:
		fmt.Fprintln(os.Stderr, "slasha-init:", err)
		return 1
	case !s.Healthy:
		why := "not healthy"
		if s.HealthError != nil {
			why = *s.HealthError
		}
		fmt.Println(why)
		return 1
	}
	fmt.Println("healthy")
	return 0
}

// status prints the status for a person, or as JSON.
func status(args, environ []string) int {
	cfg, err := Parse("status", args, environ)
	if err != nil {
		return tellConfig(os.Stderr, err)
	}
	s, err := ask(cfg)
	if err != nil {
		fmt.Fprintln(os.Stderr, "slasha-init:", err)
		return 1
	}
	if cfg.JSON {
		enc := json.NewEncoder(os.Stdout)
		enc.SetIndent("", "  ")
		_ = enc.Encode(s)
		return 0
	}
	word := "healthy"
	switch {
	case !s.Enabled:
		word = "running without backups"
	case !s.Healthy && s.HealthError != nil:
		word = "not healthy: " + *s.HealthError
	}
	fmt.Println(word)
	for _, row := range healthz.Rows(s, time.Now()) {
		fmt.Printf("%-14s %s\n", row[0], row[1])
	}
	return 0
}

// help prints all there is to set.
func help(w io.Writer) {
	fmt.Fprint(w, `slasha-init keeps an app's SQLite database in an S3-compatible bucket: it restores
it when it is missing, runs the app, streams every commit to the bucket, and
answers /healthz.

  slasha-init [flags] -- COMMAND [ARG...]      run COMMAND under supervision
  slasha-init run [flags] -- COMMAND [ARG...]  the same, spelled out
  slasha-init run [flags] --procfile Procfile  run several processes
  slasha-init restore [flags] [--output PATH]  restore to a file and exit
  slasha-init restore --now [--timestamp T]    restore in the running container
  slasha-init sync [--timeout D]               return when all that is committed
                                               now is in the bucket
  slasha-init healthcheck                      exit 0 if healthy, 1 if not
  slasha-init status [--json]                  the same, for a person
  slasha-init version | help

Each flag can also be set as a variable: --db-path as SLASHA_DB_PATH. The flag
wins. The keys can come from files: SLASHA_SECRET_ACCESS_KEY_FILE. Without
--db-path and --bucket the app is only supervised.

`)
	for _, o := range options {
		name, usage := pflag.UnquoteUsage(&pflag.Flag{Name: o.name, Usage: o.usage, Value: stringValue(o.value)})
		line := "  --" + o.name + " " + name
		switch {
		case o.bare == "true":
			line = "  --" + o.name
		case o.bare != "":
			line = "  --" + o.name + "[=" + name + "]"
		}
		if o.only != nil && !slices.Contains(o.only, "run") {
			usage += " (" + strings.Join(o.only, ", ") + ")"
		}
		if o.value != "" {
			usage += " (default " + o.value + ")"
		}
		fmt.Fprintf(w, "%-28s %s\n", line, usage)
	}
}

// stringValue makes pflag take the option for one of a string.
type stringValue string

func (stringValue) Set(string) error { return nil }
func (stringValue) Type() string     { return "string" }
func (v stringValue) String() string { return string(v) }
