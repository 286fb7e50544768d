package main_test

import (
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/slashacom/slasha-init/healthz"
	"github.com/slashacom/slasha-init/internal/testbed"
)

// What apps do to their database files, and what must come of it.

// stopAndRestore stops the container and returns what the official command
// restores.
func stopAndRestore(t *testing.T, c *testbed.Container, s3 *testbed.S3) string {
	t.Helper()
	select {
	case <-c.Done():
	default:
		c.Signal(syscall.SIGTERM)
	}
	c.Wait(10 * time.Second)
	restored := filepath.Join(t.TempDir(), "restored.db")
	s3.OfficialRestore(restored)
	return restored
}

// Rule 8: Litestream's opening of an empty file would make it a database, with
// SQLite's own page size and encoding, before the app can choose.
func TestAnEmptyFileIsLeftToTheApp(t *testing.T) {
	s3, vol := testbed.StartS3(t), newVolume(t)
	db := vol.db(t)
	if err := os.WriteFile(db, nil, 0o600); err != nil { // there before the first look at it
		t.Fatal(err)
	}
	c := testbed.StartContainer(t, s3.Settings(s3.URL(), db), worker(t, db, "--late", "2s", "--page-size", "8192", "--every", "10ms")...)
	c.WaitHealth(2*time.Second, healthy) // nothing is wrong with a database that is not there yet
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

// An app may also work without ever making a database.
func TestNoDatabaseAtAll(t *testing.T) {
	s3, vol := testbed.StartS3(t), newVolume(t)
	c := testbed.StartContainer(t, s3.Settings(s3.URL(), vol.db(t)), "sleep", "60")
	s := c.WaitHealth(10*time.Second, healthy)
	if s.LastSyncedAt != nil || s.TXID != nil {
		t.Errorf("%+v", s)
	}
	c.Signal(syscall.SIGTERM)
	if code := c.Wait(5 * time.Second); code != 143 {
		t.Errorf("exit %d", code)
	}
}

// After a clean stop there is nothing to upload at the next start; what was
// uploaded last is still told.
func TestARestartWithNothingToUpload(t *testing.T) {
	s3, vol := testbed.StartS3(t), newVolume(t)
	db := vol.db(t)
	settings := s3.Settings(s3.URL(), db)
	c := testbed.StartContainer(t, settings, worker(t, db, "--count", "5", "--every", "0")...)
	if code := c.Wait(10 * time.Second); code != 0 {
		t.Fatalf("exit %d", code)
	}
	between := time.Now()
	c = testbed.StartContainer(t, settings, "sleep", "60")
	s := c.WaitHealth(10*time.Second, func(s healthz.Status) error {
		if s.LastSyncedAt == nil {
			return errors.New("not told when it was synced")
		}
		return healthy(s)
	})
	if at := time.Time(*s.LastSyncedAt); at.After(time.Now()) || between.Sub(at) > time.Minute {
		t.Errorf("last_synced_at is %s", at)
	}
	if s.TXID == nil || s.ReplicaTXID == nil || *s.TXID != *s.ReplicaTXID {
		t.Errorf("transactions %s and %s", text(s.TXID), text(s.ReplicaTXID))
	}
}

// An idle app costs fewer than 150,000 requests a month, all in: the renewals of its
// lease are the checks of its bucket, and compactions that have nothing to do ask for
// nothing. The first minutes of a container have more, once.
func TestRequestsOfAnIdleDatabase(t *testing.T) {
	t.Parallel()
	const (
		looking = 65 * time.Second
		most    = 150_000 * float64(looking) / float64(30*24*time.Hour) // 3.8
	)
	s3, vol := testbed.StartS3(t), newVolume(t)
	db := vol.db(t)
	breaker := testbed.StartBreaker(t, s3.Addr, 1)
	c := testbed.StartContainer(t, s3.Settings("http://"+breaker.Addr, db), worker(t, db, "--burst", "30", "--every", "10m")...)
	c.WaitHealth(20*time.Second, allSynced)
	began := time.Now()
	var recent []testbed.Asked
	testbed.Eventually(t, 5*time.Minute, func() error {
		now := time.Now()
		asked := breaker.Asked()
		recent = slices.DeleteFunc(asked, func(a testbed.Asked) bool { return now.Sub(a.At) > looking })
		if now.Sub(began) < looking || float64(len(recent)) > most {
			return fmt.Errorf("%d requests in the last %s; want at most %.1f: %v", len(recent), looking, most, recent)
		}
		return nil
	})
	t.Logf("%d requests in %s, %.0f s after the start: %v", len(recent), looking, time.Since(began).Seconds(), recent)
	s, err := c.Health()
	if err != nil || healthy(s) != nil || s.LastCheckedAt == nil || time.Since(time.Time(*s.LastCheckedAt)) > 30*time.Second {
		t.Errorf("last checked %v, %v, %v", s.LastCheckedAt, healthy(s), err)
	}
}
