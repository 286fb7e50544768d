package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/superfly/ltx"

	"github.com/slashacom/slasha-init/internal/wal"
)

// old puts a database and all that belongs to it at the path, and returns what
// the folder looks like.
func old(t *testing.T, cfg Config) map[string]string {
	t.Helper()
	for suffix, content := range map[string]string{"": "the old database", "-wal": "its wal", "-shm": "its shm"} {
		if err := os.WriteFile(cfg.Place.DBPath+suffix, []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	dir := wal.LitestreamDir(cfg.Place.DBPath)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "position"), []byte("7"), 0o644); err != nil {
		t.Fatal(err)
	}
	return tree(t, filepath.Dir(cfg.Place.DBPath), stateDir(cfg))
}

// tree reads all files below dir, but not those below except.
func tree(t *testing.T, dir, except string) map[string]string {
	t.Helper()
	files := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == except {
			return fs.SkipDir
		}
		if !d.IsDir() {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			files[strings.TrimPrefix(path, dir)] = string(b)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func asides(t *testing.T, cfg Config) []string {
	t.Helper()
	dir := filepath.Join(stateDir(cfg), "aside")
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, filepath.Join(dir, e.Name()))
	}
	return list
}

// A requested restore replaces the database once, and keeps the old one with all that
// belongs to it.
func TestForcedRestore(t *testing.T) {
	cfg := config(t, filled(t, 100))
	before := old(t, cfg)
	cfg.What.Request = Once("id 1")
	out, err := Run(t.Context(), cfg)
	if err != nil || out.Action != Restore || out.Progress.Reason != reasonPending || out.Aside == "" {
		t.Fatalf("%+v, %v", out, err)
	}
	if n := count(t, cfg.Place.DBPath); n != 100 {
		t.Errorf("%d rows", n)
	}
	if fi, err := os.Stat(cfg.Place.DBPath); err != nil || fi.Mode().Perm() != 0o640 {
		t.Errorf("the mode is not that of the old one: %v, %v", fi.Mode(), err)
	}
	if after := tree(t, out.Aside, ""); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("set aside: %v, not %v", after, before)
	}
	for name := range tree(t, filepath.Dir(cfg.Place.DBPath), stateDir(cfg)) {
		if name != "/app.db" {
			t.Errorf("left beside the new one: %s", name)
		}
	}

	// The app writes. A restart must not restore again, but a new request must.
	mark := func(text string) {
		if err := os.WriteFile(cfg.Place.DBPath, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	mark("written by the app")
	if out, err := Run(t.Context(), cfg); err != nil || out.Action != Start {
		t.Fatalf("again: %+v, %v", out, err)
	}
	for n := 2; n <= 4; n++ {
		cfg.What.Request = Once(fmt.Sprintf("id %d", n))
		if out, err := Run(t.Context(), cfg); err != nil || out.Action != Restore {
			t.Fatalf("request %d: %+v, %v", n, out, err)
		}
		mark(fmt.Sprintf("after request %d", n))
	}
	// The newest two are kept.
	list := asides(t, cfg)
	if len(list) != asidesKept {
		t.Fatalf("kept: %v", list)
	}
	for i, want := range []string{"after request 2", "after request 3"} {
		if b, err := os.ReadFile(filepath.Join(list[i], "app.db")); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", list[i], b, err)
		}
	}
}

// A restore that is forced is made each time, and the request that was carried
// out before stays so: a restart must not repeat it.
func TestForceLeavesTheRequestsAlone(t *testing.T) {
	cfg := config(t, filled(t, 10))
	old(t, cfg)
	cfg.What.Request = Once("id 1")
	if out, err := Run(t.Context(), cfg); err != nil || out.Action != Restore {
		t.Fatalf("%+v, %v", out, err)
	}
	for range 2 {
		forced := cfg
		forced.What.Request = Now()
		if out, err := Run(t.Context(), forced); err != nil || out.Action != Restore || out.Aside == "" {
			t.Fatalf("forced: %+v, %v", out, err)
		}
		if out, err := Run(t.Context(), cfg); err != nil || out.Action != Start {
			t.Fatalf("the restart after it: %+v, %v", out, err)
		}
	}
}

// crash is what a test panics with in the place of a kill.
type crash struct{}

// After a kill at any step of the exchange, the next start finds the old database
// whole or the new one whole, ends what was begun, and does not do it twice.
func TestCrashDuringTheExchange(t *testing.T) {
	source := filled(t, 50)
	var steps []string
	for at := 0; ; at++ {
		cfg := config(t, source)
		before := old(t, cfg)
		cfg.What.Request = Once("id 1")
		n, crashed := 0, false
		cfg.onStep = func(step string) {
			if n++; n == at+1 {
				steps = append(steps, step)
				panic(crash{})
			}
		}
		func() {
			defer func() {
				if p := recover(); p != nil {
					if _, ok := p.(crash); !ok {
						panic(p)
					}
					crashed = true
				}
			}()
			if _, err := Run(t.Context(), cfg); err != nil {
				t.Fatal(err)
			}
		}()
		if !crashed {
			break
		}
		where := steps[len(steps)-1]
		cfg.onStep = nil

		// A start that asks for nothing puts things right and touches nothing else.
		plain := cfg
		plain.What.Request = Request{}
		if out, err := Run(t.Context(), plain); err != nil || out.Action != Start {
			t.Fatalf("%s: %+v, %v", where, out, err)
		}
		switch after := tree(t, filepath.Dir(cfg.Place.DBPath), stateDir(cfg)); {
		case where == "in place":
			if n := count(t, cfg.Place.DBPath); n != 50 {
				t.Errorf("%s: %d rows", where, n)
			}
			if out, err := Run(t.Context(), cfg); err != nil || out.Action != Start {
				t.Errorf("%s: restored again: %+v, %v", where, out, err)
			}
		case fmt.Sprint(after) != fmt.Sprint(before):
			t.Errorf("%s: the old database is not as it was: %v", where, after)
		case len(asides(t, cfg)) != 0:
			t.Errorf("%s: litter: %v", where, asides(t, cfg))
		default:
			// And the same request is still to be carried out.
			if out, err := Run(t.Context(), cfg); err != nil || out.Action != Restore || count(t, cfg.Place.DBPath) != 50 {
				t.Errorf("%s: %+v, %v", where, out, err)
			}
		}
	}
	if len(steps) < 6 {
		t.Errorf("only %d steps: %v", len(steps), steps)
	}
	t.Logf("crashed at %v", steps)
}

// A file system without second names has no file at the path for a moment. A
// crash in it must not look like a missing database.
func TestCrashWithoutASecondName(t *testing.T) {
	cfg := config(t, filled(t, 20))
	before := old(t, cfg)
	cfg.What.Request = Once("id 1")
	cfg.onStep = func(step string) {
		if step == "kept the old one" {
			if err := os.Remove(cfg.Place.DBPath); err != nil {
				t.Error(err)
			}
			panic(crash{})
		}
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("no crash")
			}
		}()
		_, _ = Run(t.Context(), cfg)
	}()
	cfg.onStep, cfg.What.Request = nil, Request{}
	if out, err := Run(t.Context(), cfg); err != nil || out.Action != Start {
		t.Fatalf("%+v, %v", out, err)
	}
	if after := tree(t, filepath.Dir(cfg.Place.DBPath), stateDir(cfg)); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("%v, not %v", after, before)
	}
}

// Where a restore can't be made, the old database is byte for byte as it was.
func TestForcedRestoreThatFails(t *testing.T) {
	for name, spoil := range map[string]func(*testing.T, *Config){
		"nothing there": func(t *testing.T, cfg *Config) { cfg.Source.Client = replica{filled(t, 1).ReplicaClient, t.TempDir()} },
		"damaged": func(t *testing.T, cfg *Config) {
			files, err := filepath.Glob(filepath.Join(cfg.Source.Client.(replica).dir, "ltx", "0", "*.ltx"))
			if err != nil || len(files) == 0 {
				t.Fatal(files, err)
			}
			if err := os.Truncate(files[0], 200); err != nil {
				t.Fatal(err)
			}
		},
		"a link": func(t *testing.T, cfg *Config) {
			real := cfg.Place.DBPath + ".real"
			if err := os.Rename(cfg.Place.DBPath, real); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(real, cfg.Place.DBPath); err != nil {
				t.Fatal(err)
			}
		},
		"the restored file vanishes": func(_ *testing.T, cfg *Config) {
			c := *cfg
			cfg.onStep = func(step string) {
				if step == "kept the old one" {
					_ = os.RemoveAll(c.Place.Scratch)
				}
			}
		},
		"the ledger is damaged": func(t *testing.T, cfg *Config) {
			if err := os.MkdirAll(stateDir(*cfg), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(cfg.Place.Ledger.Path(), []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config(t, filled(t, 20))
			old(t, cfg)
			spoil(t, &cfg)
			before := tree(t, filepath.Dir(cfg.Place.DBPath), stateDir(cfg))
			cfg.What.Request = Once("id 1")
			if out, err := Run(t.Context(), cfg); err == nil {
				t.Fatalf("%+v", out)
			} else {
				t.Log(err)
			}
			if after := tree(t, filepath.Dir(cfg.Place.DBPath), stateDir(cfg)); fmt.Sprint(after) != fmt.Sprint(before) {
				t.Errorf("%v, not %v", after, before)
			}
			if list := asides(t, cfg); len(list) != 0 {
				t.Errorf("litter: %v", list)
			}
		})
	}
}

// A request that comes with a missing database is carried out by the restore
// that is due anyway, and not once more after the app has written.
func TestRequestWithAMissingDatabase(t *testing.T) {
	cfg := config(t, filled(t, 30))
	cfg.What.Request = Once("id 1")
	if out, err := Run(t.Context(), cfg); err != nil || out.Action != Restore || count(t, cfg.Place.DBPath) != 30 {
		t.Fatalf("%+v, %v", out, err)
	}
	if out, err := Run(t.Context(), cfg); err != nil || out.Action != Start {
		t.Errorf("again: %+v, %v", out, err)
	}
}

// stopping ends the context when the first file of the restore is opened, and
// not just its header.
type stopping struct {
	Client
	cancel context.CancelFunc
}

func (s stopping) OpenLTXFile(ctx context.Context, level int, minTXID, maxTXID ltx.TXID, offset, size int64) (io.ReadCloser, error) {
	if size != ltx.HeaderSize {
		s.cancel()
		return nil, ctx.Err()
	}
	return s.Client.OpenLTXFile(ctx, level, minTXID, maxTXID, offset, size)
}

// A stop in the middle of a requested restore changes nothing.
func TestStopDuringAForcedRestore(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cfg := config(t, stopping{filled(t, 30), cancel})
	before := old(t, cfg)
	cfg.What.Request = Once("id 1")
	if out, err := Run(ctx, cfg); !errors.Is(err, context.Canceled) {
		t.Fatalf("%+v, %v", out, err)
	}
	if after := tree(t, filepath.Dir(cfg.Place.DBPath), stateDir(cfg)); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("%v, not %v", after, before)
	}
	if list := asides(t, cfg); len(list) != 0 {
		t.Errorf("litter: %v", list)
	}
}

// The databases that were set aside for another path are not ours to remove, even if
// our path would match them as a glob pattern.
func TestPruneTakesThePathAsItIs(t *testing.T) {
	dir := t.TempDir()
	make3 := func(name string) Config {
		cfg := Config{Place: place(filepath.Join(dir, name)), Logger: slog.New(slog.DiscardHandler)}
		for n := range 3 {
			aside := filepath.Join(stateDir(cfg), "aside", fmt.Sprintf("%d", n))
			if err := os.MkdirAll(aside, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(aside, "app.db"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return cfg
	}
	ours, other := make3("[ab]"), make3("a")
	pruneAside(ours, "")
	if n, m := len(asides(t, other)), len(asides(t, ours)); n != 3 || m != asidesKept {
		t.Errorf("%d of the other's 3 are left, and %d of ours", n, m)
	}
}

// A request stays carried out when others have come after it.
func TestRequestsAreRemembered(t *testing.T) {
	cfg := config(t, filled(t, 5))
	old(t, cfg)
	restored := func(request string) bool {
		t.Helper()
		cfg.What.Request = Once(request)
		out, err := Run(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		return out.Restored
	}
	for _, request := range []string{"a", "b", "c"} {
		if !restored(request) {
			t.Errorf("%s was not carried out", request)
		}
	}
	for _, request := range []string{"a", "c", "b", "a"} {
		if restored(request) {
			t.Errorf("%s was repeated", request)
		}
	}
	var l ledger
	for n := range 3 * requestsKept {
		l.add(carriedOut{Request: fmt.Sprint(n)})
	}
	if len(l.Earlier) != requestsKept || !l.has(fmt.Sprint(3*requestsKept-1)) || !l.has(fmt.Sprint(2*requestsKept)) {
		t.Errorf("%d are remembered", len(l.Earlier))
	}
}

// The database that was just set aside is kept, and counts as the newest, even if the
// clock was set back since others were set aside.
func TestSetAsideWithAClockSetBack(t *testing.T) {
	cfg := config(t, filled(t, 5))
	for _, day := range []string{"01", "02"} {
		dir := filepath.Join(cfg.Place.Aside, "210001"+day+"T000000.000000Z")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "app.db"), []byte("an older one"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	old(t, cfg)
	cfg.What.Request = Now()
	for range 2 {
		out, err := Run(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		left := asides(t, cfg)
		if len(left) != asidesKept || left[len(left)-1] != out.Aside {
			t.Errorf("%s was set aside, and there are %v", out.Aside, left)
		}
	}
}

// If only the last note can't be written, the restored database is in place all the
// same, and is reported to be.
func TestInPlaceAndNotNoted(t *testing.T) {
	cfg := config(t, filled(t, 5))
	old(t, cfg)
	cfg.What.Request = Once("id 1")
	blocked := filepath.Join(stateDir(cfg), "restored.json.tmp", "in the way")
	cfg.onStep = func(step string) {
		if step == "in place" {
			if err := os.MkdirAll(blocked, 0o700); err != nil {
				t.Fatal(err)
			}
		}
	}
	out, err := Run(t.Context(), cfg)
	if err != nil || !out.Restored || out.Aside == "" || count(t, cfg.Place.DBPath) != 5 {
		t.Fatalf("%+v, %v", out, err)
	}
	if l, err := readLedger(cfg.Place); err != nil || l.Swap == nil {
		t.Fatalf("it was noted after all: %+v, %v", l, err)
	}
	// A follower may use what is there.
	if Interrupted(cfg.Place) {
		t.Error("the new database counts as half there")
	}
	if err := os.RemoveAll(filepath.Dir(blocked)); err != nil {
		t.Fatal(err)
	}
	cfg.onStep = nil
	if out, err := Run(t.Context(), cfg); err != nil || out.Action != Start {
		t.Errorf("the next start: %+v, %v", out, err)
	}
	if l, err := readLedger(cfg.Place); err != nil || l.Swap != nil || !l.has("id 1") {
		t.Errorf("the next start has noted %+v, %v", l, err)
	}
}
