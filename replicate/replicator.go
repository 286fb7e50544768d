package replicate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"time"

	"github.com/benbjohnson/litestream"
	"github.com/superfly/ltx"

	"github.com/slashacom/slasha-init/internal/wait"
)

// retryAfter is the pause after a failed attempt. The client has waited and
// tried several times by then.
const retryAfter = time.Second

// retryLast is the pause after a failed attempt at the last upload, which has little
// time.
const retryLast = 200 * time.Millisecond

// lookAnyway is how often an idle database is read without any sign of a change:
// for the WAL checkpoints that Litestream makes by time, and as the net under the
// change notification.
const lookAnyway = 10 * time.Second

// Replicator replicates one database for as long as this process does. Call Run,
// then Stop from another goroutine, then Finish; each once.
type Replicator struct {
	cfg   Config
	watch *walWatch
	first mark // of the database when the life began
	asks  asks
	quit  chan struct{} // closed by Stop

	session *session // nil while no database is open
	left    handover // by the session before; the next one begins with it
	leaked  *session // a bug has left it open, and it must stay so; or nil

	compactable holder // the session, when compactions may read from it

	pace     pace      // of the uploads
	pending  time.Time // since when the replica lacks commits; zero when it lacks none
	answered time.Time // when the replica last answered
	failing  bool      // the newest turn failed
}

// New returns the Replicator of a database. It makes no request and opens
// nothing.
func New(cfg Config) *Replicator {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	watch := newWALWatch(cfg.DBPath, cfg.Logger)
	return &Replicator{
		cfg:   cfg,
		watch: watch,
		first: watch.mark(),
		asks:  asks{wake: make(chan struct{}, 1)},
		quit:  make(chan struct{}),
		pace:  pace{interval: cfg.SyncInterval},
	}
}

// Stop lets Run return when its current step is done: the upload of a large database
// is finished, and need not begin again. Call it once.
func (r *Replicator) Stop() { close(r.quit) }

// Run replicates until Stop is called, or ctx ends, which also ends an upload.
// It never gives up: it reports what fails with OnError and tries again. Call
// Finish afterwards.
func (r *Replicator) Run(ctx context.Context) {
	r.watch.start()
	defer r.watch.stop()
	idle, cancel := context.WithCancel(ctx) // for everything except uploads of commits
	defer cancel()
	go func() {
		select {
		case <-r.quit:
			cancel()
		case <-idle.Done():
		}
	}()
	compactions := r.compact(idle)
	defer func() { <-compactions }()

	for idle.Err() == nil {
		err := r.guarded(ctx)
		if ctx.Err() != nil {
			return
		}
		r.report(err)
		r.rest(idle, err)
	}
}

// guarded is turn, with a panic of the library as one more error: the app must
// not die of its backup.
func (r *Replicator) guarded(ctx context.Context) (err error) {
	defer func() {
		if p := recover(); p != nil {
			r.cfg.Logger.Error("a bug in slasha-init or Litestream, please report it", "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("replication ended because of a bug, and starts again: %v", p)
			r.endAfterBug()
		}
	}()
	return r.turn(ctx)
}

// turn does whatever is due: it opens the database when it has appeared,
// captures, uploads, and asks an idle replica whether it is still there.
func (r *Replicator) turn(ctx context.Context) error {
	began := time.Now()
	s, err := r.follow(ctx)
	if err != nil {
		if now := r.watch.mark(); now != r.first && !r.watch.isSynced(now) {
			r.setPending(began)
		}
		return err
	}
	if s == nil {
		r.asks.answer(began, 0) // no database, no commits
	} else if err := r.sync(ctx, s); err != nil {
		return r.mend(ctx, s, err)
	}
	if time.Since(r.answered) < r.cfg.CheckInterval {
		return nil
	}
	if err := r.cfg.Client.Check(ctx); err != nil {
		return fmt.Errorf("check replica: %w", err)
	}
	r.answered = time.Now()
	return nil
}

// follow returns the session of the database at the path, or nil while there is
// none. It opens one when the database is there, and another when the app has put
// another file into its place: Litestream would go on with the old one for ever, and
// log nothing.
func (r *Replicator) follow(ctx context.Context) (*session, error) {
	if r.leaked != nil {
		return nil, errLeaked
	}
	if r.session != nil {
		replaced, err := r.session.isReplaced()
		if err != nil {
			return nil, err
		} else if !replaced {
			return r.session, nil
		}
		r.cfg.Logger.Warn("the database file was replaced by another: replicating the new one from a fresh snapshot")
		if err := r.abandon(ctx, r.session, false); err != nil {
			return nil, err
		}
	}
	var err error
	r.session, err = openSession(ctx, r.cfg, r.left)
	return r.session, err
}

// sync captures what the WAL has and uploads it. On success, everything
// committed before it began is in the replica.
func (r *Replicator) sync(ctx context.Context, s *session) error {
	before := time.Now()
	mark := r.watch.mark()
	if !r.watch.isSynced(mark) {
		r.setPending(before)
	}
	txid, err := s.capture(ctx)
	if err != nil {
		return err
	}
	if txid == 0 {
		r.asks.answer(before, 0)
		return nil // no database, after all
	}
	if s.begun() {
		r.compactable.put(s)
	}
	hook(r.cfg.OnCapture, txid)

	got, err := s.upload(ctx, before)
	if err != nil {
		return err
	}
	if got.news {
		r.answered = time.Now()
		if got.uploaded {
			r.pace.took(before)
		}
		r.cfg.Line.Synced(txid)
		if r.cfg.OnSync != nil {
			r.cfg.OnSync(got.upTo, txid)
		}
	}
	r.asks.answer(before, txid)
	r.watch.synced(mark, before)
	if now := r.watch.mark(); r.watch.isSynced(now) {
		r.movePending(time.Time{})
	} else {
		r.movePending(before)
	}
	return nil
}

// mend makes sure that the next turn can get over a failed turn's error. Where no later
// try can upload what was captured, or it takes too much room until one can, it is
// dropped.
func (r *Replicator) mend(ctx context.Context, s *session, err error) error {
	if why := s.tooMuch(); why != "" {
		return errors.Join(err, r.dropBacklog(ctx, s, why))
	}
	if errors.Is(err, errResetUnseen) || isLostHere(err) {
		return r.beginAnew(ctx, s, err)
	}
	return err
}

// isLostHere reports whether an error says that something captured is neither here
// nor in the replica, so that it can't be uploaded any more: somebody deleted the
// bucket's newest files, or cleared Litestream's folder. A snapshot has it all.
func isLostHere(err error) bool {
	var local *litestream.LTXError
	return errors.As(err, &local) && (errors.Is(err, os.ErrNotExist) || errors.Is(err, litestream.ErrLTXCorrupted))
}

// setPending notes that the replica lacks commits since a moment. An earlier moment
// stays.
func (r *Replicator) setPending(since time.Time) {
	if r.pending.IsZero() {
		r.movePending(since)
	}
}

// movePending replaces the moment after an upload: what was pending before has got
// there. With the zero time, the replica lacks nothing.
func (r *Replicator) movePending(since time.Time) {
	if since.IsZero() && r.pending.IsZero() {
		return
	}
	r.pending = since
	hook(r.cfg.OnPending, since)
}

// report reports a turn's end, and logs where it differs from the last one's.
func (r *Replicator) report(err error) {
	if err != nil && r.hasDropped() {
		err = &DroppedError{err}
	}
	if r.cfg.OnError != nil {
		r.cfg.OnError(err)
	}
	switch {
	case err != nil && !r.failing:
		r.cfg.Logger.Error("replication fails, trying again until it works", "error", err)
	case err == nil && r.failing:
		r.cfg.Logger.Info("replication works again")
	}
	r.failing = err != nil
}

// hasDropped reports whether something was dropped for want of room, and no snapshot
// has been uploaded since.
func (r *Replicator) hasDropped() bool {
	if r.session != nil {
		return r.session.hasDropped()
	}
	return r.left.dropped
}

// rest waits until the next turn is due.
func (r *Replicator) rest(ctx context.Context, err error) {
	if err != nil {
		wait.For(ctx, retryAfter)
		return
	}
	changed := r.watch.wait(ctx, min(lookAnyway, max(r.cfg.CheckInterval-time.Since(r.answered), 0)), r.asks.wake, func(m mark) {
		if m.main > 0 {
			r.setPending(time.Now())
		}
	})
	if changed {
		// A steady writer's commits are grouped; those after a quiet time go at
		// once.
		wait.Or(ctx, r.pace.wait(time.Now()), r.asks.wake)
	}
}

// Finish makes the last upload, when no writer is alive and Run has returned,
// and closes the database. It tries until it works, ctx ends, or an error is final.
// The error is an *UnsyncedError: the database stays open then, because closing it
// would try once more and wait, and the process ends anyway. See Release.
func (r *Replicator) Finish(ctx context.Context) error {
	var acked ltx.TXID
	for {
		s, err := r.follow(ctx)
		if err == nil {
			if s == nil {
				return nil // the app never made a database
			}
			acked = max(acked, s.db.Replica.Pos().TXID)
			if err = r.sync(ctx, s); err == nil {
				r.endUploaded(ctx)
				return nil
			}
			if err = r.mend(ctx, s, err); err == nil {
				continue
			}
		}
		if !isFinal(err) {
			r.report(err)
			if wait.For(ctx, retryLast) {
				continue
			}
		}
		unsynced := &UnsyncedError{Replica: acked, Err: err}
		if r.session != nil {
			if pos, posErr := r.session.db.Pos(); posErr == nil {
				unsynced.Local = pos.TXID
			}
		}
		return unsynced
	}
}

func hook[T any](f func(T), v T) {
	if f != nil {
		f(v)
	}
}
