package restore

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/benbjohnson/litestream"
	"github.com/benbjohnson/litestream/file"
	"github.com/pierrec/lz4/v4"
	"github.com/superfly/ltx"
)

// generation is where olderReplica keeps its only one.
const generation = "0123456789abcdef"

// olderReplica is what Litestream 0.3 writes: a snapshot with one row, and two WAL
// segments with one more each. It returns the folder of the generation too.
func olderReplica(t *testing.T) (r replica, dir string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "source.db")
	db, err := sql.Open("sqlite3", path)
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	exec := func(stmt string) {
		t.Helper()
		if _, err := db.Exec(stmt); err != nil {
			t.Fatal(err)
		}
	}
	read := func(name string) []byte {
		t.Helper()
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, stmt := range []string{
		"PRAGMA journal_mode=wal", "PRAGMA wal_autocheckpoint=0", "CREATE TABLE t (n INTEGER)", "INSERT INTO t VALUES (1)",
		"PRAGMA wal_checkpoint(TRUNCATE)",
	} {
		exec(stmt)
	}
	snapshot := read(path)
	exec("INSERT INTO t VALUES (2)")
	one := read(path + "-wal")
	exec("INSERT INTO t VALUES (3)")
	two := read(path + "-wal")
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	r = replica{file.NewReplicaClient(t.TempDir()), ""}
	r.dir = r.Path()
	for name, content := range map[string][]byte{
		litestream.SnapshotPathV3(r.dir, generation, 0):                    snapshot,
		litestream.WALSegmentPathV3(r.dir, generation, 0, 0):               one,
		litestream.WALSegmentPathV3(r.dir, generation, 0, int64(len(one))): two[len(one):],
	} {
		var packed bytes.Buffer
		w := lz4.NewWriter(&packed)
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, packed.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return r, filepath.Join(r.dir, "generations", generation)
}

// A replica of Litestream 0.3 is restored whole or refused: whatever is wrong with
// it, it never passes for an empty one, on which an app would start anew, and never
// for an older state.
func TestOlderReplicaThatIsNotWhole(t *testing.T) {
	for name, c := range map[string]struct {
		harm func(snapshot string, segments []string) error
		at   time.Duration // of the point in time that is wanted, from now; 0: the newest
		says string        // "": all is restored
	}{
		"sound":                         {},
		"before the first backup":       {at: -time.Hour, says: "no backup from before"},
		"now":                           {at: time.Hour},
		"an empty snapshot":             {harm: func(s string, _ []string) error { return os.Truncate(s, 0) }, says: "00000000.snapshot.lz4"},
		"an empty last segment":         {harm: func(_ string, w []string) error { return os.Truncate(w[1], 0) }, says: ".wal.lz4 in the replica is damaged"},
		"an empty first segment":        {harm: func(_ string, w []string) error { return os.Truncate(w[0], 0) }, says: "00000000_00000000.wal.lz4"},
		"a segment cut to its header":   {harm: func(_ string, w []string) error { return os.Truncate(w[1], 7) }, says: ".wal.lz4"},
		"a segment cut in its middle":   {harm: func(_ string, w []string) error { return os.Truncate(w[1], 40) }, says: "failed"},
		"a snapshot cut in its middle":  {harm: func(s string, _ []string) error { return os.Truncate(s, 60) }, says: "failed"},
		"without its first segment":     {harm: func(_ string, w []string) error { return os.Remove(w[0]) }, says: "failed"},
		"without its snapshot":          {harm: func(s string, _ []string) error { return os.Remove(s) }, says: "failed"},
		"without its snapshot, earlier": {harm: func(s string, _ []string) error { return os.Remove(s) }, at: time.Hour, says: "no backup from before"},
	} {
		t.Run(name, func(t *testing.T) {
			r, dir := olderReplica(t)
			segments, err := filepath.Glob(filepath.Join(dir, "wal", "*"))
			if err != nil || len(segments) != 2 {
				t.Fatal(segments, err)
			}
			if c.harm != nil {
				if err := c.harm(litestream.SnapshotPathV3(r.dir, generation, 0), segments); err != nil {
					t.Fatal(err)
				}
			}
			for _, present := range []bool{false, true} {
				cfg := config(t, r)
				cfg.Line = lineOf(&[]string{}, cfg)
				if c.at != 0 {
					cfg.What.Timestamp = time.Now().Add(c.at)
				}
				before := tree(t, filepath.Dir(cfg.Place.DBPath), stateDir(cfg))
				if present {
					cfg.What.Request = Once("id 1")
					before = old(t, cfg)
				}
				out, err := Run(t.Context(), cfg)
				if c.says == "" {
					if err != nil || !out.Restored || count(t, cfg.Place.DBPath) != 3 {
						t.Errorf("present %v: %+v, %v", present, out.Action, err)
					}
					continue
				}
				if err == nil || !strings.Contains(err.Error(), c.says) {
					t.Errorf("present %v: %v, %v", present, out.Action, err)
				}
				if after := tree(t, filepath.Dir(cfg.Place.DBPath), stateDir(cfg)); fmt.Sprint(after) != fmt.Sprint(before) {
					t.Errorf("present %v: the folder is not as it was: %v", present, after)
				}
			}
		})
	}
}

// both returns a replica that 0.5 wrote an hour ago, up to the transaction newest, and
// 0.3 since.
func both(t *testing.T) (r replica, newest ltx.TXID) {
	t.Helper()
	older, _ := olderReplica(t)
	r = filled(t, 30)
	before := time.Now().Add(-time.Hour)
	files := r.files(t, 0)
	for _, name := range files {
		if err := os.Chtimes(name, before, before); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Rename(filepath.Join(older.dir, "generations"), filepath.Join(r.dir, "generations")); err != nil {
		t.Fatal(err)
	}
	return r, ltx.TXID(len(files))
}

// What 0.3 wrote does not continue what 0.5 wrote before it, also where it is the newest
// backup: a new line begins after the transactions of 0.5. Both kinds of restore agree.
func TestOlderFormatBesideTodays(t *testing.T) {
	for name, c := range map[string]struct {
		restore func(t *testing.T, cfg Config) error
		want    []string
	}{
		"a container's": {func(t *testing.T, cfg Config) error {
			_, err := Run(t.Context(), cfg)
			return err
		}, []string{"seal", "begin", "adopt"}},
		"a person's": {func(t *testing.T, cfg Config) error {
			_, err := ToFile(t.Context(), cfg, cfg.Place.DBPath)
			return err
		}, []string{"begin", "adopt"}},
	} {
		for _, what := range []What{{}, {Timestamp: time.Now().Add(time.Hour)}} {
			t.Run(fmt.Sprint(name, ", in time: ", !what.Timestamp.IsZero()), func(t *testing.T) {
				r, newest := both(t)
				cfg, _ := personsConfig(t, r)
				cfg.What = what
				var calls []string
				cfg.Line = lineOf(&calls, cfg)
				var after ltx.TXID
				adopt := cfg.Line.Adopt
				cfg.Line.Adopt = func(file string, txid ltx.TXID) error { after = txid; return adopt(file, txid) }
				if err := c.restore(t, cfg); err != nil || count(t, cfg.Place.DBPath) != 3 {
					t.Fatal(err)
				}
				if !slices.Equal(calls, c.want) || after != newest {
					t.Errorf("%v after %s, want %v after %s", calls, after, c.want, newest)
				}
			})
		}
	}
	// Where 0.3 wrote all there is, no line of ours is there to end.
	r, _ := olderReplica(t)
	cfg := config(t, r)
	var calls []string
	cfg.Line = lineOf(&calls, cfg)
	if _, err := Run(t.Context(), cfg); err != nil || !slices.Equal(calls, []string{"adopt"}) {
		t.Errorf("without files of 0.5: %v, %v", calls, err)
	}
}

// This is why a new line begins there, which a snapshot has to follow: without it, a
// point in time after that would be restored from 0.3.
func TestPointInTimeAfterTheOlderFormat(t *testing.T) {
	r, newest := both(t)
	put := func(level int, from ltx.TXID) {
		t.Helper()
		name := r.LTXFilePath(level, from, newest+1)
		b, err := os.ReadFile(r.files(t, 0)[0]) // only the list counts here
		if err != nil {
			t.Fatal(err)
		}
		later := time.Now().Add(time.Minute)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, b, 0o600), os.Chtimes(name, later, later)); err != nil {
			t.Fatal(err)
		}
	}
	cfg := config(t, r)
	cfg.What.Timestamp = time.Now().Add(time.Hour)
	located := func() ltx.TXID {
		t.Helper()
		p, err := cfg.locate(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return p.txid // 0 of the older format
	}
	if put(0, newest+1); located() != 0 {
		t.Error("an upload is found without a snapshot: then none is needed")
	}
	if put(litestream.SnapshotLevel, 1); located() != newest+1 {
		t.Error("an upload with a snapshot is not found")
	}
}

// A point in time is never answered with what is older than what the replica had
// then, whether a file of that time is gone or all up to the upgrade.
func TestPointInTimeBehindAGap(t *testing.T) {
	ask := func(t *testing.T, r replica) error {
		t.Helper()
		cfg := config(t, r)
		cfg.Line = lineOf(&[]string{}, cfg)
		cfg.What.Timestamp = time.Now().Add(time.Hour)
		if _, err := Foresee(t.Context(), cfg); err == nil {
			t.Error("it was not foreseen")
		}
		out, err := Run(t.Context(), cfg)
		if err == nil {
			t.Errorf("%v, with %d rows", out.Action, count(t, cfg.Place.DBPath))
		}
		return err
	}
	r := filled(t, 90) // rows 0, then up to 20, 40, 60, 80, 89
	if err := os.Remove(r.files(t, 0)[3]); err != nil {
		t.Fatal(err)
	}
	if err := ask(t, r); err == nil || !strings.Contains(err.Error(), "has no file with transaction 0000000000000004") || !strings.Contains(err.Error(), "use that time as the timestamp") {
		t.Error(err)
	}
	// One that was merged is not missing: its time is only known less exactly.
	r = compacted(t, 90)
	whole := r.files(t, 1)[0]
	if err := os.Chtimes(whole, time.Now().Add(2*time.Hour), time.Now().Add(2*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(r.files(t, 0)[3]); err != nil {
		t.Fatal(err)
	}
	cfg := config(t, r)
	cfg.Line = lineOf(&[]string{}, cfg)
	cfg.What.Timestamp = time.Now().Add(time.Hour)
	if _, err := Run(t.Context(), cfg); err != nil || count(t, cfg.Place.DBPath) != 41 {
		t.Errorf("behind one that was merged: %v", err)
	}
	// After an upgrade, when the snapshot that today's format begins with is gone.
	before, _ := olderReplica(t)
	r = filled(t, 90)
	if err := os.Remove(r.files(t, 0)[0]); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(before.dir, "generations"), filepath.Join(r.dir, "generations")); err != nil {
		t.Fatal(err)
	}
	if err := ask(t, r); err == nil || !strings.Contains(err.Error(), "no snapshot that they continue") {
		t.Error(err)
	}
}
