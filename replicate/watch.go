package replicate

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// pollEvery is the net under the notification: some file systems (network and
// FUSE mounts) send none, and a folder that does not exist yet can't be watched.
const pollEvery = time.Second

// mark identifies a state of the database by its WAL, without reading either.
type mark struct {
	size  int64
	mtime time.Time
	main  int64 // size of the database file: an app that leaves WAL mode has no WAL
}

// walWatch notices when a database's WAL changes.
type walWatch struct {
	path   string
	logger *slog.Logger

	notify *fsnotify.Watcher // nil where there is none
	last   mark              // what the replica has
	fresh  bool              // last was taken so soon after a write that another may hide behind it
}

// tick is more than the granularity of a file's modification time, which is that
// of the kernel's clock tick: two writes within one may leave the same time, and
// a restarted WAL keeps its size.
const tick = 20 * time.Millisecond

func newWALWatch(dbPath string, logger *slog.Logger) *walWatch {
	return &walWatch{path: dbPath, logger: logger}
}

// start begins to watch. Without a notification, the poll alone remains.
func (w *walWatch) start() {
	notify, err := fsnotify.NewWatcher()
	if err != nil {
		w.logger.Warn("can't get notifications of changes, looking every second instead", "error", err)
		return
	}
	w.notify = notify
	w.add()
}

func (w *walWatch) add() {
	if w.notify != nil && len(w.notify.WatchList()) == 0 {
		if err := w.notify.Add(filepath.Dir(w.path)); err != nil && !os.IsNotExist(err) {
			w.logger.Warn("can't watch the database's folder, looking every second instead", "error", err)
			_ = w.notify.Close()
			w.notify = nil
		}
	}
}

func (w *walWatch) stop() {
	if w.notify != nil {
		_ = w.notify.Close()
	}
}

func (w *walWatch) mark() mark {
	var m mark
	if fi, err := os.Stat(w.path + "-wal"); err == nil {
		m.size, m.mtime = fi.Size(), fi.ModTime()
	}
	if fi, err := os.Stat(w.path); err == nil {
		m.main = fi.Size()
	}
	return m
}

// synced notes that all that m, taken at the given time, stands for is in the
// replica.
func (w *walWatch) synced(m mark, taken time.Time) {
	w.last, w.fresh = m, taken.Sub(m.mtime) < tick
}

func (w *walWatch) isSynced(m mark) bool { return w.last == m }

// wait returns true when the WAL has changed, having called seen at the first
// sign of it, and false after at most the given time, or when ctx ends or
// something comes from wake. What happened since the last wait counts: while
// nobody reads them, the kernel keeps the events and merges equal ones.
func (w *walWatch) wait(ctx context.Context, atMost time.Duration, wake <-chan struct{}, seen func(mark)) bool {
	w.add()
	var events chan fsnotify.Event
	var errs chan error
	if w.notify != nil {
		events, errs = w.notify.Events, w.notify.Errors
	}
	timeout := time.NewTimer(atMost)
	defer timeout.Stop()
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	var again <-chan time.Time
	if w.fresh {
		again = time.After(tick)
	}
	for {
		select {
		case e := <-events:
			if !w.concerns(e) {
				continue
			}
		case <-errs: // events were lost
		case <-poll.C:
			if w.isSynced(w.mark()) {
				continue
			}
		case <-again:
			return true
		case <-timeout.C:
			return false
		case <-wake:
			return false
		case <-ctx.Done():
			return false
		}
		m := w.mark()
		if w.isSynced(m) {
			continue // our own write, or one that has been uploaded since
		}
		seen(m)
		return true
	}
}

// concerns reports whether an event is about the WAL, or about the database
// file appearing.
func (w *walWatch) concerns(e fsnotify.Event) bool {
	switch e.Name {
	case w.path + "-wal":
		return true
	case w.path:
		return e.Has(fsnotify.Create) || e.Has(fsnotify.Rename) || e.Has(fsnotify.Remove)
	}
	return false
}
