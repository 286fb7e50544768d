package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/benbjohnson/litestream"
	"github.com/superfly/ltx"

	"github.com/slashacom/slasha-init/internal/exit"
)

// compacted is a replica with small files, and the same compacted.
func compacted(t *testing.T, rows int) replica {
	t.Helper()
	r := filled(t, rows)
	if _, err := litestream.NewCompactor(r, slog.New(slog.DiscardHandler)).Compact(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r replica) files(t *testing.T, level int) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(r.dir, "ltx", fmt.Sprint(level), "*.ltx"))
	if err != nil || len(names) == 0 {
		t.Fatalf("level %d: %v, %v", level, names, err)
	}
	return names
}

// flip damages a file in its middle and keeps its time, by which Litestream goes.
func flip(t *testing.T, name string) {
	t.Helper()
	fi, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(name, fi.ModTime(), fi.ModTime()); err != nil {
		t.Fatal(err)
	}
}

// What a damaged file held is taken from others, when they hold the same.
func TestAroundADamagedFile(t *testing.T) {
	r := compacted(t, 90)
	flip(t, r.files(t, 1)[0])
	cfg := config(t, r)
	if _, err := Run(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if n := count(t, cfg.Place.DBPath); n != 90 {
		t.Errorf("%d rows", n)
	}
}

// Where they don't, the error names the file and offers the newest state that is
// whole. That state is restored only when somebody asks for it, and then it is there.
func TestOfferOfAnOlderState(t *testing.T) {
	for name, harm := range map[string]func(t *testing.T, name string){
		"damaged": flip,
		"removed": func(t *testing.T, name string) {
			if err := os.Remove(name); err != nil {
				t.Fatal(err)
			}
		},
	} {
		r := filled(t, 90) // rows 0, then up to 20, 40, 60, 80, 89
		small := r.files(t, 0)
		harm(t, small[3])
		cfg := config(t, r)
		cfg.What.Request = Once("id 1")
		before := old(t, cfg)
		_, err := Run(t.Context(), cfg)
		if err == nil {
			t.Fatalf("%s: taken unasked, with %d rows", name, count(t, cfg.Place.DBPath))
		}
		if after := tree(t, filepath.Dir(cfg.Place.DBPath), stateDir(cfg)); fmt.Sprint(after) != fmt.Sprint(before) {
			t.Errorf("%s: the old database is not as it was", name)
		}
		if name == "damaged" && !strings.Contains(err.Error(), "0000/"+filepath.Base(small[3])) {
			t.Errorf("the file is not named: %v", err)
		}
		offer := regexp.MustCompile(`\d{4}-\d\d-\d\dT[0-9:.]+Z`).FindString(err.Error())
		if cfg.What.Timestamp, err = time.Parse(time.RFC3339Nano, offer); err != nil {
			t.Fatalf("%s: no offer: %v", name, err)
		}
		// The old line is sealed, the new one noted, and then the database adopted,
		// each before the swap.
		var calls []string
		cfg.Line = lineOf(&calls, cfg)
		out, err := Run(t.Context(), cfg)
		if err != nil {
			t.Fatalf("%s: the offer does not hold: %+v, %v", name, out, err)
		}
		if want := []string{"seal", "begin", "adopt"}; !slices.Equal(calls, want) {
			t.Errorf("%s: before the swap: %v, want %v", name, calls, want)
		}
		if n := count(t, cfg.Place.DBPath); n != 41 {
			t.Errorf("%s: %d rows, want those of the first three files", name, n)
		}
		// A restart begins no line.
		if _, err := Run(t.Context(), cfg); err != nil || len(calls) != 3 {
			t.Errorf("%s: after a restart: %v, %v", name, calls, err)
		}
	}
}

// lineOf is a line that notes which of its steps come before the swap.
func lineOf(calls *[]string, cfg Config) Line {
	before, _ := os.Stat(cfg.Place.DBPath)
	note := func(step string) {
		if now, _ := os.Stat(cfg.Place.DBPath); os.SameFile(before, now) || before == nil && now == nil {
			*calls = append(*calls, step)
		}
	}
	return Line{
		Seal:  func(context.Context) error { note("seal"); return nil },
		Begin: func() error { note("begin"); return nil },
		Adopt: func(string, ltx.TXID) error { note("adopt"); return nil },
	}
}

// If the old line can't be kept, or the new one can't be noted, the database stays as
// it is.
func TestALineThatCannotBeginAnew(t *testing.T) {
	r := filled(t, 90)
	newest, err := config(t, r).locate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	for want, spoil := range map[string]func(*Line){
		"cannot keep what is newer than the point in time: explained": func(l *Line) { l.Seal = func(context.Context) error { return broken } },
		"cannot note that a new line begins: broken":                  func(l *Line) { l.Begin = func() error { return broken } },
		"broken": func(l *Line) { l.Adopt = func(string, ltx.TXID) error { return broken } },
	} {
		cfg := config(t, r)
		before := old(t, cfg)
		cfg.What = What{Request: Once("id 1"), TXID: newest.txid - 1}
		cfg.Source.Explain = func(error) (string, bool) { return "explained", false }
		cfg.Line = lineOf(&[]string{}, cfg)
		spoil(&cfg.Line)
		out, err := Run(t.Context(), cfg)
		if err == nil || err.Error() != want || !errors.Is(err, broken) || exit.Code(err) != exit.Restore || out.Restored {
			t.Errorf("%+v, %v, want %s", out, err, want)
		}
		if after := tree(t, filepath.Dir(cfg.Place.DBPath), stateDir(cfg)); !equal(before, after) {
			t.Errorf("%s: %v, not %v", want, after, before)
		}
		if !IsDue(cfg.Place, cfg.What.Request) {
			t.Errorf("%s: the request counts as carried out", want)
		}
	}
}

// compacting merges the small files, and deletes them, when the restore has begun
// to read.
type compacting struct {
	replica
	t    *testing.T
	once *sync.Once
}

func (c compacting) OpenLTXFile(ctx context.Context, level int, minTXID, maxTXID ltx.TXID, offset, size int64) (io.ReadCloser, error) {
	if size != ltx.HeaderSize {
		c.once.Do(func() {
			if _, err := litestream.NewCompactor(c.replica, slog.New(slog.DiscardHandler)).Compact(ctx, 1); err != nil {
				c.t.Error(err)
			}
			for _, name := range c.files(c.t, 0) {
				if err := os.Remove(name); err != nil {
					c.t.Error(err)
				}
			}
		})
	}
	return c.replica.OpenLTXFile(ctx, level, minTXID, maxTXID, offset, size)
}

// A compaction that deletes the plan's files half way makes another plan.
func TestCompactionDuringARestore(t *testing.T) {
	r, once := filled(t, 90), &sync.Once{}
	cfg := config(t, compacting{r, t, once})
	if out, err := Run(t.Context(), cfg); err != nil {
		t.Fatalf("%+v, %v", out, err)
	}
	once.Do(func() { t.Error("there was no compaction: the test shows nothing") })
	if n := count(t, cfg.Place.DBPath); n != 90 {
		t.Errorf("%d rows", n)
	}
}

// killed is the panic of a kill.
type killed struct{ at string }

// A restore of a missing database that is killed anywhere succeeds when it is begun
// again, and leaves nothing over.
func TestKillDuringARestoreOfAMissingDatabase(t *testing.T) {
	r := compacted(t, 50)
	var steps []string
	{
		cfg := config(t, &tripwire{replica: r, step: func(s string) { steps = append(steps, s) }})
		cfg.onStep = func(s string) { steps = append(steps, s) }
		if _, err := Run(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
	}
	if len(steps) < 3 {
		t.Fatalf("steps: %v", steps)
	}
	random := rand.New(rand.NewPCG(1, 1)) //nolint:gosec // not for secrets
	for at, name := range steps {
		n := 0
		step := func(string) {
			if n++; n == at+1 {
				panic(killed{name})
			}
		}
		cfg := config(t, r)
		if random.IntN(2) == 0 { // with something of an earlier try
			if err := os.MkdirAll(cfg.Place.Scratch, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(cfg.Place.Scratch, "app.db"), []byte("half"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		func() {
			defer func() {
				if _, ok := recover().(killed); !ok {
					t.Errorf("step %d, %s, was not reached", at, name)
				}
			}()
			dying := cfg
			dying.Source.Client, dying.onStep = &tripwire{replica: r, step: step}, step
			_, _ = Run(t.Context(), dying)
		}()
		if _, err := Run(t.Context(), cfg); err != nil {
			t.Errorf("after a kill at %s: %v", name, err)
			continue
		}
		if n := count(t, cfg.Place.DBPath); n != 50 {
			t.Errorf("after a kill at %s: %d rows", name, n)
		}
		for name := range tree(t, filepath.Dir(cfg.Place.DBPath), "") {
			if name != "/app.db" {
				t.Errorf("litter after a kill at %s: %s", steps[at], name)
			}
		}
	}
}

// tripwire calls step in the goroutine of Run, when the replica is first asked.
type tripwire struct {
	replica
	step func(string)
}

func (w *tripwire) Empty(ctx context.Context) (bool, error) {
	w.step("asked the replica")
	return w.replica.Empty(ctx)
}
