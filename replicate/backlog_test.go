package replicate

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/benbjohnson/litestream"
)

// The backlog may take as much room as the database, or the least that is always kept,
// and no more.
func TestTooMuch(t *testing.T) {
	for name, c := range map[string]struct {
		database, backlog int64
		want              bool
	}{
		"little":                     {1 << 20, 2 << 20, false},
		"the least":                  {1 << 20, leastBacklog, false},
		"more than the least":        {1 << 20, leastBacklog + 1, true},
		"as much as a large one":     {1 << 30, 1 << 30, false},
		"more than a large database": {1 << 30, 1<<30 + 1, true},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "app.db")
			line := &noted{}
			s := &session{cfg: Config{DBPath: path, Line: line}, db: litestream.NewDB(path)}
			sparse(t, path, c.database)
			if err := os.MkdirAll(s.db.LTXLevelDir(0), 0o755); err != nil {
				t.Fatal(err)
			}
			sparse(t, s.db.LTXPath(0, 1, 1), c.backlog/2)
			sparse(t, s.db.LTXPath(0, 2, 2), c.backlog-c.backlog/2)
			if got := s.tooMuch(); (got != "") != c.want {
				t.Errorf("says %q", got)
			}
			// What the replica has does not count.
			line.Uploaded(1)
			if got := s.tooMuch(); got != "" {
				t.Errorf("with half of it in the replica it says %q", got)
			}
		})
	}
}

// sparse makes a file that takes no room.
func sparse(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}
