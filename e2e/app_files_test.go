package e2e

import (
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slashacom/slasha-init/healthz"
	"github.com/slashacom/slasha-init/internal/testbed"
)

// What apps do to their database files, and what must happen then.

// Rule 8: Litestream's opening of an empty file would make it a database, with
// SQLite's own page size and encoding, before the app can choose.
func TestAnEmptyFileIsLeftToTheApp(t *testing.T) {
	t.Parallel()
	s3, vol := testbed.StartS3(t), newVolume(t)
	db := vol.db(t)
	if err := os.WriteFile(db, nil, 0o600); err != nil { // there before the first look at it
		t.Fatal(err)
	}
	app, open := gate(t, worker(t, db, "--late", "2s", "--page-size", "8192", "--every", "10ms"))
	c := testbed.StartContainer(t, s3.Settings(s3.URL(), db), app...)
	c.WaitHealth(20*time.Second, healthy) // nothing is wrong with a database that is not there yet
	open()
	c.WaitAcked(10, 10*time.Second)
	c.WaitHealth(10*time.Second, func(s healthz.Status) error {
		if s.LastSyncedAt == nil {
			return errors.New("nothing uploaded yet")
		}
		return healthy(s)
	})
	restored := stopAndRestore(t, c, s3)
	wantAll(t, testbed.Entries(t, restored), c.Acked())
	book, err := sql.Open("sqlite3", "file:"+restored)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = book.Close() }()
	var size int
	var encoding string
	if err := book.QueryRow("PRAGMA page_size").Scan(&size); err != nil {
		t.Fatal(err)
	}
	if err := book.QueryRow("PRAGMA encoding").Scan(&encoding); err != nil {
		t.Fatal(err)
	}
	if size != 8192 || encoding != "UTF-16le" {
		t.Errorf("the app chose pages of 8192 bytes and UTF-16le; it has %d and %s", size, encoding)
	}
}

// Rule 9: Litestream would go on with the file that was deleted.
func TestADatabaseThatIsReplaced(t *testing.T) {
	t.Parallel()
	s3, vol := testbed.StartS3(t), newVolume(t)
	db := vol.db(t)
	go1 := filepath.Join(t.TempDir(), "go")
	script := fmt.Sprintf(`%[1]s worker --db %[2]s --count 20 --every 5ms
		while [ ! -e %[3]s ]; do sleep 0.02; done
		rm -f %[2]s %[2]s-wal %[2]s-shm
		echo second
		exec %[1]s worker --db %[2]s --every 20ms`, testbed.Guestbook(t), db, go1)
	c := testbed.StartContainer(t, s3.Settings(s3.URL(), db), "sh", "-c", script)
	c.WaitAcked(20, 10*time.Second)
	first := c.WaitHealth(10*time.Second, func(s healthz.Status) error {
		if s.LastSyncedAt == nil || s.PendingSince != nil {
			return errors.New("the first database is not uploaded yet")
		}
		return healthy(s)
	})
	if err := os.WriteFile(go1, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c.WaitAcked(30, 20*time.Second)
	c.WaitHealth(20*time.Second, func(s healthz.Status) error {
		if !time.Time(*s.LastSyncedAt).After(time.Time(*first.LastSyncedAt).Add(time.Second)) {
			return errors.New("the second database is not uploaded yet")
		}
		return healthy(s)
	})
	restored := stopAndRestore(t, c, s3)
	entries, acked := testbed.Entries(t, restored), c.Acked()
	wantAll(t, entries, acked[20:])
	if len(entries) > len(acked)-20+1 {
		t.Errorf("%d entries, but the second database had %d", len(entries), len(acked)-20)
	}
}

// The same without a pause, and with a bucket so slow that each replacement falls
// into an upload: when it is noticed, the new WAL is there, and what the library
// captures then is half the old and half the new database.
func TestADatabaseThatIsReplacedDuringAnUpload(t *testing.T) {
	t.Parallel()
	s3, vol := testbed.StartS3(t), newVolume(t)
	proxy := testbed.StartProxy(t, s3.Addr)
	db := vol.db(t)
	// The end of the short-lived worker moves its WAL into the new file: what the
	// second one's WAL does not have is in the new file only.
	script := fmt.Sprintf(`i=0; while [ $i -lt 4 ]; do
		%[1]s worker --db %[2]s --count $((900 - 200 * i)) --every 0 --size 900 || exit 1
		%[1]s worker --db %[2]s --count 400 --every 2ms --size 50 || exit 1
		rm -f %[2]s %[2]s-wal %[2]s-shm
		i=$((i+1)); done
		%[1]s worker --db %[2]s --count 50 --every 0 --size 900 || exit 1
		exec %[1]s worker --db %[2]s --count 300 --every 2ms --size 50`, testbed.Guestbook(t), db)
	proxy.Toxic("latency", "downstream", map[string]any{"latency": 200})
	c := testbed.StartContainer(t, append(s3.Settings(proxy.URL(), db), "SLASHA_SYNC_INTERVAL=1ms"), "sh", "-c", script)
	if code := c.Wait(60 * time.Second); code != 0 {
		t.Fatalf("exit %d", code)
	}
	live, restored := testbed.Entries(t, db), testbed.Entries(t, stopAndRestore(t, c, s3))
	if !slices.Equal(live, restored) {
		t.Errorf("%d entries live, %d restored", len(live), len(restored))
	}
}

// Rule 1: the last close of a WAL database deletes the WAL, unless another
// process holds it; had we dropped our locks, commits would vanish with it.
func TestAnAppThatOpensAndClosesAgainAndAgain(t *testing.T) {
	t.Parallel()
	s3, vol := testbed.StartS3(t), newVolume(t)
	db := vol.db(t)
	script := fmt.Sprintf(`i=0; while [ $i -lt 40 ]; do %s worker --db %s --count 15 --every 0 || exit 1; i=$((i+1)); done`, testbed.Guestbook(t), db)
	c := testbed.StartContainer(t, append(s3.Settings(s3.URL(), db), "SLASHA_SYNC_INTERVAL=20ms"), "sh", "-c", script)
	if code := c.Wait(60 * time.Second); code != 0 {
		t.Fatalf("exit %d", code)
	}
	acked := c.Acked()
	if len(acked) != 600 {
		t.Errorf("%d commits", len(acked))
	}
	wantAll(t, testbed.Entries(t, stopAndRestore(t, c, s3)), acked)
}

// A new page size: what was uploaded before can't be merged with what follows, and
// a restore that begins with an older snapshot would fail. So the old line is
// closed, and a snapshot is uploaded with the first change.
func TestAChangedPageSize(t *testing.T) {
	t.Parallel()
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
		t.Errorf("it is not logged: %s", said)
	}
	if n := h.replicated(); n != 300 {
		t.Errorf("the official command restores %d entries, want 300", n)
	}
	h.write("b", 10, 0)
	if n := h.entries("b"); n != 310 {
		t.Errorf("%d entries on a new volume, want 310", n)
	}
	if said := h.write("b", 10, 0); strings.Contains(said, "page size has changed") {
		t.Error("it is logged again")
	}
}

// A file that is not a database can't be replicated, and does not count as a database
// that has not come yet.
func TestAFileThatIsNoDatabase(t *testing.T) {
	t.Parallel()
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

// A database that is deleted under the app can't be backed up any more: health says
// that in so many words, and a stop does not wait for it.
func TestADatabaseThatIsDeleted(t *testing.T) {
	t.Parallel()
	s3, vol := testbed.StartS3(t), newVolume(t)
	db := vol.db(t)
	c := testbed.StartContainer(t, s3.Settings(s3.URL(), db), worker(t, db, "--every", "20ms", "--persist")...)
	c.WaitAcked(10, 20*time.Second)
	c.WaitHealth(20*time.Second, someSynced) // so replication has it open too
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(db + suffix); err != nil {
			t.Fatal(err)
		}
	}
	c.WaitHealth(20*time.Second, func(s healthz.Status) error {
		if s.Healthy || !strings.Contains(text(s.HealthError), "was deleted while the app had it open") {
			return fmt.Errorf("healthy %v, %s", s.Healthy, text(s.HealthError))
		}
		return nil
	})
	began := time.Now()
	c.Signal(syscall.SIGTERM)
	if code := c.Wait(20 * time.Second); code != 70 || time.Since(began) > 5*time.Second {
		t.Errorf("exit %d after %s", code, time.Since(began))
	}
}
