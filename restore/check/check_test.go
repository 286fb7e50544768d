package check

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mattn/go-sqlite3"
)

// shape is a kind of database.
type shape struct {
	name   string
	before string // pragmas of a database that has no tables yet
	fill   []string
}

// rows is a query of so many rows, x.
func rows(n int) string {
	return fmt.Sprintf("WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c WHERE x < %d) ", n)
}

var shapes = []shape{
	{"one table with an index", "", []string{
		"CREATE TABLE t (n INTEGER PRIMARY KEY, k INTEGER, s TEXT)", "CREATE INDEX i ON t (k)",
		rows(20_000) + "INSERT INTO t SELECT x, x * 7919 % 20011, hex(randomblob(50)) FROM c",
	}},
	{"pages of 512 bytes", "PRAGMA page_size = 512", []string{
		"CREATE TABLE t (n INTEGER PRIMARY KEY, s TEXT)",
		rows(3000) + "INSERT INTO t SELECT x, hex(randomblob(50)) FROM c",
	}},
	{"pages of 64 KiB", "PRAGMA page_size = 65536", []string{
		"CREATE TABLE t (n INTEGER PRIMARY KEY, s TEXT)",
		rows(30_000) + "INSERT INTO t SELECT x, hex(randomblob(50)) FROM c",
	}},
	{"tables that grew together", "", []string{
		"CREATE TABLE a (s TEXT)", "CREATE TABLE b (k TEXT PRIMARY KEY) WITHOUT ROWID",
		"CREATE TRIGGER t AFTER INSERT ON a BEGIN INSERT INTO b VALUES (hex(randomblob(20))); END",
		rows(10_000) + "INSERT INTO a SELECT hex(randomblob(100)) FROM c",
	}},
	{"large rows, holes, and a map of pages", "PRAGMA auto_vacuum = incremental", []string{
		"CREATE TABLE t (n INTEGER PRIMARY KEY, b BLOB)",
		rows(300) + "INSERT INTO t SELECT x, randomblob(x * 100) FROM c",
		"DELETE FROM t WHERE n % 3 = 0",
	}},
	{"nothing but a table", "", []string{"CREATE TABLE t (n)"}},
}

// open opens a database as everybody does.
func open(t testing.TB, path string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite3", (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath()}).String())
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	return db
}

func (s shape) write(t testing.TB, path string) {
	t.Helper()
	db := open(t, path)
	for _, stmt := range append([]string{s.before}, s.fill...) {
		if _, err := db.Exec(stmt); err != nil {
			t.Fatalf("%s: %v", stmt, err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// bySQLite is what SQLite says when it reads a file in its own way.
func bySQLite(t testing.TB, path string, kind Kind) (finding string) {
	t.Helper()
	db := open(t, path)
	defer func() { _ = db.Close() }()
	if err := db.QueryRow("PRAGMA " + kind.pragma() + "(1)").Scan(&finding); err != nil {
		return err.Error()
	}
	return finding
}

// A sound database of any shape is found sound, and nothing is left beside it.
func TestSound(t *testing.T) {
	for _, s := range shapes {
		t.Run(s.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "odd name?#%.db")
			s.write(t, path)
			for _, kind := range []Kind{Quick, Full, Off} {
				var rests int
				if err := File(t.Context(), path, Config{Kind: kind}); err != nil {
					t.Errorf("%s: %v", kind.pragma(), err)
				}
				if err := File(t.Context(), path, Config{Kind: kind, Rest: func() { rests++ }}); err != nil {
					t.Errorf("%s, with rests: %v", kind.pragma(), err)
				}
				if (rests == 0) != (kind == Off) {
					t.Errorf("%s: rested %d times", kind.pragma(), rests)
				}
			}
			if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
				t.Errorf("left beside it: %v, %v", left, err)
			}
		})
	}
}

// Pages that lie side by side are read many at a time. That makes the check fast, and
// no other test would fail without it.
func TestManyPagesAtATime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	shapes[0].write(t, path)
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	reads := 0
	if err := File(t.Context(), path, Config{Rest: func() { reads++ }}); err != nil {
		t.Fatal(err)
	}
	// Each page of the table is looked at twice, and those of the index lie anywhere.
	if pages := int(fi.Size() / 4096); reads > pages/2 {
		t.Errorf("%d reads for %d pages", reads, pages)
	}
}

// Whatever is wrong with a file, SQLite finds it through our reads as well as through
// its own, and nothing beyond it.
func TestDamaged(t *testing.T) {
	for i, s := range shapes {
		t.Run(s.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "x.db")
			s.write(t, path)
			whole, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			found := 0
			for seed := range uint64(100) {
				random := rand.New(rand.NewPCG(seed, uint64(i)))
				b := append([]byte(nil), whole...)
				what := damage(random, &b)
				if err := os.WriteFile(path, b, 0o600); err != nil {
					t.Fatal(err)
				}
				kind := []Kind{Quick, Full}[seed%2]
				want := bySQLite(t, path, kind)
				var damaged *DamagedError
				switch err := File(t.Context(), path, Config{Kind: kind}); {
				case err != nil && !errors.As(err, &damaged):
					t.Errorf("seed %d, %s: %v", seed, what, err)
				case (err == nil) != (want == "ok"):
					t.Errorf("seed %d, %s: %v, and SQLite alone says %s", seed, what, err, want)
				case err != nil:
					found++
				}
			}
			if found == 0 {
				t.Error("no damage was found at all")
			}
		})
	}
}

// damage changes some bytes, or takes some away.
func damage(random *rand.Rand, b *[]byte) (what string) {
	at := random.IntN(len(*b))
	switch random.IntN(4) {
	case 0:
		(*b)[at] ^= 1 << random.IntN(8)
		return fmt.Sprintf("a bit of byte %d", at)
	case 1:
		for i := at; i < min(at+100, len(*b)); i++ {
			(*b)[i] = byte(random.Uint32())
		}
		return fmt.Sprintf("100 bytes from %d", at)
	case 2: // where the pages' own accounts are
		at = at / 512 * 512
		for i := at; i < min(at+12, len(*b)); i++ {
			(*b)[i] = byte(random.Uint32())
		}
		return fmt.Sprintf("the 12 bytes at %d", at)
	default:
		*b = (*b)[:at]
		return fmt.Sprintf("cut at %d", at)
	}
}

// What each check finds: an index that does not match its table is found by the
// full one alone.
func TestKinds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	shapes[0].write(t, path)
	writeWithoutIndex(t, path)
	var damaged *DamagedError
	if err := File(t.Context(), path, Config{Kind: Full}); !errors.As(err, &damaged) {
		t.Errorf("the full check: %v", err)
	}
	if err := File(t.Context(), path, Config{}); err != nil {
		t.Errorf("the quick check: %v", err)
	}
}

// writeWithoutIndex changes a row while the table's index is not in the schema, so that
// the index does not match. The quick check only counts the index's entries.
func writeWithoutIndex(t *testing.T, path string) {
	t.Helper()
	do := func(f func(*sql.DB) error) {
		t.Helper()
		db := open(t, path)
		_, err := db.Exec("PRAGMA writable_schema=ON")
		if err := errors.Join(err, f(db), db.Close()); err != nil {
			t.Fatal(err)
		}
	}
	var root int
	var stmt string
	do(func(db *sql.DB) error {
		err := db.QueryRow("SELECT rootpage, sql FROM sqlite_schema WHERE name = 'i'").Scan(&root, &stmt)
		if err == nil {
			_, err = db.Exec("DELETE FROM sqlite_schema WHERE name = 'i'")
		}
		return err
	})
	do(func(db *sql.DB) error {
		_, err := db.Exec("UPDATE t SET k = -1 WHERE n = 7")
		return err
	})
	do(func(db *sql.DB) error {
		_, err := db.Exec("INSERT INTO sqlite_schema (type, name, tbl_name, rootpage, sql) VALUES ('index', 'i', 't', ?, ?)", root, stmt)
		return err
	})
}

// A check ends with its context, and returns the context's error.
func TestToldToEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	shapes[0].write(t, path)
	ctx, cancel := context.WithCancel(t.Context())
	if err := File(ctx, path, Config{Rest: cancel}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// A file that is not a database is damaged. One that can't be opened is another matter.
func TestNoDatabase(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"text": strings.Repeat("no database ", 1000), "empty": ""} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		var damaged *DamagedError
		if err := File(t.Context(), path, Config{}); !errors.As(err, &damaged) {
			t.Errorf("%s: %v", path, err)
		}
	}
	for _, path := range []string{dir, filepath.Join(dir, "missing")} {
		var damaged *DamagedError
		if err := File(t.Context(), path, Config{}); err == nil || errors.As(err, &damaged) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func init() {
	sql.Register("sqlite3 of an app", &sqlite3.SQLiteDriver{ConnectHook: func(c *sqlite3.SQLiteConn) error {
		return errors.Join(
			c.RegisterCollation("backwards", func(a, b string) int { return strings.Compare(b, a) }),
			c.RegisterFunc("shout", strings.ToUpper, true))
	}})
}

// A schema may need what only the app has. Its tables are not damaged for that, and
// damage in the others is found all the same.
func TestWhatOnlyTheAppKnows(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	db, err := sql.Open("sqlite3 of an app", path)
	if err != nil {
		t.Fatal(err)
	}
	for _, stmt := range []string{
		"CREATE TABLE names (n TEXT COLLATE backwards UNIQUE)",
		"CREATE TABLE loud (s TEXT, l TEXT NOT NULL GENERATED ALWAYS AS (shout(s)) VIRTUAL)",
		"CREATE TABLE sound (n INTEGER PRIMARY KEY, s TEXT)", "CREATE TABLE gone (s TEXT)",
		rows(500) + "INSERT INTO names SELECT x FROM c", rows(500) + "INSERT INTO loud (s) SELECT x FROM c",
		rows(2000) + "INSERT INTO sound SELECT x, hex(randomblob(50)) FROM c",
		rows(2000) + "INSERT INTO gone SELECT hex(randomblob(50)) FROM c", "DROP TABLE gone", // leaves free pages
	} {
		if _, err := db.Exec(stmt); err != nil {
			t.Fatalf("%s: %v", stmt, err)
		}
	}
	var root int
	if err := db.QueryRow("SELECT rootpage FROM sqlite_schema WHERE name = 'sound'").Scan(&root); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	unknown := func(kind Kind) ([]string, error) {
		var tables []string
		err := File(t.Context(), path, Config{Kind: kind, OnUnknown: func(table string, err error) {
			tables = append(tables, table)
			if err == nil {
				t.Errorf("%s: no reason", table)
			}
		}})
		return tables, err
	}
	for _, kind := range []Kind{Quick, Full} {
		if tables, err := unknown(kind); err != nil || fmt.Sprint(tables) != "[names loud]" {
			t.Errorf("%s: %v, unknown %v", kind.pragma(), err, tables)
		}
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const pageSize = 4096
	for name, at := range map[string]int{"a table": (root-1)*pageSize + 1, "the number of free pages": 39, "the schema": 101} {
		b := append([]byte(nil), whole...)
		b[at] ^= 0x7f
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		var damaged *DamagedError
		if _, err := unknown(Quick); !errors.As(err, &damaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Several at a time don't disturb one another.
func TestSideBySide(t *testing.T) {
	for n := range 4 {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "x.db")
			shapes[n%len(shapes)].write(t, path)
			for range 5 {
				if err := File(t.Context(), path, Config{Rest: func() {}}); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
