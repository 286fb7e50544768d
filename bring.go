package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"time"

	"github.com/slashacom/slasha-init/healthz"
	"github.com/slashacom/slasha-init/replicate"
	"github.com/slashacom/slasha-init/restore"
)

// The right database, brought to its path before the app is started.

// restore brings the right database to its path. When it returns false the
// app must not be started, and the container ends with the code.
func (l *life) restore() (code int, ok bool) {
	if l.client == nil || l.following.Load() {
		stopped := l.stopped(&code)
		return code, !stopped
	}
	_, err := l.bring(restore.Config{Request: l.cfg.RestoreRequest, Timestamp: l.cfg.RestoreTimestamp})
	switch {
	case l.stopped(&code):
		return code, false
	case err != nil:
		l.log.Error("the app is not started", "error", err)
		_ = l.health.Fail(err.Error())
		return exitRestore, false
	}
	l.health.Problem("")
	l.enter(healthz.Starting)
	return 0, true
}

// bring makes sure that the right database is at its path. What is asked for is
// in cfg.
func (l *life) bring(cfg restore.Config) (restore.Outcome, error) {
	ctx, cancel := l.untilStopped()
	defer cancel()
	progress := newProgress(l.log, os.Stderr)
	cfg = l.restoreConfig(cfg)
	cfg.OnProgress = func(p restore.Progress) {
		l.enter(healthz.Restoring)
		l.health.Problem("")
		l.health.Restoring(restoreStatus(healthz.RestoreRunning, p))
		progress.show(p)
	}
	out, err := restore.Run(ctx, cfg)
	progress.done()
	if out.Action == restore.Restore && ctx.Err() == nil {
		s := restoreStatus(healthz.RestoreDone, out.Progress)
		if err != nil {
			s.State = healthz.RestoreFailed
		}
		if out.Aside != "" {
			s.SetAside = &out.Aside
		}
		l.health.Restoring(s)
	}
	l.compared = out.Compared
	l.brought = err == nil && (out.Action == restore.Restore || out.Action == restore.Fresh)
	return out, err
}

// anchored notes that the replica has a snapshot of the line that is replicated.
func (l *life) anchored() {
	if err := restore.Anchored(l.cfg.StateDir()); err != nil {
		l.log.Warn("the next start will upload a snapshot that is there already", "error", err)
	}
}

// restoreConfig fills in what is the same for every restore of this container.
func (l *life) restoreConfig(cfg restore.Config) restore.Config {
	cfg.DBPath = l.cfg.DBPath
	cfg.StateDir = l.cfg.StateDir()
	cfg.Client = l.client
	cfg.Explain = l.explain
	cfg.Patience = restorePatience
	cfg.Check = l.cfg.RestoreCheck
	cfg.Seal = l.seal
	cfg.Reserve = l.reserve
	cfg.Compare = l.compare
	cfg.OnStale = l.cfg.OnStale
	cfg.Adopt = l.adopt
	cfg.Logger = l.log
	cfg.OnWaiting = l.health.Problem
	return cfg
}

// seal keeps what is newer than the point in time that was restored. Where that
// is damaged there is less to keep, which must not stand in the way.
func (l *life) seal(ctx context.Context) error {
	err := replicate.Seal(ctx, l.writer, slog.Default())
	if errors.Is(err, replicate.ErrUnsound) {
		l.log.Warn("not all of what is newer than the point in time can be kept for long", "error", err)
		return nil
	}
	return err
}

// restorePatience is for how long a replica that does not answer is asked again
// when the database is missing: long enough for a bucket that starts together
// with the app, short enough to be told of a mistake.
const restorePatience = 20 * time.Second
