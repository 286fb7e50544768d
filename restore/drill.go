package restore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"time"

	"github.com/superfly/ltx"

	"github.com/slashacom/slasha-init/internal/disk"
	"github.com/slashacom/slasha-init/internal/durable"
	"github.com/slashacom/slasha-init/internal/wait"
	"github.com/slashacom/slasha-init/restore/check"
)

// Drills restore the replica to a scratch file now and then, as somebody would who
// has lost the volume, check it, and compare it with what is known of the live
// database. Only a drill shows that a backup is one. Every field is required, except
// Check.
type Drills struct {
	Every   time.Duration // 0: there are none
	DBPath  string        // the live database; a drill never opens it
	Scratch string        // the folder where a database is put together and thrown away, on the file system of DBPath
	Note    durable.Note  // the outcome of the newest drill
	Source  Source
	Check   check.Kind // a drill makes a quick check where this is check.Off

	// Acked is the newest transaction that the replica has acknowledged, 0 for none.
	Acked func() ltx.TXID

	// SizeAt is the size in bytes that the live database had after a transaction; ok
	// is false where that is not known.
	SizeAt func(ltx.TXID) (size int64, ok bool)

	// OnVerified is called with the end of each drill that came to a result, how long
	// it took, and what is wrong with the replica, or "". At the beginning of Run it
	// is called with what the newest drill of an earlier start found.
	OnVerified func(at time.Time, took time.Duration, wrong string)

	Logger *slog.Logger

	newPace func() *pace // of tests, which count the rests
}

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

// Run makes a drill each time that Every has passed since the last one, until ctx
// ends. It returns at once where there are none.
func (d Drills) Run(ctx context.Context) {
	_ = os.RemoveAll(d.Scratch) // of one that was killed
	if d.Every == 0 {
		return
	}
	next := min(d.Every, firstDrill)
	var last drilled
	if b, err := d.Note.Read(); err == nil && json.Unmarshal(b, &last) == nil {
		d.OnVerified(last.At, 0, last.Wrong)
		next = max(next, d.Every-time.Since(last.At))
	}
	for wait.For(ctx, next) {
		next = d.Every
		if !d.guarded(ctx) {
			next = min(d.Every, drillAgain)
		}
	}
}

// guarded is drill. A panic is one more reason why it could not be made: the app must
// not die of its backup.
func (d Drills) guarded(ctx context.Context) (result bool) {
	defer func() {
		if p := recover(); p != nil {
			d.Logger.Error("a bug in slasha-init or Litestream, please report it", "panic", p, "stack", string(debug.Stack()))
			result = false
		}
	}()
	return d.drill(ctx)
}

// drill makes one, and reports whether it came to a result.
func (d Drills) drill(ctx context.Context) bool {
	done, took, err := d.restore(ctx)
	switch {
	case ctx.Err() != nil:
		return false
	case err != nil && !isUnsound(err):
		d.Logger.Warn("the replica can't be verified now", "error", err)
		return false
	}
	note := drilled{At: time.Now().UTC(), TXID: done.TXID.String()}
	if err != nil {
		note.Wrong = "verifying the replica failed: " + err.Error()
		d.Logger.Error(note.Wrong, "txid", done.TXID.String())
	} else {
		d.Logger.Info("verified the replica: it was restored and checked", "txid", done.TXID.String(), "bytes", done.BytesDone, "took", took.Round(time.Millisecond))
	}
	d.OnVerified(note.At, took, note.Wrong)
	if b, err := json.Marshal(note); err == nil {
		if err := d.Note.Write(append(b, '\n')); err != nil {
			d.Logger.Debug("cannot note the drill", "error", err)
		}
	}
	return true
}

// restore puts the database together, and compares it with what was promised before.
func (d Drills) restore(ctx context.Context) (done Progress, took time.Duration, err error) {
	defer func() { _ = os.RemoveAll(d.Scratch) }()
	if err := errors.Join(os.RemoveAll(d.Scratch), os.MkdirAll(d.Scratch, 0o700)); err != nil {
		return Progress{}, 0, err
	}
	if err := d.room(); err != nil {
		return Progress{}, 0, err
	}
	cfg := Config{Place: Place{DBPath: d.DBPath}, Source: d.Source, Check: d.Check, Logger: d.Logger, newPace: d.newPace}
	if cfg.Check == check.Off {
		cfg.Check = check.Quick
	}
	began := time.Now()
	acked := d.Acked()
	done, err = job{
		scratch: d.Scratch,
		gently:  true, // the app comes first
		find:    cfg.locate,
		last:    func(file string, got Progress) error { return d.compare(file, got.TXID, acked) },
	}.do(ctx, cfg)
	return done, time.Since(began), err
}

// differsError says that the replica restores to something else than was promised.
type differsError struct{ sentence string }

func (e *differsError) Error() string { return e.sentence }

// compare compares what was restored with what was promised before, and with the
// size that the live database had then.
func (d Drills) compare(file string, txid, acked ltx.TXID) error {
	if txid < acked {
		return &differsError{fmt.Sprintf("it restores to transaction %s, but %s was acknowledged", txid, acked)}
	}
	fi, err := os.Stat(file)
	if err != nil {
		return err
	}
	if size, ok := d.SizeAt(txid); ok && size != fi.Size() {
		return &differsError{fmt.Sprintf("transaction %s is restored with %d bytes, but had %d", txid, fi.Size(), size)}
	}
	return nil
}

// room refuses a drill that would take the app's last room: as much as the database
// has now must be left beside it.
func (d Drills) room() error {
	fi, err := os.Stat(d.DBPath)
	if err != nil {
		return err
	}
	free, _, err := disk.Free(d.Scratch)
	if err != nil {
		return err
	}
	if need := 2 * fi.Size(); free < need {
		return fmt.Errorf("a drill needs %d MB of free disk, twice the database's size, and %d MB are free", need>>20+1, free>>20)
	}
	return nil
}
