package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/slashacom/slasha-init/control"
	"github.com/slashacom/slasha-init/healthz"
	"github.com/slashacom/slasha-init/restore"
)

// askSocket asks the control socket for what the health page would say.
func askSocket(ctx context.Context, cfg Config) (healthz.Status, error) {
	client := control.Client{Path: cfg.ControlSocket}.HTTP()
	defer client.CloseIdleConnections()
	return healthz.FetchBy(ctx, client, "slasha-init")
}

// syncCommand returns when all that is committed now is in the replica.
func syncCommand(args, environ []string) int {
	cfg, err := Parse("sync", args, environ)
	if err != nil {
		return tellConfig(os.Stderr, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), cfg.Timeout)
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
		fmt.Fprintf(os.Stderr, "slasha-init: not all is in the replica after %s%s\n", cfg.Timeout, why)
		return 1
	case err != nil:
		fmt.Fprintln(os.Stderr, "slasha-init:", err)
		return 1
	case done.TXID == "":
		fmt.Println("there is no database yet, so nothing to copy")
	default:
		fmt.Println("all is in the replica, up to transaction", done.TXID)
	}
	return 0
}

// restoreNow has the running container restore, and shows how far it is. To stop
// waiting does not stop the restore.
func restoreNow(cfg Config) int {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer cancel()
	watching, end := context.WithCancel(ctx)
	shown := make(chan struct{})
	go func() {
		defer close(shown)
		watchRestore(watching, cfg)
	}()
	done, err := control.Client{Path: cfg.ControlSocket}.Restore(ctx, control.Order{Timestamp: cfg.Timestamp})
	end()
	<-shown
	var refused *control.Refusal
	switch {
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "slasha-init: no longer waiting; what was asked for goes on, see slasha-init status")
		return 1
	case errors.As(err, &refused):
		fmt.Fprintln(os.Stderr, "slasha-init: refused:", err)
		return exitRestore
	case err != nil:
		fmt.Fprintln(os.Stderr, "slasha-init:", err)
		return exitRestore
	}
	took := time.Duration(done.TookSeconds * float64(time.Second)).Round(time.Millisecond)
	fmt.Printf("restored transaction %s: %s in %s; the database that was there is in %s\n", done.TXID, healthz.Bytes(done.Bytes), took, done.SetAside)
	return 0
}

// watchRestore draws the progress of the restore that runs, where somebody can
// see it.
func watchRestore(ctx context.Context, cfg Config) {
	bar := newProgress(nil, os.Stderr)
	if bar.bar == nil {
		return
	}
	defer bar.done()
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
		bar.show(restore.Progress{
			BytesDone: s.Restore.BytesDone, BytesTotal: s.Restore.BytesTotal,
			Took: time.Duration(s.Restore.TookSeconds * float64(time.Second)),
		})
	}
}
