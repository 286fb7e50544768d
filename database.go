package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/superfly/ltx"

	"github.com/slashacom/slasha-init/config"
	"github.com/slashacom/slasha-init/control"
	"github.com/slashacom/slasha-init/healthz"
	"github.com/slashacom/slasha-init/lineage"
	"github.com/slashacom/slasha-init/replica"
	"github.com/slashacom/slasha-init/replica/storage"
	"github.com/slashacom/slasha-init/replicate"
	"github.com/slashacom/slasha-init/restore"
	"github.com/slashacom/slasha-init/volume"
)

// database is one SQLite database of a container: it is restored from the replica and
// streamed into it.
type database struct {
	*container
	replica    *replica.Replica
	path       string
	folder     volume.Folder
	line       *lineage.Line
	reserve    func() (release func(), err error)   // see volume.Member; nil before the container has joined
	replicator atomic.Pointer[replicate.Replicator] // nil while nothing is replicated
}

func newDatabase(c *container, from *replica.Replica, path string) *database {
	folder := volume.FolderOf(path)
	c.health.Database(path, from.String())
	return &database{
		container: c, replica: from, path: path, folder: folder,
		line: lineage.New(lineage.Config{
			DBPath: path, Client: from, Adopted: folder.Adopted(), NewLine: folder.NewLine(), While: from.While,
		}),
	}
}

// smallHeap is by how many percent the heap may grow between two collections. With Go's
// 100 percent, a snapshot of 1 GiB took 135 MiB of memory that belongs to the app, and
// what a restore keeps of each page would count twice.
const smallHeap = 40

// openReplica opens the replica of cfg, and makes this process one that works with it:
// nothing in the environment redirects its requests, and its heap stays small. Copy the
// app's environment before the call.
func openReplica(cfg config.Config, rc replica.Config) (*replica.Replica, error) {
	storage.IsolateEnvironment(cfg.Replica.Storage.AccessKeyID != "")
	debug.SetGCPercent(smallHeap)
	rc.Settings = cfg.Replica
	return replica.Open(rc)
}

// place is where the database at a path belongs.
func place(path string) restore.Place {
	f := volume.FolderOf(path)
	return restore.Place{DBPath: path, Scratch: f.Scratch(), Aside: f.Aside(), Ledger: f.Restored(), MakeFolder: volume.MakeFolder}
}

// asked is which restore the container was configured to make.
func (d *database) asked() restore.What {
	return restore.What{Request: restore.Once(d.cfg.Restore.Request), Timestamp: d.cfg.Restore.Timestamp}
}

// restoreIsDue reports whether a requested restore has not been made yet.
func (d *database) restoreIsDue() bool { return restore.IsDue(place(d.path), d.asked().Request) }

// isIncomplete reports whether the database can't be followed: it is missing, or a
// leader that died while it replaced the database left it without its WAL.
func (d *database) isIncomplete() bool {
	fi, err := os.Stat(d.path)
	return err != nil || fi.Size() == 0 || restore.Interrupted(place(d.path))
}

// restorePatience is how long a start keeps asking a replica that does not answer when
// the database is missing: long enough for a bucket that starts together with the app,
// short enough that a mistake shows soon.
const restorePatience = 20 * time.Second

// restoreConfig is how each restore of this database is made.
func (d *database) restoreConfig(what restore.What) restore.Config {
	return restore.Config{
		What:      what,
		Place:     place(d.path),
		Source:    d.source(),
		Check:     d.cfg.Restore.Check,
		Line:      restore.Line{Compare: d.compare, Adopt: d.line.Adopt, Seal: d.seal, Begin: d.line.Begin},
		OnStale:   d.cfg.Restore.OnStale,
		Reserve:   d.reserve,
		OnWaiting: d.health.Problem,
		Logger:    d.log,
	}
}

func (d *database) source() restore.Source {
	return restore.Source{Client: d.replica, Explain: d.replica.Explain, Patience: restorePatience}
}

// bring makes sure that the right database is at its path.
func (d *database) bring(ctx context.Context, what restore.What) (restore.Outcome, error) {
	show := restore.NewDisplay(d.log, os.Stderr)
	cfg := d.restoreConfig(what)
	cfg.OnProgress = func(p restore.Progress) {
		d.enter(healthz.Restoring)
		d.health.Problem("")
		d.health.Restoring(restoreStatus(healthz.RestoreRunning, p))
		show.Show(p)
	}
	out, err := restore.Run(ctx, cfg)
	show.Done()
	if out.Action == restore.Restore && ctx.Err() == nil {
		s := restoreStatus(healthz.RestoreDone, out.Progress)
		if err != nil {
			s.State = healthz.RestoreFailed
		}
		if out.Aside != "" {
			s.SetAside = &out.Aside
		}
		d.health.Restoring(s)
	}
	if out.Continues {
		d.line.Trust()
	} else {
		d.line.Doubt()
	}
	return out, err
}

func restoreStatus(state healthz.RestoreState, p restore.Progress) healthz.Restore {
	reason := string(p.Reason)
	s := healthz.Restore{
		State: state, Reason: &reason,
		BytesDone: p.BytesDone, BytesTotal: p.BytesTotal, BytesPerSecond: p.Rate(),
		TookSeconds: float64(p.Took.Milliseconds()) / 1000,
	}
	if left, known := p.Left(); known && state == healthz.RestoreRunning {
		seconds := int64(left / time.Second)
		s.SecondsLeft = &seconds
	}
	if p.TXID != 0 {
		txid := p.TXID.String()
		s.TXID = &txid
	}
	return s
}

// compare reports how the database stands to the replica, before the app starts.
func (d *database) compare(ctx context.Context) (restore.Comparison, error) {
	if err := d.replica.LeaseMissing(); err != nil {
		return restore.Comparison{}, err // the start has already waited for it
	}
	f, err := d.line.Compare(ctx)
	return restore.Comparison{Empty: f.Relation == lineage.Empty, Stale: f.Stale(), How: f.String()}, err
}

// seal keeps what is newer than the point in time that was restored. If some of that is
// damaged, there is less to keep, but that must not prevent the restore.
func (d *database) seal(ctx context.Context) error {
	err := replicate.Seal(ctx, d.replica.Writer(), slog.Default())
	if errors.Is(err, replicate.ErrUnsound) {
		d.log.Warn("some of what is newer than the restored point in time can't be kept for long", "error", err)
		return nil
	}
	return err
}

// newReplicator returns what streams the database to the replica, and makes it the one
// that answers a request for a sync.
func (d *database) newReplicator() *replicate.Replicator {
	r := replicate.New(replicate.Config{
		Settings:      d.cfg.Replicate,
		DBPath:        d.path,
		Client:        d.replica.Writer(),
		Line:          d.line,
		CheckInterval: d.replica.Writer().CheckInterval(),
		OnSync:        func(before time.Time, txid ltx.TXID) { d.health.Synced(before, txid.String()) },
		OnCapture:     func(txid ltx.TXID) { d.health.Captured(txid.String()) },
		OnPending:     d.health.Pending,
		OnError:       d.replicated,
		Logger:        d.log,
	})
	d.replicator.Store(r)
	return r
}

// replicated reports the outcome of an attempt to replicate. If the database turns out
// to be stale, the app is stopped, because what it writes would not get into the replica.
func (d *database) replicated(err error) {
	if err == nil {
		d.health.Problem("")
		return
	}
	sentence, _ := d.replica.Explain(err)
	var dropped *replicate.DroppedError
	var final interface{ Final() bool }
	switch {
	case errors.As(err, &final):
		sentence = err.Error()
	case errors.As(err, &dropped):
		sentence = (&replicate.DroppedError{Err: errors.New(sentence)}).Error()
	}
	d.health.Problem(sentence)
	var stale *lineage.StaleError
	if errors.As(err, &stale) && d.requests.Place(&control.Request{Kind: control.Stale}) {
		d.log.Error("the database is stale: the app is stopped, and nothing is uploaded", "how", stale.Finding.String())
	}
}

// drills verify the replica now and then.
func (d *database) drills() restore.Drills {
	return restore.Drills{
		Every:      d.cfg.Verify,
		DBPath:     d.path,
		Scratch:    d.folder.Drill(),
		Note:       d.folder.Verified(),
		Source:     d.source(),
		Check:      d.cfg.Restore.Check,
		Acked:      d.line.Acked,
		SizeAt:     func(txid ltx.TXID) (int64, bool) { return lineage.SizeAt(d.path, txid) },
		OnVerified: d.health.Verified,
		Logger:     d.log,
	}
}
