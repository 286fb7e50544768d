package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/superfly/ltx"

	"github.com/slashacom/slasha-init/internal/durable"
	"github.com/slashacom/slasha-init/lineage"
	"github.com/slashacom/slasha-init/restore"
	"github.com/slashacom/slasha-init/restore/check"
)

// A drill restores the replica to a scratch file, as somebody would who has lost
// the volume, checks it, and compares it with what is known of the live database.
// Only that says that a backup is one.

const (
	// firstDrill is how long after a start a drill is made that is due: the app
	// has better things to do first.
	firstDrill = 5 * time.Minute
	// drillAgain is when a drill is tried again that could not be made.
	drillAgain = 10 * time.Minute
)

// drilled is the note of the newest drill, in our folder: a container that is
// started anew each night must not put it off for ever.
type drilled struct {
	At    time.Time `json:"at"`
	TXID  string    `json:"txid"`
	Wrong string    `json:"wrong,omitempty"`
}

func (l *life) drillFile() string { return filepath.Join(l.cfg.StateDir(), "verified.json") }

func (l *life) drillDir() string { return filepath.Join(l.cfg.StateDir(), "drill") }

// drills makes one each --verify-interval, until ctx ends.
func (l *life) drills(ctx context.Context) {
	every := l.cfg.VerifyInterval
	_ = os.RemoveAll(l.drillDir()) // of one that was killed
	if every == 0 {
		return
	}
	next := min(every, firstDrill)
	var last drilled
	if b, err := os.ReadFile(l.drillFile()); err == nil && json.Unmarshal(b, &last) == nil {
		l.health.Verified(last.At, 0, last.Wrong)
		next = max(next, every-time.Since(last.At))
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(next):
		}
		next = every
		if !l.drill(ctx) {
			next = min(every, drillAgain)
		}
	}
}

// drill makes one, and reports whether it came to a result.
func (l *life) drill(ctx context.Context) bool {
	scratch := l.drillDir()
	defer func() { _ = os.RemoveAll(scratch) }()
	if err := errors.Join(os.RemoveAll(scratch), os.MkdirAll(scratch, 0o700)); err != nil {
		l.log.Warn("the replica can't be verified now", "error", err)
		return false
	}
	if err := l.roomForDrill(); err != nil {
		l.log.Warn("the replica can't be verified now", "error", err)
		return false
	}
	began := time.Now()
	acked := l.acked()
	file := filepath.Join(scratch, filepath.Base(l.cfg.DBPath))
	cfg := l.restoreConfig(restore.Config{Gently: true}) // the app comes first
	if cfg.Check == check.Off {
		cfg.Check = check.Quick
	}
	done, err := restore.Fetch(ctx, cfg, file, 0)
	if ctx.Err() != nil {
		return false
	}
	switch {
	case err == nil:
		err = l.compareDrill(file, done.TXID, acked)
	case !restore.Unsound(err):
		l.log.Warn("the replica can't be verified now", "error", err)
		return false
	}
	note := drilled{At: time.Now().UTC(), TXID: done.TXID.String()}
	took := time.Since(began)
	if err != nil {
		note.Wrong = "verifying the replica failed: " + err.Error()
		l.log.Error(note.Wrong, "txid", done.TXID.String())
	} else {
		l.log.Info("verified the replica: it was restored and checked", "txid", done.TXID.String(), "bytes", done.BytesDone, "took", took.Round(time.Millisecond))
	}
	l.health.Verified(note.At, took, note.Wrong)
	if b, err := json.Marshal(note); err == nil {
		if err := durable.WriteFile(l.drillFile(), append(b, '\n'), 0o644); err != nil {
			l.log.Debug("cannot note the drill", "error", err)
		}
	}
	return true
}

// acked is the newest transaction that the replica has acknowledged.
func (l *life) acked() ltx.TXID {
	s := l.health.Status().ReplicaTXID
	if s == nil {
		return 0
	}
	txid, err := ltx.ParseTXID(*s)
	if err != nil {
		return 0
	}
	return txid
}

// compareDrill compares what was restored with what was promised before, and
// with the size that the live database had then.
func (l *life) compareDrill(file string, txid, acked ltx.TXID) error {
	if txid < acked {
		return fmt.Errorf("it restores to transaction %s, but %s was acknowledged", txid, acked)
	}
	fi, err := os.Stat(file)
	if err != nil {
		return err
	}
	if size, ok := lineage.SizeAt(l.cfg.DBPath, txid); ok && size != fi.Size() {
		return fmt.Errorf("transaction %s is restored with %d bytes, and had %d", txid, fi.Size(), size)
	}
	return nil
}

// roomForDrill refuses a drill that would take the app's last room: as much as
// the database has now must be left beside it.
func (l *life) roomForDrill() error {
	fi, err := os.Stat(l.cfg.DBPath)
	if err != nil {
		return err
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(l.cfg.StateDir(), &st); err != nil {
		return err
	}
	free := int64(st.Bavail) * int64(st.Bsize) //nolint:unconvert // other types on other architectures
	if need := 2 * fi.Size(); free < need {
		return fmt.Errorf("it needs %d MB of free disk, twice the database's size, and there are %d", need>>20+1, free>>20)
	}
	return nil
}
