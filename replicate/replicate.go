// Package replicate streams a live SQLite database into its replica.
//
// Litestream, as a library, reads the WAL and knows the files' format. When it
// reads, when it uploads and what is told about it is decided here, by one loop
// that captures and then uploads, in lockstep: the library's own pair of
// monitors lags by up to two seconds, lets a backlog grow without bound when
// the replica is slow, and waits up to five minutes after an outage.
//
// While a database is replicated, this process must not open and close its
// file anywhere else: POSIX locks belong to the process, and any close of the
// file drops those of Litestream's connection too. Stat is safe, and so is
// reading the WAL.
package replicate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/benbjohnson/litestream"
	"github.com/superfly/ltx"
)

// Client is the replica to write. Check makes one cheap request that only a
// working replica answers well; it is asked on an idle database.
type Client interface {
	litestream.ReplicaClient
	litestream.ReplicaClientV3
	Check(ctx context.Context) error
}

// Config is what a Replicator needs. DBPath and Client are required, as are the
// intervals.
type Config struct {
	DBPath string // absolute path of the database; it need not exist yet
	Client Client

	SyncInterval     time.Duration // time between the uploads of a steady writer
	CheckInterval    time.Duration // most time between two requests to the replica
	SnapshotInterval time.Duration
	Retention        time.Duration // how far back in time the replica can restore

	// Admit is asked before a database is opened, for the first time and after
	// what was captured was dropped, whether what it has may be uploaded. An error
	// that is ErrStale is final: nothing is uploaded in this life, and it is told
	// with OnError. Any other is told and Admit asked again. Nil admits.
	Admit func(context.Context) error
	// Admitted says that the first time needs no asking.
	Admitted bool

	// Dropping is called before what was captured is dropped: it must note what the
	// database at the path goes on from. An error puts the dropping off. Optional.
	Dropping func(Got) error

	// Anchor asks for a snapshot with the first upload: what the replica has so
	// far is not what the database goes on from, and may have damaged files that
	// whatever continues it would depend on.
	Anchor bool
	// OnNewLine: from now on, and over restarts, until OnAnchored is called, Anchor is
	// to be set: the replica has nothing yet that what follows can be merged with.
	// Optional.
	OnNewLine func() error

	// The hooks tell what happened, from the loop's goroutine and in its order.
	// They must not block. All are optional.

	// OnSync: the replica acknowledged an upload, or at the start it turned out
	// to lack nothing. Everything whose commit returned before the time is in it.
	OnSync func(before time.Time, txid ltx.TXID)
	// OnCapture: transactions up to this one have been read from the WAL.
	OnCapture func(txid ltx.TXID)
	// OnPending: since when there are commits that the replica lacks, or the
	// zero time.
	OnPending func(since time.Time)
	// OnAnchored: the snapshot that Anchor or OnNewLine spoke of is in the replica.
	OnAnchored func()
	// OnError: why the newest attempt failed, or nil when one succeeded.
	OnError func(error)

	Logger *slog.Logger
}

// ErrBarred is what the client's errors are when this instance may never write the
// replica again. The last upload is not tried again then.
var ErrBarred = errors.New("this instance may not write the replica")

// ErrStale says that the replica has something that the database lacks.
var ErrStale = errors.New("the database is stale")

// Got is what the replica has from here.
type Got struct {
	// Acked is the newest transaction in any file that it has acknowledged, 0 for
	// none. Of those after it, some may have got there, each with its answer lost.
	Acked ltx.TXID
	// Snapshot is the transaction of a snapshot of which that is not known, or 0.
	Snapshot ltx.TXID
}

// retryAfter is the pause after a failed attempt. The client has waited and
// tried several times by then.
const retryAfter = time.Second

// lookAnyway is how often an idle database is read even though nothing told of
// a change: for the WAL checkpoints that Litestream makes by time, and as the
// net under the change notification.
const lookAnyway = 10 * time.Second

// Replicator replicates one database. Run, then Stop from another goroutine, then
// Finish; each once.
type Replicator struct {
	cfg    Config
	client *acknowledged
	got    *got
	watch  *walWatch
	first  mark // when Run began

	compacting compactable
	asks       asks
	quit       chan struct{} // closed by Stop

	store  *litestream.Store // nil until the database is there
	db     *litestream.DB
	leaked []any // what could not be closed after a bug
	other  bool  // the file was replaced: what comes next is not its continuation
	gone   int   // looks in a row that found no file

	admitted bool
	dropped  bool   // for want of room, and no snapshot has been uploaded since
	baseline string // file of breakOff, until something was captured after it
	resumed  resumed

	anchor  bool      // the next upload is to be followed by a snapshot
	synced  bool      // an upload or a comparison has succeeded since the start
	unsure  time.Time // when the WAL was read for an upload that failed, or got there and its answer did not
	pace    pace      // of the uploads
	pending time.Time // since when the replica lacks commits; zero when it lacks none
	asked   time.Time // when the replica last answered
	failing bool
}

// New returns the Replicator of a database. It makes no request and opens
// nothing.
func New(cfg Config) *Replicator {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	got := &got{}
	return &Replicator{
		cfg:    cfg,
		client: &acknowledged{Client: cfg.Client, got: got},
		got:    got,
		watch:  newWALWatch(cfg.DBPath, cfg.Logger),
		asks:   asks{wake: make(chan struct{}, 1)},

		admitted: cfg.Admitted,
		anchor:   cfg.Anchor,
		pace:     pace{interval: cfg.SyncInterval},
		quit:     make(chan struct{}),
	}
}

// Stop lets Run return when it is done with what it is at: an upload of a large
// database goes on where it is, instead of beginning anew. Call it once.
func (r *Replicator) Stop() { close(r.quit) }

// Run replicates until Stop is called, or ctx ends, which also ends an upload.
// It never gives up: what fails is told with OnError and tried again. Call
// Finish afterwards.
func (r *Replicator) Run(ctx context.Context) {
	r.watch.start()
	defer r.watch.stop()
	r.first = r.watch.mark()
	idle, cancel := context.WithCancel(ctx) // for all that is no upload of commits
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
		r.tell(err)
		r.rest(idle, err)
	}
}

// guarded is turn, with a panic of the library as one more error: the app must
// not die of its backup.
func (r *Replicator) guarded(ctx context.Context) (err error) {
	defer func() {
		if p := recover(); p != nil {
			r.cfg.Logger.Error("a bug in slasha-init or Litestream, please report it", "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("replication was ended by a bug, and starts anew: %v", p)
			// Whatever the library holds may be half done; a new one begins.
			r.openForCompaction(nil, nil)
			r.letGo()
			r.store, r.db, r.synced = nil, nil, false
		}
	}()
	return r.turn(ctx)
}

// lettingGo is for how long a library that had a bug is waited for.
const lettingGo = 5 * time.Second

// letGo closes what a panic has left open. Where that can't be done it is kept as it
// is for as long as the process lives: to open the file again and close it, or to let
// the collector do that, would drop the locks that it still has on the database.
func (r *Replicator) letGo() {
	if r.store == nil {
		return
	}
	r.client.gone.Store(true)
	closed := make(chan struct{})
	go func(store *litestream.Store) {
		defer func() {
			if recover() == nil {
				close(closed)
			}
		}()
		ctx, cancel := context.WithTimeout(context.Background(), lettingGo)
		defer cancel()
		_ = store.Close(ctx) // also closes the files when it can't upload
	}(r.store)
	select {
	case <-closed:
	case <-time.After(2 * lettingGo):
		r.leaked = append(r.leaked, r.store, r.db)
	}
}

// turn does whatever is due: it opens the database when it has appeared,
// captures, uploads, and asks an idle replica whether it is still there.
func (r *Replicator) turn(ctx context.Context) error {
	began := time.Now()
	if err := r.follow(ctx); err != nil {
		if now := r.watch.mark(); now != r.first && !r.watch.isSynced(now) {
			r.setPending(began)
		}
		return err
	}
	if r.db != nil {
		if err := r.sync(ctx); err != nil {
			return r.mend(ctx, err)
		}
		r.dropped = false
	} else {
		r.asks.answer(began, 0) // no database, no commits
	}
	if time.Since(r.asked) < r.cfg.CheckInterval {
		return nil
	}
	if err := r.client.Check(ctx); err != nil {
		return fmt.Errorf("check replica: %w", err)
	}
	r.asked = time.Now()
	return nil
}

// sync captures what the WAL has and uploads it. On success, everything
// committed before it began is in the replica.
func (r *Replicator) sync(ctx context.Context) error {
	before := time.Now()
	mark := r.watch.mark()
	if !r.watch.isSynced(mark) {
		r.setPending(before)
	}
	if err := r.db.Sync(ctx); err != nil {
		return fmt.Errorf("capture: %w", err)
	}
	pos, err := r.db.Pos()
	if err != nil {
		return fmt.Errorf("capture: %w", err)
	}
	if pos.IsZero() {
		r.asks.answer(before, 0)
		return nil // no database, after all
	}
	if !r.resumed.followed(r.db, r.cfg.DBPath, pos.TXID) {
		return errResetUnseen
	}
	r.resumed = resumed{}
	if err := r.begun(pos); err != nil {
		return err
	}
	hook(r.cfg.OnCapture, pos.TXID)

	acks := r.client.n.Load()
	if err := r.db.Replica.Sync(ctx); err != nil {
		r.unsure = before
		return fmt.Errorf("upload: %w", err)
	}
	if r.anchor {
		if _, err := r.db.Snapshot(ctx); err != nil {
			return fmt.Errorf("upload snapshot: %w", err)
		}
		r.anchor = false
		if r.cfg.OnAnchored != nil {
			r.cfg.OnAnchored()
		}
	}
	switch {
	case r.client.n.Load() > acks:
		r.asked = time.Now()
		r.pace.took(before)
		r.isSynced(before, pos.TXID)
	case !r.unsure.IsZero(): // the replica's list has shown that nothing is missing
		r.asked = time.Now()
		r.isSynced(r.unsure, pos.TXID)
	case !r.synced:
		if err := r.syncedBefore(ctx, before, pos.TXID); err != nil {
			return err
		}
	}
	r.asks.answer(before, pos.TXID)
	r.watch.synced(mark, before)
	if now := r.watch.mark(); r.watch.isSynced(now) {
		r.setPending(time.Time{})
	} else {
		r.pending = time.Time{}
		r.setPending(before)
	}
	return nil
}

// syncedBefore tells, for a start that found nothing to upload, that the replica
// was complete when its newest file was written. The server's clock may be
// ahead of ours; the promise is about ours.
func (r *Replicator) syncedBefore(ctx context.Context, now time.Time, txid ltx.TXID) error {
	newest, err := r.db.Replica.MaxLTXFileInfo(ctx, 0)
	if err != nil {
		return fmt.Errorf("list replica: %w", err)
	}
	r.asked = time.Now()
	at := newest.CreatedAt
	if at.After(now) {
		at = now
	}
	r.isSynced(at, txid)
	return nil
}

// isSynced tells that everything whose commit returned before a moment is in the
// replica.
func (r *Replicator) isSynced(before time.Time, txid ltx.TXID) {
	r.synced, r.unsure = true, time.Time{}
	if r.cfg.OnSync != nil {
		r.cfg.OnSync(before, txid)
	}
}

// setPending notes the earliest moment since which the replica lacks commits.
func (r *Replicator) setPending(since time.Time) {
	if !since.IsZero() && !r.pending.IsZero() {
		return
	}
	if r.pending.Equal(since) {
		return
	}
	r.pending = since
	hook(r.cfg.OnPending, since)
}

// DroppedError says that what could not be uploaded was dropped for want of room.
// Nothing of the database is lost: a snapshot follows when the replica is back.
type DroppedError struct{ Err error } // why it could not be uploaded

func (e *DroppedError) Error() string {
	return e.Err.Error() + "; what was captured meanwhile took too much room and was dropped, a fresh snapshot follows"
}
func (e *DroppedError) Unwrap() error { return e.Err }

// tell reports a turn's end, and logs where it differs from the last one's.
func (r *Replicator) tell(err error) {
	if err != nil && r.dropped {
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

// rest waits until the next turn is due.
func (r *Replicator) rest(ctx context.Context, err error) {
	if err != nil {
		wait(ctx, retryAfter)
		return
	}
	changed := r.watch.wait(ctx, min(lookAnyway, max(r.cfg.CheckInterval-time.Since(r.asked), 0)), r.asks.wake, func(m mark) {
		if m.main > 0 {
			r.setPending(time.Now())
		}
	})
	if changed {
		// A steady writer's commits are grouped; those after a quiet time go at
		// once.
		waitOr(ctx, r.pace.wait(time.Now()), r.asks.wake)
	}
}

func wait(ctx context.Context, d time.Duration) { waitOr(ctx, d, nil) }

// waitOr waits until the time is over, ctx ends, or something comes from wake.
func waitOr(ctx context.Context, d time.Duration, wake <-chan struct{}) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-wake:
	case <-t.C:
	}
}

// UnsyncedError says which transactions did not get into the replica.
type UnsyncedError struct {
	Local   ltx.TXID // newest captured
	Replica ltx.TXID // newest acknowledged; 0 when not known
	Err     error
}

func (e *UnsyncedError) Error() string {
	return fmt.Sprintf("the last upload failed: transactions after %s, up to %s and any not captured yet, are not in the replica: %v",
		e.Replica, e.Local, e.Err)
}

func (e *UnsyncedError) Unwrap() error { return e.Err }

// Finish makes the last upload, when no writer is alive and Run has returned,
// and lets go of the database. It tries until it works or ctx ends. The error
// is an *UnsyncedError.
func (r *Replicator) Finish(ctx context.Context) error {
	acked := ltx.TXID(0)
	var err error
	for {
		if err = r.follow(ctx); err == nil {
			if r.db == nil {
				return nil // the app never made a database
			}
			acked = max(acked, r.db.Replica.Pos().TXID)
			if err = r.sync(ctx); err == nil {
				break
			}
			if err = r.mend(ctx, err); err == nil {
				continue
			}
		}
		if errors.Is(err, ErrStale) || errors.Is(err, ErrBarred) || errors.Is(err, errDeleted) {
			break
		}
		r.tell(err)
		if wait(ctx, 200*time.Millisecond); ctx.Err() != nil {
			break
		}
	}
	var local ltx.TXID
	if r.db != nil {
		if pos, posErr := r.db.Pos(); posErr == nil {
			local = pos.TXID
		}
	}
	if err != nil {
		// Closing would try once more and wait; the process ends anyway.
		return &UnsyncedError{Local: local, Replica: acked, Err: err}
	}
	r.close(ctx)
	return nil
}

// Release lets go of a database whose last upload failed, and uploads nothing:
// for a process that goes on, and is going to replicate it again.
func (r *Replicator) Release(ctx context.Context) {
	r.client.gone.Store(true)
	if r.store != nil {
		r.close(ctx)
	}
}

func (r *Replicator) close(ctx context.Context) {
	if err := r.store.Close(ctx); err != nil {
		r.cfg.Logger.Debug("closing the database", "error", err)
	}
}

func hook[T any](f func(T), v T) {
	if f != nil {
		f(v)
	}
}

// errGone ends uploads of a database that was let go of, because its file was
// replaced or because the last upload is over.
var errGone = errors.New("this database is no longer replicated from here")

// got is Got, from all goroutines that upload.
type got struct {
	mu sync.Mutex
	Got
}

func (g *got) get() Got {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.Got
}

// note notes the outcome of an upload.
func (g *got) note(level int, txid ltx.TXID, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case err == nil:
		g.Acked = max(g.Acked, txid)
	case level == litestream.SnapshotLevel:
		g.Snapshot = max(g.Snapshot, txid)
	}
}

// acknowledged counts the L0 files that the replica has taken, and notes how far
// all of them go.
type acknowledged struct {
	Client
	got  *got
	n    atomic.Int64
	gone atomic.Bool // take no more
}

func (a *acknowledged) WriteLTXFile(ctx context.Context, level int, minTXID, maxTXID ltx.TXID, rd io.Reader) (*ltx.FileInfo, error) {
	if a.gone.Load() {
		return nil, errGone
	}
	info, err := a.Client.WriteLTXFile(ctx, level, minTXID, maxTXID, rd)
	a.got.note(level, maxTXID, err)
	if err == nil && level == 0 {
		a.n.Add(1)
	}
	return info, err
}

// TXID is a transaction's number in the replica.
type TXID = ltx.TXID
