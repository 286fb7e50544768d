package main_test

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slashacom/slasha-init/healthz"
	"github.com/slashacom/slasha-init/internal/testbed"
)

func inPhase(want healthz.Phase) func(healthz.Status) error {
	return func(s healthz.Status) error {
		if s.Phase != want {
			return fmt.Errorf("the phase is %s", s.Phase)
		}
		return nil
	}
}

// A deploy that overlaps: the new container is started on the volume before the
// old one has stopped. It waits, says for whom, and goes on when the old one has
// uploaded its last; also when that was killed.
func TestASecondWebWaits(t *testing.T) {
	for name, end := range map[string]func(*testbed.Container){
		"stopped": func(c *testbed.Container) { c.Signal(syscall.SIGTERM) },
		"killed":  func(c *testbed.Container) { c.Kill() },
	} {
		t.Run(name, func(t *testing.T) {
			s3, vol := testbed.StartS3(t), newVolume(t)
			db := vol.db(t)
			settings := s3.Settings(s3.URL(), db)
			first := testbed.StartContainer(t, settings, worker(t, db, "--every", "5ms")...)
			first.WaitAcked(20, 20*time.Second)
			second := testbed.StartContainer(t, settings, worker(t, db, "--every", "5ms")...)
			s := second.WaitHealth(10*time.Second, inPhase(healthz.Waiting))
			if s.Healthy || !strings.Contains(text(s.HealthError), fmt.Sprintf("pid %d", first.Cmd.Process.Pid)) {
				t.Errorf("the second says %s", text(s.HealthError))
			}
			if code, _, said := testbed.Run(t, append(settings, "SLASHA_LOCK_TIMEOUT=300ms"), 20*time.Second, testbed.SlashaInit(t), "--", "echo", "started"); code != 75 || !strings.Contains(said, "another instance holds this database") {
				t.Errorf("a third: exit %d, %s", code, said)
			}
			end(first)
			first.Wait(20 * time.Second)
			second.WaitAcked(20, 20*time.Second)
			second.WaitHealth(20*time.Second, healthy)
			second.Signal(syscall.SIGTERM)
			if code := second.Wait(20 * time.Second); code != 0 {
				t.Errorf("exit %d", code)
			}
			if said := second.Stderr.String(); strings.Contains(said, "stale") || strings.Contains(said, "msg=restored") {
				t.Errorf("the second: %s", said)
			}
			restored := filepath.Join(t.TempDir(), "restored.db")
			s3.OfficialRestore(restored)
			wantAll(t, testbed.Entries(t, restored), append(first.Acked(), second.Acked()...))
		})
	}
}

// A stop while it waits ends it at once.
func TestStopWhileWaitingForTheLock(t *testing.T) {
	s3, vol := testbed.StartS3(t), newVolume(t)
	db := vol.db(t)
	settings := s3.Settings(s3.URL(), db)
	first := testbed.StartContainer(t, settings, worker(t, db, "--every", "5ms")...)
	first.WaitAcked(1, 20*time.Second)
	second := testbed.StartContainer(t, settings, "echo", "started")
	second.WaitHealth(10*time.Second, inPhase(healthz.Waiting))
	second.Signal(syscall.SIGTERM)
	if code := second.Wait(5 * time.Second); code != 143 || second.Stdout.String() != "" {
		t.Errorf("exit %d, %s", code, second.Stdout)
	}
}

// A worker on the same volume follows: it runs beside the web process, replicates
// nothing, and takes over when that is gone.
func TestAWorkerFollows(t *testing.T) {
	s3, vol := testbed.StartS3(t), newVolume(t)
	db := vol.db(t)
	settings := s3.Settings(s3.URL(), db)
	// The leader is there first; its app makes the database a little later.
	leader := testbed.StartContainer(t, settings, append([]string{"sh", "-c", `sleep 0.5; exec "$@"`, "sh"}, worker(t, db, "--every", "10ms")...)...)
	isRunning(t, leader, 1)
	follower := testbed.StartContainer(t, append(settings, "SLASHA_PROCESS_TYPE=worker"), worker(t, db, "--every", "10ms")...)
	follower.WaitAcked(20, 20*time.Second)
	s := follower.WaitHealth(10*time.Second, healthy)
	if s.Lease.State != "following" || s.LastSyncedAt != nil {
		t.Errorf("the follower says %+v, last synced %v", s.Lease, s.LastSyncedAt)
	}
	// What the follower has open is not replaced under it.
	code, _, said := testbed.Run(t, settings, 20*time.Second, testbed.SlashaInit(t), "restore", "--now")
	if code != 74 || !strings.Contains(said, "has the database open; stop it first") {
		t.Errorf("restore --now: exit %d, %s", code, said)
	}
	leader.Kill()
	taken := time.Now()
	follower.WaitHealth(10*time.Second, func(s healthz.Status) error {
		if s.Lease.State == "following" || s.LastSyncedAt == nil {
			return fmt.Errorf("it says %+v, last synced %v", s.Lease, s.LastSyncedAt)
		}
		return healthy(s)
	})
	t.Logf("replicating %s after the leader was killed", time.Since(taken).Round(time.Millisecond))
	follower.WaitAcked(len(follower.Acked())+20, 20*time.Second)
	// The next web process follows in turn.
	next := testbed.StartContainer(t, settings, worker(t, db, "--every", "10ms")...)
	next.WaitAcked(20, 20*time.Second)
	if s := next.WaitHealth(10*time.Second, healthy); s.Lease.State != "following" {
		t.Errorf("the next web process says %+v", s.Lease)
	}
	next.Signal(syscall.SIGTERM)
	if code := next.Wait(20 * time.Second); code != 0 {
		t.Errorf("exit %d", code)
	}
	follower.Signal(syscall.SIGTERM)
	if code := follower.Wait(20 * time.Second); code != 0 {
		t.Errorf("exit %d", code)
	}
	restored := filepath.Join(t.TempDir(), "restored.db")
	s3.OfficialRestore(restored)
	wantAll(t, testbed.Entries(t, restored), slices.Concat(leader.Acked(), follower.Acked(), next.Acked()))
}
