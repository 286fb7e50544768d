package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/slashacom/slasha-init/config"
	"github.com/slashacom/slasha-init/control"
	"github.com/slashacom/slasha-init/healthz"
	"github.com/slashacom/slasha-init/internal/exit"
	"github.com/slashacom/slasha-init/internal/logs"
	"github.com/slashacom/slasha-init/internal/text"
	"github.com/slashacom/slasha-init/lineage"
	"github.com/slashacom/slasha-init/replica"
	"github.com/slashacom/slasha-init/restore"
	"github.com/slashacom/slasha-init/volume"
)

// commands are those besides run. Each returns an error that carries its exit code.
var commands = map[string]func(cfg config.Config, out *logs.Writer) error{
	"restore":     restoreCommand,
	"healthcheck": healthcheck,
	"status":      status,
	"sync":        syncCommand,
}

// restoreCommand restores to a file for a person who wants to look, or to the
// database's path while the app does not run. It refuses to touch a file that
// exists.
func restoreCommand(cfg config.Config, out *logs.Writer) error {
	if cfg.Ask.Now {
		return restoreNow(cfg)
	}
	dst, err := filepath.Abs(cfg.Ask.Output)
	if err != nil {
		return exit.With(exit.Restore, err)
	}
	var dbPath string
	if len(cfg.Databases) > 0 {
		dbPath = cfg.Databases[0]
	}
	ctx, cancel := untilSignal()
	defer cancel()
	log := logs.New(out, cfg.Log)
	if dst == dbPath {
		leave, err := volume.New(volume.Config{DBPath: dbPath, Logger: log}).Occupy()
		var held *volume.HeldError
		switch {
		case errors.As(err, &held):
			return err
		case err != nil:
			return exit.With(exit.Restore, err)
		}
		defer leave()
	}
	from, err := openReplica(cfg, replica.Config{Logger: log})
	if err != nil {
		return exit.With(exit.Restore, err)
	}
	folder := volume.FolderOf(dbPath)
	line := lineage.New(lineage.Config{DBPath: dbPath, Client: from, Adopted: folder.Adopted(), NewLine: folder.NewLine()})
	show := restore.NewDisplay(log, os.Stderr)
	got, err := restore.ToFile(ctx, restore.Config{
		What:       restore.What{Timestamp: cfg.Ask.Timestamp, TXID: cfg.Ask.TXID},
		Place:      place(dbPath),
		Source:     restore.Source{Client: from, Explain: from.Explain},
		Check:      cfg.Restore.Check,
		Line:       restore.Line{Adopt: line.Adopt, Begin: line.Begin},
		Lock:       volume.Lock,
		OnProgress: show.Show,
		Logger:     log,
	}, dst)
	show.Done()
	var stopped *exit.Stopped
	switch {
	case errors.As(err, &stopped):
		return fmt.Errorf("%w; nothing was restored", err)
	case err != nil:
		return err
	}
	fmt.Fprintf(out, "slasha-init: restored %s from %s: %s in %s\n", dst, from, text.Bytes(got.BytesDone), got.Took.Round(time.Millisecond))
	return nil
}

// untilSignal returns a context that a signal ends, with an *exit.Stopped as its cause.
func untilSignal() (context.Context, context.CancelFunc) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	ctx, cancel := context.WithCancelCause(context.Background())
	go func() {
		if sig, ok := (<-signals).(syscall.Signal); ok {
			cancel(&exit.Stopped{Signal: sig})
		}
	}()
	return ctx, func() { cancel(nil) }
}

// restoreNow asks the running container for a restore, and shows how far it is. When
// the person stops waiting, the restore goes on.
func restoreNow(cfg config.Config) error {
	ctx, cancel := untilSignal()
	defer cancel()
	watching, end := context.WithCancel(ctx)
	shown := make(chan struct{})
	go func() {
		defer close(shown)
		watchRestore(watching, cfg)
	}()
	done, err := control.Client{Path: cfg.ControlSocket}.Restore(ctx, cfg.Ask.Timestamp)
	end()
	<-shown
	var refused *control.Refusal
	switch {
	case ctx.Err() != nil:
		return errors.New("stopped waiting; the restore goes on, see slasha-init status")
	case errors.As(err, &refused):
		return exit.With(exit.Restore, fmt.Errorf("refused: %w", err))
	case err != nil:
		return exit.With(exit.Restore, err)
	}
	took := time.Duration(done.TookSeconds * float64(time.Second)).Round(time.Millisecond)
	fmt.Printf("restored transaction %s: %s in %s; the database that was there is in %s\n", done.TXID, text.Bytes(done.Bytes), took, done.SetAside)
	return nil
}

// watchRestore draws the progress of the restore that runs, where somebody can
// see it.
func watchRestore(ctx context.Context, cfg config.Config) {
	show := restore.NewDisplay(nil, os.Stderr)
	if !show.OnTerminal() {
		return
	}
	defer show.Done()
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		s, err := askSocket(ctx, cfg)
		if err != nil || s.Restore.State != healthz.RestoreRunning {
			continue
		}
		show.Show(restore.Progress{
			BytesDone: s.Restore.BytesDone, BytesTotal: s.Restore.BytesTotal,
			Took: time.Duration(s.Restore.TookSeconds * float64(time.Second)),
		})
	}
}

// syncCommand returns when everything committed before the call is in the replica.
func syncCommand(cfg config.Config, _ *logs.Writer) error {
	ctx, cancel := context.WithTimeout(context.Background(), cfg.Ask.Timeout)
	defer cancel()
	done, err := control.Client{Path: cfg.ControlSocket}.Sync(ctx)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		why := ""
		again, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if s, err := askSocket(again, cfg); err == nil && s.HealthError != nil {
			why = ": " + *s.HealthError
		}
		return fmt.Errorf("some commits are still not in the replica after %s%s", cfg.Ask.Timeout, why)
	case err != nil:
		return err
	case done.TXID == "":
		fmt.Println("there is no database yet, so there is nothing to upload")
	default:
		fmt.Println("everything is in the replica, up to transaction", done.TXID)
	}
	return nil
}

// askTimeout is how long healthcheck and status wait for an answer.
const askTimeout = 4 * time.Second

// ask asks the running container for its status.
func ask(cfg config.Config) (healthz.Status, error) {
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	if cfg.Health.Pageless() {
		return askSocket(ctx, cfg)
	}
	return healthz.Fetch(ctx, cfg.Health.Addr)
}

// askSocket asks the control socket for what the health page would answer.
func askSocket(ctx context.Context, cfg config.Config) (healthz.Status, error) {
	client := control.Client{Path: cfg.ControlSocket}.HTTP()
	defer client.CloseIdleConnections()
	return healthz.FetchBy(ctx, client, "slasha-init")
}

// healthcheck succeeds when the container is healthy.
func healthcheck(cfg config.Config, _ *logs.Writer) error {
	s, err := ask(cfg)
	switch {
	case err != nil:
		return err
	case s.Healthy:
		fmt.Println("healthy")
		return nil
	case s.HealthError != nil:
		fmt.Println(*s.HealthError)
	default:
		fmt.Println("not healthy")
	}
	return errNo
}

// errNo is the answer no, which the command has printed.
var errNo = exit.With(exit.No, errors.New("no"))

// status prints the status for a person, or as JSON.
func status(cfg config.Config, _ *logs.Writer) error {
	s, err := ask(cfg)
	if err != nil {
		return err
	}
	if cfg.Ask.JSON {
		enc := json.NewEncoder(os.Stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(s)
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
	return nil
}
