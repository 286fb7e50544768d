package restore

import (
	"bytes"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/benbjohnson/litestream"
	"github.com/benbjohnson/litestream/file"
)

// damages is how many seeds the test goes through.
const damages = 1000

// Bytes flipped, cut or missing anywhere in the replica end in the right
// database, or in a refusal that leaves the old one as it was.
func TestDamage(t *testing.T) {
	source := filled(t, 90)
	// Files of every kind: small ones, and what they were merged into.
	if _, err := litestream.NewCompactor(source, slog.New(slog.DiscardHandler)).Compact(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	content := make(map[string][]byte)
	var names []string
	err := filepath.WalkDir(source.dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			var b []byte
			if b, err = os.ReadFile(path); err == nil {
				name := strings.TrimPrefix(path, source.dir)
				names, content[name] = append(names, name), b
			}
		}
		return err
	})
	if err != nil || len(names) < 4 {
		t.Fatalf("%d files, %v", len(names), err)
	}
	right, refused := 0, 0
	for seed := range uint64(damages) {
		random := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // not for secrets
		// Where both kinds are there, one stands in for the other.
		there := slices.DeleteFunc(slices.Clone(names), func(name string) bool {
			small := strings.HasPrefix(name, "/ltx/0/")
			return seed%3 == 1 && small || seed%3 == 2 && !small
		})
		name := there[random.IntN(len(there))]
		b := bytes.Clone(content[name])
		how := "flipped"
		switch at := random.IntN(len(b)); random.IntN(4) {
		case 0:
			b, how = b[:at], "cut"
		case 1:
			b, how = append(b[:at:at], b[min(at+1+random.IntN(50), len(b)):]...), "shortened"
		default:
			b[at] ^= byte(1 + random.IntN(255))
		}
		dir := t.TempDir()
		for _, other := range there {
			whole := content[other]
			if other == name {
				whole = b
			}
			if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, other)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, other), whole, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		cfg := config(t, replica{file.NewReplicaClient(dir), dir})
		cfg.What.Request = Once("id 1")
		before := old(t, cfg)
		_, err := Run(t.Context(), cfg)
		if err == nil {
			right++
			if n := count(t, cfg.Place.DBPath); n != 90 {
				t.Fatalf("seed %d, %s %s: %d rows, and no error", seed, name, how, n)
			}
			continue
		}
		refused++
		if after := tree(t, filepath.Dir(cfg.Place.DBPath), stateDir(cfg)); fmt.Sprint(after) != fmt.Sprint(before) {
			t.Fatalf("seed %d, %s %s: the old database is not as it was after %v", seed, name, how, err)
		}
	}
	t.Logf("%d right, %d refused", right, refused)
	if right < damages/5 || refused < damages/5 {
		t.Error("one of the two hardly happened: the test shows little")
	}
}
