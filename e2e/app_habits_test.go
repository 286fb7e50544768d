package e2e

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slashacom/slasha-init/healthz"
	"github.com/slashacom/slasha-init/internal/testbed"
)

// What apps do with SQLite besides writing rows. Replication holds a read
// transaction and SQLite's locks, so some of it is refused; none of it may cost a
// commit, or make the backup look broken.

// habit is such an app at work.
type habit struct {
	*testbed.Container
	s3 *testbed.S3
	db string
	w  *watcher
}

func startHabit(t *testing.T, args ...string) *habit {
	t.Helper()
	s3, vol := testbed.StartS3(t), newVolume(t)
	db := vol.db(t)
	c := testbed.StartContainer(t, s3.Settings(s3.URL(), db), worker(t, db, append([]string{"--stamp"}, args...)...)...)
	h := &habit{c, s3, db, watch(t, c)}
	h.w.working(workload{}, h.w.acked())
	return h
}

// said waits until the app's statement was run so many times, and returns what came
// of each.
func (h *habit) said(times int) []string {
	return testbed.WaitOutput(h.Process, h.Stdout, fmt.Sprintf("%d statements", times), time.Minute, func(s string) (said []string, ok bool) {
		for line := range strings.Lines(s) {
			if what, is := strings.CutPrefix(line, "sql: "); is && strings.HasSuffix(what, "\n") {
				said = append(said, strings.TrimSpace(what))
			}
		}
		return said, len(said) >= times
	})
}

// finish stops it when it has written some more, and checks that nothing is lost and
// that health reported no problem.
func (h *habit) finish(t *testing.T) {
	t.Helper()
	h.WaitAcked(len(h.Acked())+50, 30*time.Second)
	h.w.working(workload{}, time.Now())
	h.w.ending.Store(true)
	h.Signal(syscall.SIGTERM)
	if code := h.Wait(15 * time.Second); code != 0 {
		t.Errorf("exit %d", code)
	}
	h.w.stop(h.Acks())
	was := false
	for _, s := range h.w.all() {
		was = was || s.Healthy
		if was && !s.Healthy && s.Phase == healthz.Running {
			t.Errorf("unhealthy: %s", text(s.HealthError))
			break
		}
	}
	entries := testbed.Entries(t, stopAndRestore(t, h.Container, h.s3))
	wantAll(t, entries, h.Acked())
	if live := testbed.Entries(t, h.db); len(live) != len(entries) {
		t.Errorf("%d entries live, %d restored", len(live), len(entries))
	}
}

func TestAnAppThatVacuums(t *testing.T) {
	t.Parallel()
	h := startHabit(t, "--every", "5ms", "--size", "2000", "--random", "--sql", "VACUUM", "--sql-after", "60")
	for _, said := range h.said(4) {
		if said != "done" {
			t.Errorf("VACUUM: %s", said)
		}
	}
	h.finish(t)
}

// A checkpoint that empties the WAL would take away what was not captured yet. It
// is refused by our read transaction: the app waits as long as its busy timeout,
// and goes on.
func TestAnAppThatTruncatesTheWAL(t *testing.T) {
	t.Parallel()
	h := startHabit(t, "--every", "5ms", "--sql", "PRAGMA wal_checkpoint(TRUNCATE)", "--sql-after", "60")
	for _, said := range h.said(2) {
		if !strings.HasPrefix(said, "done 1 ") { // the first column: it was kept from finishing
			t.Errorf("the checkpoint: %s", said)
		}
	}
	h.finish(t)
}

// Without a WAL there would be nothing to replicate. SQLite refuses to leave WAL
// mode while somebody else has the database open.
func TestAnAppThatWantsToLeaveWALMode(t *testing.T) {
	t.Parallel()
	h := startHabit(t, "--every", "5ms", "--sql", "PRAGMA journal_mode=DELETE", "--sql-after", "60")
	for _, said := range h.said(2) {
		if said != "database is locked" {
			t.Errorf("the change: %s", said)
		}
	}
	h.finish(t)
}

// While the bucket is away at the start nobody has the database open yet, and the
// app can leave WAL mode. It is in it again when replication begins, and has lost
// nothing.
func TestAnAppThatLeavesWALModeBeforeReplicationBegins(t *testing.T) {
	t.Parallel()
	s3, vol := testbed.StartS3(t), newVolume(t)
	proxy := testbed.StartProxy(t, s3.Addr)
	db := vol.db(t)
	testbed.MustRun(t, nil, 10*time.Second, testbed.Guestbook(t), "worker", "--db", db, "--count", "5", "--every", "0")
	proxy.Cut()
	c := testbed.StartContainer(t, s3.Settings(proxy.URL(), db),
		worker(t, db, "--stamp", "--every", "5ms", "--sql", "PRAGMA journal_mode=DELETE", "--sql-after", "10")...)
	h := &habit{c, s3, db, watch(t, c)}
	for _, said := range h.said(3) {
		if said != "done delete" {
			t.Errorf("the change: %s", said)
		}
	}
	h.w.await(tellWithin, "it is unhealthy", func(s sample) bool { return !s.Healthy && s.Phase == healthz.Running })
	proxy.Mend()
	h.w.working(workload{}, time.Now())
	testbed.Eventually(t, 30*time.Second, func() error {
		if said := h.said(4); said[len(said)-1] != "database is locked" {
			return errors.New("the app can still leave WAL mode: " + said[len(said)-1])
		}
		return nil
	})
	h.WaitAcked(len(h.Acked())+20, 20*time.Second)
	h.w.ending.Store(true)
	h.Signal(syscall.SIGTERM)
	if code := h.Wait(15 * time.Second); code != 0 {
		t.Errorf("exit %d", code)
	}
	h.w.stop(h.Acks())
	entries := testbed.Entries(t, stopAndRestore(t, c, s3))
	wantAll(t, entries, h.Acked())
	if live := testbed.Entries(t, db); len(live) != len(entries) {
		t.Errorf("%d entries live, %d restored", len(live), len(entries))
	}
}

// A reader that stays, like a report or a forgotten cursor, keeps the WAL from being
// reused: it grows past the size at which it would be. Commits go out all the same.
func TestAnAppThatHoldsAReadTransaction(t *testing.T) {
	t.Parallel()
	h := startHabit(t, "--every", "5ms", "--size", "20000", "--random", "--hold")
	h.WaitAcked(600, time.Minute) // 12 MB; checkpoints are tried from 4 MB on
	h.finish(t)
}
