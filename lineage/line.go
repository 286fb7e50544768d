// Package lineage knows how the database on a volume relates to its replica, and
// compares the two before anything is uploaded.
//
// Litestream does not: a volume from before a move to another host silently becomes
// the newest version, and one that went on by itself is silently mixed with what
// another instance uploaded. Both are found here by facts: the numbers of the
// transactions on either side, and the headers of those that both have.
//
// Nothing here changes the database or opens its file. docs/design.md has the rule: this
// process never opens and closes the live database.
package lineage

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/superfly/ltx"

	"github.com/slashacom/slasha-init/internal/durable"
)

// Config is what a Line needs. All fields but While are required.
type Config struct {
	DBPath string
	Client Client

	// Adopted is where Adopt and Drop note what a file goes on from.
	Adopted durable.Note
	// NewLine is there as long as the replica lacks a snapshot of a new line.
	NewLine durable.Note

	// While runs f under the replica's lease. Admit compares under it: as long as
	// another instance holds the lease, it may go on writing, so a comparison says
	// nothing about later. Nil where there is no lease.
	While func(ctx context.Context, f func(ctx context.Context) error) error
}

// Client reads the replica.
type Client interface {
	LTXFiles(ctx context.Context, level int, seek ltx.TXID, useMetadata bool) (ltx.FileIterator, error)
	OpenLTXFile(ctx context.Context, level int, minTXID, maxTXID ltx.TXID, offset, size int64) (io.ReadCloser, error)
}

// Line is how one database relates to its replica: whether it may be uploaded, which
// transactions of it the replica has, and what is noted of that on the volume. It is
// safe for concurrent use.
type Line struct {
	cfg Config

	mu    sync.Mutex
	known bool     // what is at the path continues the replica
	tried ltx.TXID // the transaction of a snapshot whose upload failed; it may have got there
	acked ltx.TXID // the newest that the replica has acknowledged and may still have, 0 for none

	// continues is the newest of the replica's transactions that the database goes on
	// from, for as long as nothing has been uploaded from here.
	continues ltx.TXID
}

// New returns the Line of a database. It reads nothing, and nothing is known yet.
func New(cfg Config) *Line {
	if cfg.While == nil {
		cfg.While = func(ctx context.Context, f func(context.Context) error) error { return f(ctx) }
	}
	return &Line{cfg: cfg}
}

// Compare finds out how the database at the path stands to its replica, before the app
// starts. It costs one list of each level, and where both sides have a transaction in
// common the header of one file. If the database is not stale, Admit admits it from
// then on. After an error, or if it is stale, Admit compares again.
func (l *Line) Compare(ctx context.Context) (Finding, error) {
	f, err := l.compare(ctx)
	l.learn(f, err)
	return f, err
}

// Admit returns nil when the database may be uploaded: at once where that is known,
// else after a comparison under the lease. The error is a *StaleError when the replica
// has something that the database lacks: what the app writes from then on will not get
// into the replica. Any other error leaves it open, and a later call may succeed,
// unless the error has a method Final that returns true.
func (l *Line) Admit(ctx context.Context) error {
	l.mu.Lock()
	known := l.known
	l.mu.Unlock()
	if known {
		return nil
	}
	var f Finding
	err := l.cfg.While(ctx, func(ctx context.Context) (err error) {
		f, err = l.compare(ctx)
		return err
	})
	l.learn(f, err)
	switch {
	case err != nil:
		return fmt.Errorf("compare with the replica: %w", err)
	case f.Stale():
		return &StaleError{f}
	}
	return nil
}

// compare is the verdict: it finds out how the database at the path stands to its
// replica, from what was captured beside the database (local.go), what was noted of it
// (adopt.go) and what the replica has (there.go).
func (l *Line) compare(ctx context.Context) (Finding, error) {
	there, err := listReplica(ctx, l.cfg.Client)
	if err != nil {
		return Finding{}, err
	}
	here, err := listLocal(l.cfg.DBPath)
	if err != nil {
		return Finding{}, err
	}
	f := Finding{Replica: there.newest, Local: here.newest()}
	if f.Replica == 0 {
		f.Relation = Empty
		return f, nil
	}
	if f.Local == 0 {
		if f.Local, err = l.adopted().reaches(ctx, l.cfg.Client, there); err != nil {
			return Finding{}, err
		}
		f.Common = min(f.Local, f.Replica)
	} else if f.Common, err = common(ctx, l.cfg.Client, here, there); err != nil {
		return Finding{}, err
	}
	// A transaction number that both sides have must stand for the same transaction,
	// as far as that can still be seen.
	shared := here.newestOf(there.small)
	switch {
	case shared > 0 && f.Common < shared:
		f.Relation = Diverged
	case f.Local < f.Replica:
		f.Relation = Behind
	}
	if f.Stale() {
		f.Unsent = here.after(max(f.Common, f.replicaEnd())) + commitsInWAL(l.cfg.DBPath, here)
	}
	return f, nil
}

// learn remembers the outcome of a comparison.
func (l *Line) learn(f Finding, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.known = err == nil && !f.Stale()
	if l.known {
		l.continues = f.Replica
	}
	if err == nil {
		l.acked = min(l.acked, f.Replica) // somebody has put an older copy back, or emptied it
	}
}

// StaleError says that the database must not be uploaded: the replica has something
// that it lacks.
type StaleError struct{ Finding Finding }

func (e *StaleError) Error() string { return "the database is stale: " + e.Finding.String() }

// Final is true: nothing that this database has may be uploaded, until another one is
// in its place.
func (e *StaleError) Final() bool { return true }

// Trust says that what is at the path needs no comparison: it was restored a moment
// ago, or the replica is empty.
func (l *Line) Trust() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.known = true
}

// Doubt says that what is at the path must be compared with the replica before it is
// uploaded: another instance may have written since it was.
func (l *Line) Doubt() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.known = false
}

// Synced notes that everything up to a transaction is in the replica. What was
// acknowledged beyond it counts no more: where the replica lost its files, the numbers
// begin anew.
func (l *Line) Synced(txid ltx.TXID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.acked = txid
}

// Uploaded notes that the replica has acknowledged a file up to a transaction, of any
// level.
func (l *Line) Uploaded(txid ltx.TXID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.acked = max(l.acked, txid)
}

// Tried notes that the upload of a snapshot has failed, which may have got into the
// replica all the same: the answer can be lost.
func (l *Line) Tried(snapshot ltx.TXID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tried = max(l.tried, snapshot)
}

// Acked returns the newest transaction that the replica has acknowledged since this
// process began, or was found to have then; 0 for none. A comparison or a restore that
// finds less in the replica sets it back: numbers that an earlier line has used say
// nothing about this one.
func (l *Line) Acked() ltx.TXID {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.acked
}

// Begin notes, on the disk, that what the database is going to be does not continue
// the newest that the replica has: a snapshot must follow what is uploaded next. The
// note stays, over restarts, until Anchored is called.
func (l *Line) Begin() error { return l.cfg.NewLine.Write(nil) }

// IsNew reports whether that is noted.
func (l *Line) IsNew() bool { return l.cfg.NewLine.Exists() }

// Anchored notes that the replica has a snapshot of the new line. After an error, the
// next start uploads a snapshot that is there already.
func (l *Line) Anchored() error { return l.cfg.NewLine.Remove() }
