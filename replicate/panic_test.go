package replicate

import (
	"context"
	"database/sql"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

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

// A bug in the library ends neither the app nor its backup: what it had open is
// closed, and replication begins anew.
func TestAPanicOfTheLibrary(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app.db")
	// The library's own driver: a second one in this process would drop its locks.
	app, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = app.Close() }()
	for _, stmt := range []string{"PRAGMA journal_mode=wal", "CREATE TABLE t (n INTEGER)", "INSERT INTO t VALUES (1)"} {
		if _, err := app.Exec(stmt); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	client := &panicking{ReplicaClient: file.NewReplicaClient(dir)}
	client.times.Store(2)
	told, synced := make(chan error, 100), make(chan ltx.TXID, 100)
	r := New(Config{
		DBPath: path, Client: client, CheckInterval: time.Hour, SnapshotInterval: time.Hour, Retention: time.Hour,
		OnError: func(err error) { told <- err },
		OnSync:  func(_ time.Time, txid ltx.TXID) { synced <- txid },
		Logger:  slog.New(slog.DiscardHandler),
	})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.Run(t.Context())
	}()
	deadline := time.After(30 * time.Second)
	bugs := 0
	for done := false; !done; {
		select {
		case err := <-told:
			if err != nil && strings.Contains(err.Error(), "a bug") {
				bugs++
			}
		case txid := <-synced:
			done = txid > 0
		case <-deadline:
			t.Fatal("it does not replicate again")
		}
	}
	if bugs != 2 {
		t.Errorf("%d panics were told", bugs)
	}
	r.Stop()
	<-ended
	if err := r.Finish(t.Context()); err != nil || len(r.leaked) > 0 {
		t.Errorf("%v, %d left open", err, len(r.leaked))
	}
	if files, err := os.ReadDir(filepath.Join(dir, "ltx", "0")); err != nil || len(files) == 0 {
		t.Errorf("in the replica: %v, %v", files, err)
	}
}
