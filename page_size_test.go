package main_test

import (
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slashacom/slasha-init/healthz"
	"github.com/slashacom/slasha-init/internal/testbed"
)

// A new page size: what was uploaded before can't be merged with what follows, and
// a restore that begins with an older snapshot would fail. So the old line is
// closed, and a snapshot is uploaded with the first change.
func TestAChangedPageSize(t *testing.T) {
	h := newHosts(t, "a", "b")
	h.write("a", 200, 0)
	db, err := sql.Open("sqlite3", "file:"+h.volume["a"])
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range []string{"PRAGMA journal_mode=DELETE", "PRAGMA page_size=8192", "VACUUM", "PRAGMA journal_mode=WAL"} {
		if _, err := db.Exec(change); err != nil {
			t.Fatalf("%s: %v", change, err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if said := h.write("a", 100, 0); !strings.Contains(said, "page size has changed") {
		t.Errorf("it is not told: %s", said)
	}
	if n := h.replicated(); n != 300 {
		t.Errorf("the official command restores %d entries, want 300", n)
	}
	h.write("b", 10, 0)
	if n := h.entries("b"); n != 310 {
		t.Errorf("%d entries on a new volume, want 310", n)
	}
	if said := h.write("b", 10, 0); strings.Contains(said, "page size has changed") {
		t.Error("it is told again")
	}
}

// A file that is no database is nothing that could be replicated, and not a
// database that has not come yet.
func TestAFileThatIsNoDatabase(t *testing.T) {
	s3, vol := testbed.StartS3(t), newVolume(t)
	db := vol.db(t)
	if err := os.WriteFile(db, []byte(strings.Repeat("encrypted ", 500)), 0o600); err != nil {
		t.Fatal(err)
	}
	c := testbed.StartContainer(t, s3.Settings(s3.URL(), db), "sleep", "600")
	s := c.WaitHealth(20*time.Second, func(s healthz.Status) error {
		if s.Healthy || !strings.Contains(text(s.HealthError), "not an SQLite database") {
			return errors.New(text(s.HealthError))
		}
		return nil
	})
	if !strings.Contains(text(s.HealthError), db) {
		t.Errorf("the file is not named: %s", text(s.HealthError))
	}
	if code, _, said := testbed.Run(t, []string{"SLASHA_DB_PATH=" + db}, 20*time.Second, testbed.SlashaInit(t), "sync", "--timeout", "1s"); code == 0 {
		t.Errorf("sync says that all is well: %s", said)
	}
	c.Signal(syscall.SIGTERM)
	c.Wait(20 * time.Second)
}

// A person restores by hand while a container runs, or the other way round: the
// volume is somebody's.
func TestARestoreByHandOfALockedVolume(t *testing.T) {
	h := newHosts(t, "a")
	c := h.start("a", []string{"sleep", "600"})
	c.WaitHealth(20*time.Second, healthy)
	settings := h.s3.Settings(h.s3.URL(), h.volume["a"])
	code, _, said := testbed.Run(t, settings, 20*time.Second, testbed.SlashaInit(t), "restore")
	if code != 75 || !strings.Contains(said, "another instance holds this database") {
		t.Errorf("exit %d, %s", code, said)
	}
	if _, err := os.Stat(filepath.Dir(h.volume["a"])); err != nil {
		t.Error(err)
	}
}
