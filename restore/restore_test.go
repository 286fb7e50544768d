package restore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/benbjohnson/litestream"
	"github.com/benbjohnson/litestream/file"

	"github.com/slashacom/slasha-init/internal/durable"
	"github.com/slashacom/slasha-init/internal/wal"
)

// Every combination of facts has one right outcome.
func TestDecide(t *testing.T) {
	away := errors.New("away")
	replicas := []replicaState{notAsked, unreachable, empty, hasData, incomplete}
	for _, c := range []struct {
		db    databaseState
		asked askedFor
		want  [5]Action // for each of replicas
	}{
		// Missing and not known to be empty: never start empty.
		{missing, askedNothing, [5]Action{Fail, Fail, Fresh, Restore, Fail}},
		{missing, askedBefore, [5]Action{Fail, Fail, Fresh, Restore, Fail}},
		// A restore was requested, and there is nothing to restore: that fails, instead of
		// being skipped.
		{missing, askedPending, [5]Action{Fail, Fail, Fail, Restore, Fail}},
		{present, askedPending, [5]Action{Fail, Fail, Fail, Restore, Fail}},
		{present, askedNothing, [5]Action{Start, Start, Start, Start, Start}},
		{present, askedBefore, [5]Action{Start, Start, Start, Start, Start}},
	} {
		for i, replica := range replicas {
			got := decide(facts{Database: c.db, Asked: c.asked, Replica: replica, Err: away})
			if got.Action != c.want[i] || got.Why == "" {
				t.Errorf("%s, asked %s, replica %s: %s (%s), want %s", c.db, c.asked, replica, got.Action, got.Why, c.want[i])
			}
		}
	}
	// A lineage is known only of a database that is there and not to be restored
	// over.
	var notCompared *Comparison
	continues := &Comparison{How: "5 here, 5 there"}
	stale := &Comparison{Stale: true, How: "5 here, 7 there"}
	for _, asked := range []askedFor{askedNothing, askedBefore} {
		for _, c := range []struct {
			compared *Comparison
			onStale  OnStale
			want     [5]Action
		}{
			{continues, RestoreStale, [5]Action{Start, Start, Start, Start, Start}},
			{continues, FailStale, [5]Action{Start, Start, Start, Start, Start}},
			{notCompared, FailStale, [5]Action{Start, Start, Start, Start, Start}},
			{stale, FailStale, [5]Action{Fail, Fail, Fail, Fail, Fail}},
			// Known to be stale, it must not be written to any more.
			{stale, RestoreStale, [5]Action{Fail, Fail, Fail, Restore, Fail}},
		} {
			for i, replica := range replicas {
				f := facts{Database: present, Asked: asked, Compared: c.compared, OnStale: c.onStale, Replica: replica, Err: away}
				got := decide(f)
				if got.Action != c.want[i] || c.compared == stale && !strings.Contains(got.Why, "5 here, 7 there") {
					t.Errorf("asked %s, %s, replica %s, on stale %d: %s (%s), want %s", asked, f.lineage(), replica, c.onStale, got.Action, got.Why, c.want[i])
				}
			}
		}
	}
}

// A database that is there is compared with the replica. One that is stale gives way to
// the newest state, whatever was requested before. The outcome says what is known then.
func TestComparison(t *testing.T) {
	whole := filled(t, 30)
	away := errors.New("away")
	for name, c := range map[string]struct {
		comparison Comparison
		err        error
		onStale    OnStale
		want       Outcome // without its Progress and Aside
		reason     Reason
		says       string // the error, "" for none
	}{
		"it continues":    {comparison: Comparison{}, want: Outcome{Action: Start, Continues: true}, reason: reasonMissing},
		"an empty one":    {comparison: Comparison{Empty: true}, want: Outcome{Action: Start, Continues: true}, reason: reasonMissing},
		"no answer":       {err: away, want: Outcome{Action: Start}, reason: reasonMissing},
		"stale":           {comparison: Comparison{Stale: true}, want: Outcome{Action: Restore, Restored: true, Continues: true, Answered: true}, reason: reasonStale},
		"stale, to fail":  {comparison: Comparison{Stale: true, How: "5 here"}, onStale: FailStale, want: Outcome{Action: Fail}, reason: reasonStale, says: "stale: 5 here"},
		"no time to wait": {err: context.DeadlineExceeded, want: Outcome{Action: Start}, reason: reasonMissing},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config(t, whole)
			old(t, cfg)
			// A request that was carried out before.
			l := ledger{}
			l.add(carriedOut{Request: "id 1"})
			if err := l.write(cfg.Place); err != nil {
				t.Fatal(err)
			}
			cfg.What = What{Request: Once("id 1"), Timestamp: time.Now().Add(-time.Hour)} // there was no backup yet
			cfg.OnStale = c.onStale
			cfg.Line.Compare = func(context.Context) (Comparison, error) { return c.comparison, c.err }
			out, err := Run(t.Context(), cfg)
			if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Fatal(err)
			}
			if out.Progress.Reason != c.reason || (out.Aside != "") != out.Restored {
				t.Errorf("%+v", out)
			}
			if out.Restored && count(t, cfg.Place.DBPath) != 30 {
				t.Error("not the newest state")
			}
			if out.Progress, out.Aside = (Progress{}), ""; out != c.want {
				t.Errorf("%+v, want %+v", out, c.want)
			}
		})
	}
}

// Only what was restored, or an empty replica, shows that the replica answered.
func TestAnswered(t *testing.T) {
	nothing := replica{file.NewReplicaClient(t.TempDir()), t.TempDir()}
	late := &lateReplica{replica: nothing, fails: 1}
	for _, c := range []struct {
		client Client
		action Action
		want   bool
	}{{late, Fail, false}, {late, Fresh, true}, {filled(t, 5), Restore, true}} {
		out, err := Run(t.Context(), config(t, c.client))
		if out.Action != c.action || out.Answered != c.want || out.Continues != c.want || (err == nil) != c.want {
			t.Errorf("%+v, %v, want %s", out, err, c.action)
		}
	}
}

// replica is a folder that Litestream writes to and we restore from.
type replica struct {
	*file.ReplicaClient
	dir string
}

func (r replica) Empty(context.Context) (bool, error) {
	entries, err := os.ReadDir(r.dir)
	if errors.Is(err, os.ErrNotExist) {
		return true, nil
	}
	return len(entries) == 0, err
}

// filled returns a replica of a database with so many rows in several files.
func filled(t *testing.T, rows int) replica {
	t.Helper()
	dir := t.TempDir()
	r := replica{file.NewReplicaClient(dir), dir}
	path := filepath.Join(t.TempDir(), "source.db")
	db := litestream.NewDB(path)
	db.MonitorInterval = 0
	db.Replica = litestream.NewReplicaWithClient(db, r)
	db.Replica.MonitorEnabled = false
	if err := db.Open(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close(context.Background()) }()
	// The library's own driver: this process must not open the file with a
	// second one while Litestream has it.
	source, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = source.Close() }()
	for _, stmt := range []string{"PRAGMA journal_mode=wal", "CREATE TABLE t (n INTEGER, filler TEXT)", "CREATE INDEX i ON t (filler)"} {
		if _, err := source.Exec(stmt); err != nil {
			t.Fatal(err)
		}
	}
	for n := range rows {
		if _, err := source.Exec("INSERT INTO t VALUES (?, hex(randomblob(200)))", n); err != nil {
			t.Fatal(err)
		}
		if n%20 == 0 {
			if err := db.SyncAndWait(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := db.SyncAndWait(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r
}

func config(t *testing.T, client Client) Config {
	t.Helper()
	return Config{
		Place:  place(t.TempDir()),
		Source: Source{Client: client, Explain: func(err error) (string, bool) { return err.Error(), false }},
		Logger: slog.New(slog.DiscardHandler),
	}
}

// place is app.db in a folder, and our folder beside it as main would have it.
func place(dir string) Place {
	ours := filepath.Join(dir, ".app.db.slasha")
	return Place{
		DBPath:     filepath.Join(dir, "app.db"),
		Scratch:    filepath.Join(ours, "restore"),
		Aside:      filepath.Join(ours, "aside"),
		Ledger:     durable.NoteAt(filepath.Join(ours, "restored.json")).Making(func() error { return os.MkdirAll(ours, 0o700) }),
		MakeFolder: func(dir string) error { return os.MkdirAll(dir, 0o755) },
	}
}

// stateDir is our folder.
func stateDir(cfg Config) string { return cfg.Place.Ledger.Dir() }

func count(t *testing.T, path string) (n int) {
	t.Helper()
	db, err := sql.Open("sqlite3", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	if err := db.QueryRow("SELECT count(*) FROM t").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestRestoreOfAMissingDatabase(t *testing.T) {
	cfg := config(t, filled(t, 100))
	var last Progress
	cfg.OnProgress = func(p Progress) { last = p }
	if err := os.Chmod(filepath.Dir(cfg.Place.DBPath), 0o750); err != nil {
		t.Fatal(err)
	}
	out, err := Run(t.Context(), cfg)
	if err != nil || out.Action != Restore {
		t.Fatalf("%+v, %v", out, err)
	}
	if n := count(t, cfg.Place.DBPath); n != 100 {
		t.Errorf("%d rows", n)
	}
	fi, err := os.Stat(cfg.Place.DBPath)
	if err != nil || fi.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v; want that of the folder, for a file", fi.Mode(), err)
	}
	if last.BytesDone != last.BytesTotal || last.BytesDone == 0 || out.Progress.TXID == 0 {
		t.Errorf("progress ends at %+v; outcome %+v", last, out.Progress)
	}
	if _, err := os.Stat(cfg.Place.Scratch); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the scratch folder is left: %v", err)
	}
	if out, err := Run(t.Context(), cfg); err != nil || out.Action != Start {
		t.Errorf("again: %+v, %v", out, err)
	}
}

func TestRestoreTakesTheFoldersOwner(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to give files away")
	}
	cfg := config(t, filled(t, 1))
	if err := os.Chown(filepath.Dir(cfg.Place.DBPath), 12345, 54321); err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(cfg.Place.DBPath)
	if err != nil {
		t.Fatal(err)
	}
	if st := fi.Sys().(*syscall.Stat_t); st.Uid != 12345 || st.Gid != 54321 {
		t.Errorf("owner %d:%d", st.Uid, st.Gid)
	}
}

// Rule 5: SQLite would apply a foreign WAL to the restored file, and Litestream
// would count on from a foreign folder.
func TestLeftoversAreSetAside(t *testing.T) {
	source := filled(t, 50)
	foreign := filepath.Join(t.TempDir(), "foreign.db")
	other, err := sql.Open("sqlite3", foreign+"?_journal_mode=WAL")
	if err != nil {
		t.Fatal(err)
	}
	for _, stmt := range []string{"CREATE TABLE t (n INTEGER, filler TEXT)", "INSERT INTO t VALUES (666, 'foreign')"} {
		if _, err := other.Exec(stmt); err != nil {
			t.Fatal(err)
		}
	}
	foreignWAL, err := os.ReadFile(foreign + "-wal") // as a crash would leave it
	if err != nil {
		t.Fatal(err)
	}
	_ = other.Close()

	for _, empty := range []bool{false, true} {
		t.Run(fmt.Sprintf("replica empty %v", empty), func(t *testing.T) {
			var client Client = source
			if empty {
				client = replica{file.NewReplicaClient(t.TempDir()), t.TempDir()}
			}
			cfg := config(t, client)
			left := map[string][]byte{
				cfg.Place.DBPath + "-wal": foreignWAL, cfg.Place.DBPath + "-shm": []byte("x"), cfg.Place.DBPath + "-journal": []byte("y"),
				filepath.Join(wal.LitestreamDir(cfg.Place.DBPath), "ltx", "0", "0000000000000009-0000000000000009.ltx"): []byte("z"),
			}
			for path, b := range left {
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := Run(t.Context(), cfg); err != nil {
				t.Fatal(err)
			}
			for path := range left {
				if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("%s is still there: %v", path, err)
				}
			}
			aside, err := filepath.Glob(filepath.Join(stateDir(cfg), "aside", "*", "*"))
			if err != nil || len(aside) != 4 {
				t.Errorf("set aside: %v, %v", aside, err)
			}
			if !empty {
				if n := count(t, cfg.Place.DBPath); n != 50 {
					t.Errorf("%d rows", n)
				}
			}
		})
	}
}

// Owner and mode are those of what was there, or of the folder; a folder that is
// not there is made.
func TestOwnerAndMode(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to give files away")
	}
	for name, c := range map[string]struct {
		prepare func(cfg *Config) error
		uid     uint32
		mode    os.FileMode
	}{
		"an empty file of another owner": {func(cfg *Config) error {
			return errors.Join(os.WriteFile(cfg.Place.DBPath, nil, 0o600), os.Chown(cfg.Place.DBPath, 1234, 1234), os.Chmod(cfg.Place.DBPath, 0o604))
		}, 1234, 0o604},
		"a database of another owner": {func(cfg *Config) error {
			cfg.What.Request = Once("1")
			return errors.Join(os.WriteFile(cfg.Place.DBPath, []byte("old"), 0o600), os.Chown(cfg.Place.DBPath, 1235, 1235), os.Chmod(cfg.Place.DBPath, 0o640))
		}, 1235, 0o640},
		"a folder of another owner": {func(cfg *Config) error {
			dir := filepath.Dir(cfg.Place.DBPath)
			return errors.Join(os.Chown(dir, 1236, 1236), os.Chmod(dir, 0o770))
		}, 1236, 0o660},
		"no folder": {func(cfg *Config) error {
			cfg.Place = place(filepath.Join(filepath.Dir(cfg.Place.DBPath), "a", "b"))
			return nil
		}, 0, 0o644},
	} {
		cfg := config(t, filled(t, 10))
		if err := c.prepare(&cfg); err != nil {
			t.Fatal(err)
		}
		if out, err := Run(t.Context(), cfg); err != nil || out.Action != Restore {
			t.Errorf("%s: %+v, %v", name, out, err)
			continue
		}
		fi, err := os.Stat(cfg.Place.DBPath)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if uid := fi.Sys().(*syscall.Stat_t).Uid; uid != c.uid || fi.Mode().Perm() != c.mode {
			t.Errorf("%s: uid %d and mode %o, want %d and %o", name, uid, fi.Mode().Perm(), c.uid, c.mode)
		}
		if n := count(t, cfg.Place.DBPath); n != 10 {
			t.Errorf("%s: %d rows", name, n)
		}
	}
}

func TestZeroBytesCountAsMissing(t *testing.T) {
	cfg := config(t, filled(t, 10))
	if err := os.WriteFile(cfg.Place.DBPath, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := Run(t.Context(), cfg); err != nil || out.Action != Restore || count(t, cfg.Place.DBPath) != 10 {
		t.Errorf("%+v, %v", out, err)
	}
	// With a WAL beside it, it is somebody's database.
	cfg = config(t, filled(t, 10))
	for path, content := range map[string]string{cfg.Place.DBPath: "", cfg.Place.DBPath + "-wal": "commits"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := Run(t.Context(), cfg); err != nil || out.Action != Start {
		t.Errorf("with a WAL: %+v, %v", out, err)
	}
}

// Rule 10: what is damaged never gets to the path.
func TestDamagedReplica(t *testing.T) {
	source := filled(t, 200)
	files, err := filepath.Glob(filepath.Join(source.dir, "ltx", "0", "*.ltx"))
	if err != nil || len(files) < 5 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for name, damage := range map[string]func(string) error{
		"cut":     func(f string) error { return os.Truncate(f, 150) },
		"emptied": func(f string) error { return os.Truncate(f, 0) },
		"removed": os.Remove,
		"flipped": func(f string) error {
			b, err := os.ReadFile(f)
			if err != nil {
				return err
			}
			b[len(b)/2] ^= 0x40
			return os.WriteFile(f, b, 0o600)
		},
	} {
		for _, i := range []int{0, len(files) / 2} {
			t.Run(fmt.Sprintf("%s, file %d", name, i), func(t *testing.T) {
				dir := t.TempDir()
				if err := os.CopyFS(dir, os.DirFS(source.dir)); err != nil {
					t.Fatal(err)
				}
				if err := damage(strings.Replace(files[i], source.dir, dir, 1)); err != nil {
					t.Fatal(err)
				}
				cfg := config(t, replica{file.NewReplicaClient(dir), dir})
				out, err := Run(t.Context(), cfg)
				var failure *Failure
				if !errors.As(err, &failure) {
					t.Fatalf("%+v, %v", out, err)
				}
				if _, err := os.Stat(cfg.Place.DBPath); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("a database was put there: %v", err)
				}
				t.Log(failure)
			})
		}
	}
}

func TestAReplicaThatComesBackInTime(t *testing.T) {
	cfg := config(t, nil)
	late := &lateReplica{replica: filled(t, 5), fails: 2}
	cfg.Source.Client, cfg.Source.Patience = late, 10*time.Second
	cfg.Source.Explain = func(err error) (string, bool) { return err.Error(), true }
	if out, err := Run(t.Context(), cfg); err != nil || out.Action != Restore {
		t.Errorf("%+v, %v", out, err)
	}
	// Out of patience, it is a failure, and the error says why.
	cfg = config(t, &lateReplica{replica: late.replica, fails: 1 << 30})
	cfg.Source.Patience = 300 * time.Millisecond
	cfg.Source.Explain = func(error) (string, bool) { return "it sleeps", true }
	out, err := Run(t.Context(), cfg)
	if err == nil || out.Action != Fail || !strings.Contains(err.Error(), "it sleeps") {
		t.Errorf("%+v, %v", out, err)
	}
}

type lateReplica struct {
	replica
	fails int
}

func (r *lateReplica) Empty(ctx context.Context) (bool, error) {
	if r.fails--; r.fails >= 0 {
		return false, errors.New("not yet")
	}
	return r.replica.Empty(ctx)
}
