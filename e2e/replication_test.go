package e2e

import (
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

// Commits and what becomes of them when the volume, the container or the bucket goes.

func TestEveryCommitIsBackAfterTheVolumeIsLost(t *testing.T) {
	t.Parallel()
	s3, vol := testbed.StartS3(t), newVolume(t)
	settings := s3.Settings(s3.URL(), vol.db(t))

	c := testbed.StartContainer(t, settings, worker(t, vol.db(t), "--every", "2ms")...)
	c.WaitAcked(500, 30*time.Second)
	c.WaitHealth(10*time.Second, healthy)
	c.Signal(syscall.SIGTERM)
	if code := c.Wait(10 * time.Second); code != 0 {
		t.Fatalf("exit %d after a clean stop", code)
	}
	acked := c.Acked()
	vol.lose(t)

	official := restoreOfficially(t, s3)
	wantAll(t, testbed.Entries(t, official), acked)

	c = testbed.StartContainer(t, settings, worker(t, vol.db(t), "--count", "1")...)
	if code := c.Wait(20 * time.Second); code != 0 {
		t.Fatalf("exit %d", code)
	}
	restored := testbed.Entries(t, vol.db(t))
	wantAll(t, restored, append(acked, c.Acked()...))
	if want := len(acked) + 1; len(restored) > want+1 { // one commit may have returned unseen
		t.Errorf("%d entries, of which %d were acknowledged", len(restored), want)
	}
}

func TestTenCyclesUnderAFastWriterLoseNothing(t *testing.T) {
	t.Parallel()
	s3, vol := testbed.StartS3(t), newVolume(t)
	var acked []int64
	for cycle := range 10 {
		db := vol.db(t)
		c := testbed.StartContainer(t, s3.Settings(s3.URL(), db), worker(t, db, "--every", "0")...)
		c.WaitAcked(2000, 30*time.Second)
		began := time.Now()
		c.Signal(syscall.SIGTERM)
		if code := c.Wait(9500 * time.Millisecond); code != 0 {
			t.Fatalf("cycle %d: exit %d", cycle, code)
		}
		acked = append(acked, c.Acked()...)
		t.Logf("cycle %d: %d commits so far, stopped in %s", cycle, len(acked), time.Since(began).Round(time.Millisecond))
		vol.lose(t)
	}
	final := restoreOfficially(t, s3)
	wantAll(t, testbed.Entries(t, final), acked)
}

func TestKillKeepsThePromiseOfLastSyncedAt(t *testing.T) {
	t.Parallel()
	s3, vol := testbed.StartS3(t), newVolume(t)
	for round := range 3 {
		db := vol.db(t)
		c := testbed.StartContainer(t, append(s3.Settings(s3.URL(), db), shortTTL), worker(t, db, "--every", "1ms")...)
		c.WaitAcked(300, 20*time.Second)
		some := time.Now()
		s := c.WaitHealth(10*time.Second, func(s healthz.Status) error {
			if s.LastSyncedAt == nil || time.Time(*s.LastSyncedAt).Before(some) {
				return errors.New("nothing promised yet")
			}
			return nil
		})
		c.Kill()
		promised := time.Time(*s.LastSyncedAt)
		live := testbed.Entries(t, db) // what the app had committed
		vol.lose(t)

		restored := restoreOfficially(t, s3)
		have := testbed.Entries(t, restored)
		var before int
		for _, e := range live {
			// An entry's time is taken before its commit: only those whose
			// successor was written before the promise surely returned before it.
			if i := slices.IndexFunc(live, func(n testbed.Entry) bool { return n.ID == e.ID+1 }); i >= 0 && live[i].At.Before(promised) {
				before++
				if !slices.ContainsFunc(have, func(h testbed.Entry) bool { return h.ID == e.ID }) {
					t.Fatalf("round %d: entry %d of %s is lost, but last_synced_at promised %s", round, e.ID, e.At, promised)
				}
			}
		}
		if before == 0 {
			t.Fatalf("round %d: the promise %s was about nothing", round, promised)
		}
		t.Logf("round %d: %d of %d commits promised, %d in the bucket", round, before, len(live), len(have))
	}
}

func TestBucketGoesAwayUnderLoadAndComesBack(t *testing.T) {
	t.Parallel()
	s3, vol := testbed.StartS3(t), newVolume(t)
	proxy := testbed.StartProxy(t, s3.Addr)
	db := vol.db(t)
	c := testbed.StartContainer(t, s3.Settings(proxy.URL(), db), worker(t, db, "--every", "5ms")...)
	c.WaitAcked(100, 20*time.Second)
	c.WaitHealth(10*time.Second, healthy)

	proxy.Cut()
	down := c.WaitHealth(30*time.Second, func(s healthz.Status) error {
		if s.Healthy {
			return errors.New("still healthy")
		}
		return nil
	})
	if !strings.Contains(text(down.HealthError), "refused") {
		t.Errorf("health_error is %q, want the refused connection", text(down.HealthError))
	}
	c.WaitAcked(len(c.Acked())+200, 20*time.Second) // the app goes on meanwhile
	still, err := c.Health()
	if err != nil {
		t.Fatal(err)
	}
	if still.Healthy || *still.LastSyncedAt != *down.LastSyncedAt {
		t.Errorf("last_synced_at moved from %v to %v while the bucket was away", down.LastSyncedAt, still.LastSyncedAt)
	}

	proxy.Mend()
	began := time.Now()
	c.WaitHealth(15*time.Second, func(s healthz.Status) error {
		if err := healthy(s); err != nil {
			return err
		}
		if !time.Time(*s.LastSyncedAt).After(began) {
			return errors.New("healthy, but nothing uploaded since")
		}
		return nil
	})
	t.Logf("healthy again after %s", time.Since(began).Round(time.Millisecond))
	c.Signal(syscall.SIGTERM)
	if code := c.Wait(10 * time.Second); code != 0 {
		t.Fatalf("exit %d", code)
	}
	restored := restoreOfficially(t, s3)
	wantAll(t, testbed.Entries(t, restored), c.Acked())
}

// An upload whose answers were all lost has happened: the next list of the replica
// shows that, and health reports it, although nothing more is uploaded.
func TestAnUploadWhoseAnswerWasLost(t *testing.T) {
	t.Parallel()
	s3, vol := testbed.StartS3(t), newVolume(t)
	road := testbed.StartBreaker(t, s3.Addr, 1)
	db := vol.db(t)
	hint := filepath.Join(vol.dir, "go on")
	script := `"$0" worker --db "$1" --count 3 --every 0; until [ -e "$2" ]; do sleep 0.05; done; "$0" worker --db "$1" --count 1; sleep 600`
	c := testbed.StartContainer(t, s3.Settings("http://"+road.Addr, db), "sh", "-c", script, testbed.Guestbook(t), db, hint)
	c.WaitAcked(3, 20*time.Second)
	allThere := func(s healthz.Status) error {
		if s.TXID == nil || text(s.TXID) != text(s.ReplicaTXID) || s.PendingSince != nil {
			return fmt.Errorf("%s here, %s in the replica, pending since %v", text(s.TXID), text(s.ReplicaTXID), s.PendingSince)
		}
		return healthy(s)
	}
	c.WaitHealth(20*time.Second, allThere)
	road.LoseReplies(1, "PUT")
	begun := time.Now()
	if err := os.WriteFile(hint, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c.WaitAcked(4, 20*time.Second)
	c.WaitHealth(40*time.Second, func(s healthz.Status) error {
		if s.Healthy {
			return errors.New("it is healthy")
		}
		return nil
	})
	road.Heal()
	s := c.WaitHealth(40*time.Second, allThere)
	// It is the moment at which the WAL was read for that upload, when the commit was
	// written, and may not have returned yet.
	if s.LastSyncedAt == nil || time.Time(*s.LastSyncedAt).Before(begun) {
		t.Errorf("last synced at %v, and the last commit was made after %s", synced(sample{Status: s}), begun)
	}
	c.Signal(syscall.SIGTERM)
	c.Wait(20 * time.Second)
}

// One commit is made safe before somebody says "paid": sync returns when it is
// in the replica, whatever the interval.
func TestSync(t *testing.T) {
	t.Parallel()
	s3, vol := testbed.StartS3(t), newVolume(t)
	db := vol.db(t)
	proxy := testbed.StartProxy(t, s3.Addr)
	settings := append(s3.Settings(proxy.URL(), db), "SLASHA_SYNC_INTERVAL=1h")
	c := testbed.StartContainer(t, settings, worker(t, db, "--every", "20ms")...)
	for n := 20; n <= 60; n += 20 {
		c.WaitAcked(n, 20*time.Second)
		acked := c.Acked()
		testbed.MustRun(t, settings, 20*time.Second, testbed.SlashaInit(t), "sync")
		restored := restoreOfficially(t, s3)
		wantAll(t, testbed.Entries(t, restored), acked)
	}
	proxy.Cut()
	code, out, said := testbed.Run(t, settings, 30*time.Second, testbed.SlashaInit(t), "sync", "--timeout", "2s")
	if code != 1 || out != "" || !strings.Contains(said, "some commits are still not in the replica after 2s") {
		t.Errorf("without a bucket: exit %d, %s%s", code, out, said)
	}
	proxy.Mend()
	testbed.MustRun(t, settings, 30*time.Second, testbed.SlashaInit(t), "sync")
	c.Signal(syscall.SIGTERM)
	if code := c.Wait(20 * time.Second); code != 0 {
		t.Errorf("exit %d", code)
	}
}
