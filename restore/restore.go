// Package restore puts the right database at a path, or changes nothing.
//
// Run does so before the app starts: it gathers facts about the database and the
// replica, and decides by them. ToFile restores for a person, and Drills restore to
// see whether it works. All of them put the database together in a scratch folder on
// the same file system and verify it there; see job. Only then, as the last step, it
// is moved into place with one rename, or compared and thrown away. Whatever happens
// before that rename leaves everything as it was.
package restore

import (
	"context"
	"os"
	"path/filepath"
	"time"
)

// Run makes sure that the database at the path is the right one. If it can't, it
// returns a *Failure, and nothing was changed. Once ctx has ended, the error is the
// cause of that; then Outcome.Restored says whether the database was replaced before.
func Run(ctx context.Context, cfg Config) (Outcome, error) {
	out, err := run(ctx, cfg)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return out, err
}

func run(ctx context.Context, cfg Config) (Outcome, error) {
	if _, err := recoverSwap(cfg); err != nil {
		return Outcome{}, failuref("cannot end a restore that was interrupted: %w", err)
	}
	if err := os.RemoveAll(cfg.Place.Scratch); err != nil {
		return Outcome{}, failuref("cannot clear what an earlier restore left behind: %w", err)
	}
	f, err := gather(ctx, cfg)
	if err != nil {
		return Outcome{}, err
	}
	cfg.What = f.what
	d := decide(f.facts)
	out := Outcome{Action: d.Action, Progress: Progress{Reason: f.reason()}}
	cfg.Logger.Info("decided", "action", d.Action.String(), "why", d.Why,
		"database", f.Database.String(), "asked", f.Asked.String(), "lineage", f.lineage(), "replica", f.Replica.String())
	switch d.Action {
	case Fail:
		return out, &Failure{Sentence: d.Why, Err: f.Err}
	case Start:
		out.Continues = f.isContinuation()
	case Fresh:
		// A WAL or journal of a database that is gone must not be applied to the one
		// that the app is about to make.
		if err := makeRoom(cfg); err != nil {
			return out, &Failure{Sentence: err.Error(), Err: err}
		}
		out.Continues, out.Answered = true, true
	case Restore:
		if out.Progress, out.Aside, err = replace(ctx, cfg, f); err != nil {
			return out, err
		}
		out.Restored, out.Continues, out.Answered = true, true, true
	}
	return out, nil
}

// makeRoom makes the database's folder, where nothing is left of an earlier one.
func makeRoom(cfg Config) error {
	if err := cfg.Place.MakeFolder(filepath.Dir(cfg.Place.DBPath)); err != nil {
		return err
	}
	return setAsideLeftovers(cfg)
}

// replace restores, and puts the database into its place. It returns where the old one
// was set aside.
func replace(ctx context.Context, cfg Config, f found) (done Progress, aside string, err error) {
	release, err := reserve(cfg, f.Database)
	if err != nil {
		return Progress{Reason: f.reason()}, "", err
	}
	defer release()
	if err := cfg.Place.MakeFolder(filepath.Dir(cfg.Place.DBPath)); err != nil {
		return Progress{}, "", &Failure{Sentence: err.Error(), Err: err}
	}
	defer func() { _ = os.RemoveAll(cfg.Place.Scratch) }()
	if err := os.MkdirAll(cfg.Place.Scratch, 0o700); err != nil {
		return Progress{}, "", failuref("cannot make the scratch folder: %w", err)
	}
	done, err = job{
		scratch: cfg.Place.Scratch,
		reason:  f.reason(),
		find:    func(context.Context) (plan, error) { return f.plan, nil },
		last: func(file string, got Progress) error {
			if err := noteLine(ctx, cfg, file, got); err != nil {
				return err
			}
			var err error
			if f.Database == present {
				aside, err = exchange(cfg, file, got.TXID.String())
			} else {
				err = installMissing(cfg, file, f.Asked, got)
			}
			if err != nil {
				return &Failure{Sentence: err.Error(), Err: err}
			}
			return nil
		},
	}.do(ctx, cfg)
	if err != nil {
		return done, "", err
	}
	cfg.Logger.Info("restored", "path", cfg.Place.DBPath, "txid", done.TXID.String(),
		"bytes", done.BytesDone, "took", done.Took.Round(time.Millisecond))
	return done, aside, nil
}

// reserve refuses to replace a database that somebody else has open.
func reserve(cfg Config, db databaseState) (release func(), err error) {
	if cfg.Reserve == nil || db != present {
		return func() {}, nil
	}
	release, err = cfg.Reserve()
	if err != nil {
		return nil, failuref("the database can't be replaced: %w", err)
	}
	return release, nil
}

// noteLine notes, before a file becomes the database, what of the replica it goes on
// from: the newest transaction, and whether a new line begins after that.
//
// A new line also begins with what Litestream 0.3 wrote, where 0.5 has been used too,
// even if it is the newest backup. Its first upload follows the transactions of 0.5 by
// number, but does not continue them. Without a snapshot of its own, the line would
// depend on files that it has nothing to do with, and a restore to a later point in time
// would choose 0.3's snapshot: see prefersV3.
func noteLine(ctx context.Context, cfg Config, file string, got Progress) error {
	if got.beginsLine() {
		cfg.Logger.Info("a new line begins here; newer states stay in the replica for the retention period", "txid", got.TXID.String(), "newest_before", got.Newest.String())
		if cfg.Line.Seal != nil {
			if err := cfg.Line.Seal(ctx); err != nil {
				sentence, _ := cfg.Source.Explain(err)
				return &Failure{Sentence: "cannot keep what is newer than the point in time: " + sentence, Err: err}
			}
		}
		if err := cfg.Line.Begin(); err != nil {
			return failuref("cannot note that a new line begins: %w", err)
		}
	}
	if cfg.Line.Adopt == nil {
		return nil
	}
	if err := cfg.Line.Adopt(file, got.Newest); err != nil {
		return &Failure{Sentence: err.Error(), Err: err}
	}
	return nil
}

// installMissing puts the file where no database is, and notes that a request for it
// was carried out: the next start must not restore over what the app has written by
// then.
func installMissing(cfg Config, file string, a askedFor, done Progress) error {
	if id := cfg.What.Request.id; id != "" && a == askedPending {
		l, err := readLedger(cfg.Place)
		if err != nil {
			return err
		}
		// Before the file is in place: a crash in between is followed by a restore
		// all the same, as long as the database is missing.
		l.add(carriedOut{Request: id, At: time.Now().UTC(), TXID: done.TXID.String()})
		if err := l.write(cfg.Place); err != nil {
			return err
		}
	}
	return install(cfg, file)
}

// IsDue reports whether a request for a restore has not been carried out. If that
// can't be known, it counts as due: Run will say what is wrong.
func IsDue(p Place, r Request) bool {
	a, err := asked(p, r)
	return a == askedPending || err != nil
}
