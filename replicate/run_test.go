package replicate

import (
	"context"
	"database/sql"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/benbjohnson/litestream"
	"github.com/benbjohnson/litestream/file"
	"github.com/superfly/ltx"
)

// panicking is a replica whose client has a bug, for a while.
type panicking struct {
	*file.ReplicaClient
	times atomic.Int32
}

func (*panicking) Check(context.Context) error { return nil }

func (p *panicking) WriteLTXFile(ctx context.Context, level int, minTXID, maxTXID ltx.TXID, r io.Reader) (*ltx.FileInfo, error) {
	if p.times.Add(-1) >= 0 {
		panic("a bug")
	}
	return p.ReplicaClient.WriteLTXFile(ctx, level, minTXID, maxTXID, r)
}

// write commits something to a database, with the library's own driver: a second one
// in this process would drop its locks.
func write(t *testing.T, path string) {
	t.Helper()
	app, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = app.Close() }()
	if _, err := app.Exec("INSERT INTO t VALUES (2)"); err != nil {
		t.Fatal(err)
	}
}

// replicated starts to replicate a new database into a folder, and returns when some
// of it is there and Run is at work; stop ends Run, and leaves the database open.
func replicated(t *testing.T, client Client, line Line, onError func(error)) (r *Replicator, stop func()) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "app.db")
	// The library's own driver: a second one in this process would drop its locks.
	app, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = app.Close() })
	for _, stmt := range []string{"PRAGMA journal_mode=wal", "CREATE TABLE t (n INTEGER)", "INSERT INTO t VALUES (1)"} {
		if _, err := app.Exec(stmt); err != nil {
			t.Fatal(err)
		}
	}
	synced := make(chan ltx.TXID, 100)
	r = New(Config{
		Settings: Settings{SnapshotInterval: time.Hour, Retention: time.Hour},
		DBPath:   path, Client: client, Line: line, CheckInterval: time.Hour,
		OnError: onError,
		OnSync:  func(_ time.Time, txid ltx.TXID) { synced <- txid },
		Logger:  slog.New(slog.DiscardHandler),
	})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.Run(t.Context())
	}()
	select {
	case <-synced:
	case <-time.After(30 * time.Second):
		t.Fatal("it does not replicate")
	}
	return r, func() { r.Stop(); <-ended }
}

// A bug in the library ends neither the app nor its backup: what it had open is
// closed, and replication begins anew.
func TestAPanicOfTheLibrary(t *testing.T) {
	client := &panicking{ReplicaClient: file.NewReplicaClient(t.TempDir())}
	client.times.Store(2)
	var bugs atomic.Int32
	r, stop := replicated(t, client, &noted{}, func(err error) {
		if err != nil && strings.Contains(err.Error(), "a bug") {
			bugs.Add(1)
		}
	})
	stop()
	if n := bugs.Load(); n != 2 {
		t.Errorf("%d panics were reported", n)
	}
	if err := r.Finish(t.Context()); err != nil || r.leaked != nil {
		t.Errorf("%v, left open: %v", err, r.leaked)
	}
	if files, err := os.ReadDir(filepath.Join(client.Path(), "ltx", "0")); err != nil || len(files) == 0 {
		t.Errorf("in the replica: %v, %v", files, err)
	}
}

// A snapshot that was read while the app replaced its database is deleted, because it
// may mix the two.
func TestASnapshotOfTwoDatabases(t *testing.T) {
	client := &panicking{ReplicaClient: file.NewReplicaClient(t.TempDir())}
	r, stop := replicated(t, client, &noted{}, nil)
	stop()
	r.compactable.put(r.session)
	defer r.Release(t.Context())
	level := &litestream.CompactionLevel{Level: litestream.SnapshotLevel, Interval: time.Nanosecond}
	snapshots := func() int {
		files, err := os.ReadDir(filepath.Join(client.Path(), "ltx", "9"))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		return len(files)
	}
	other := r.cfg.DBPath + " other"
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(other, r.cfg.DBPath); err != nil {
		t.Fatal(err)
	}
	if r.compactLevel(t.Context(), level) || snapshots() != 0 {
		t.Errorf("%d snapshots are left", snapshots())
	}
}
