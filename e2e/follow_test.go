package e2e

import (
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

// Instances on one volume: one leads, the others wait or follow.

// A deploy that overlaps: the new container is started on the volume before the
// old one has stopped. It waits, says for whom, and goes on when the old one has
// uploaded its last; also when that was killed.
func TestASecondWebWaits(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*testbed.Container){
		"stopped": func(c *testbed.Container) { c.Signal(syscall.SIGTERM) },
		"killed":  func(c *testbed.Container) { c.Kill() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
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
			restored := restoreOfficially(t, s3)
			wantAll(t, testbed.Entries(t, restored), append(first.Acked(), second.Acked()...))
		})
	}
}

// A stop while it waits ends it at once.
func TestStopWhileWaitingForTheLock(t *testing.T) {
	t.Parallel()
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
	t.Parallel()
	s3, vol := testbed.StartS3(t), newVolume(t)
	db := vol.db(t)
	settings := s3.Settings(s3.URL(), db)
	// The leader is there first; its app makes the database while the follower waits.
	app, open := gate(t, worker(t, db, "--every", "10ms"))
	leader := testbed.StartContainer(t, settings, app...)
	isRunning(t, leader, 1)
	follower := testbed.StartContainer(t, append(settings, "SLASHA_PROCESS_TYPE=worker"), worker(t, db, "--every", "10ms")...)
	follower.WaitHealth(20*time.Second, inPhase(healthz.Waiting))
	open()
	follower.WaitAcked(20, 20*time.Second)
	s := follower.WaitHealth(10*time.Second, healthy)
	if s.Lease.State != "following" || !strings.Contains(s.Lease.Holder, fmt.Sprintf("pid %d", leader.Cmd.Process.Pid)) || s.LastSyncedAt != nil {
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
	if s := next.WaitHealth(10*time.Second, healthy); s.Lease.State != "following" || !strings.Contains(s.Lease.Holder, fmt.Sprintf("pid %d", follower.Cmd.Process.Pid)) {
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
	restored := restoreOfficially(t, s3)
	wantAll(t, testbed.Entries(t, restored), slices.Concat(leader.Acked(), follower.Acked(), next.Acked()))
}

// A leader that is killed while it replaces the database leaves it without its WAL: a
// worker that waits for it puts that back before its app sees the database.
func TestALeaderThatDiesInTheMiddleOfASwap(t *testing.T) {
	t.Parallel()
	s3, vol := testbed.StartS3(t), newVolume(t)
	db := vol.db(t)
	settings := s3.Settings(s3.URL(), db)
	backedUp(t, settings, db, 10, 1)
	// What comes next is in the WAL alone.
	w := worker(t, db, "--every", "10ms")
	app := &testbed.Container{Process: testbed.Start(t, nil, w[0], w[1:]...)}
	app.WaitAcked(20, 20*time.Second)
	app.Kill()

	// As restore.exchange leaves it after its first step.
	state := filepath.Join(vol.dir, ".app.db.slasha")
	aside := filepath.Join(state, "aside", "20260101T000000.000000Z")
	if err := os.MkdirAll(aside, 0o700); err != nil {
		t.Fatal(err)
	}
	ledger := fmt.Sprintf(`{"swap": {"request": "x", "at": "2026-01-01T00:00:00Z", "set_aside": %q, "device": 1, "inode": 1}}`, aside)
	if err := os.WriteFile(filepath.Join(state, "restored.json"), []byte(ledger), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(db+"-wal", filepath.Join(aside, "app.db-wal")); err != nil {
		t.Fatal(err)
	}
	var locks []*os.File
	for _, name := range []string{"lead", "follow"} {
		l, err := os.Create(filepath.Join(state, name+".lock"))
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Flock(int(l.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
			t.Fatal(err)
		}
		locks = append(locks, l)
	}
	next := testbed.StartContainer(t, append(settings, "SLASHA_PROCESS_TYPE=worker"), worker(t, db, "--every", "10ms")...)
	next.WaitHealth(20*time.Second, func(s healthz.Status) error {
		if s.Phase != healthz.Waiting {
			return fmt.Errorf("phase %s", s.Phase)
		}
		return nil
	})
	// The follower's mark first: what comes next is decided while nobody leads, too.
	for _, l := range slices.Backward(locks) {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	next.WaitAcked(10, 20*time.Second)
	next.Signal(syscall.SIGTERM)
	if code := next.Wait(20 * time.Second); code != 0 {
		t.Errorf("exit %d", code)
	}
	restored := restoreOfficially(t, s3)
	wantAll(t, testbed.Entries(t, restored), slices.Concat(app.Acked(), next.Acked()))
}

// A request that was carried out makes nobody wait for the lead: a worker with the
// same variables as the web follows, and so does a web that comes back when a
// worker has taken over.
func TestARequestThatWasCarriedOutIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	h := newHosts(t, "a")
	h.write("a", 10, 0)
	set := []string{"SLASHA_RESTORE_PENDING=request-7", "SLASHA_LOCK_TIMEOUT=2s"}
	web := h.start("a", worker(t, h.volume["a"], "--every", "20ms"), set...)
	web.WaitAcked(5, 20*time.Second)
	helper := h.start("a", []string{"sh", "-c", "echo runs; sleep 600"}, append(set, "SLASHA_PROCESS_TYPE=worker")...)
	testbed.WaitOutput(helper.Process, helper.Stdout, "the worker", 20*time.Second, testbed.Contains("runs"))
	web.Kill()
	helper.WaitHealth(20*time.Second, leaseIs("held"))
	again := h.start("a", worker(t, h.volume["a"], "--every", "20ms"), set...)
	again.WaitAcked(5, 20*time.Second)
	again.WaitHealth(20*time.Second, leaseIs("following"))
}

// An instance that follows obeys no restore, and is not asked: the socket is the
// leader's, also of one that has taken over.
func TestAFollowerIsNotTheOneToAsk(t *testing.T) {
	t.Parallel()
	h := newHosts(t, "a")
	web := h.start("a", worker(t, h.volume["a"], "--every", "20ms"))
	web.WaitAcked(5, 20*time.Second)
	helper := h.start("a", []string{"sh", "-c", "echo runs; sleep 600"}, "SLASHA_PROCESS_TYPE=worker")
	testbed.WaitOutput(helper.Process, helper.Stdout, "the worker", 20*time.Second, testbed.Contains("runs"))
	web.Kill()
	helper.WaitHealth(20*time.Second, leaseIs("held"))
	again := h.start("a", worker(t, h.volume["a"], "--every", "20ms"))
	again.WaitAcked(5, 20*time.Second)
	again.WaitHealth(20*time.Second, leaseIs("following"))

	ask := func(args ...string) (int, string) {
		code, _, said := testbed.Run(t, []string{"SLASHA_DB_PATH=" + h.volume["a"]}, 30*time.Second, testbed.SlashaInit(t), args...)
		return code, said
	}
	if code, said := ask("sync"); code != 0 {
		t.Errorf("sync: exit %d, %s", code, said)
	}
	if code, said := ask("restore", "--now"); code != 74 || !strings.Contains(said, "another instance on this volume") {
		t.Errorf("restore --now: exit %d, %s", code, said)
	}
	again.WaitAcked(len(again.Acked())+5, 20*time.Second) // it goes on
}

// Two instances start at once where there is nothing yet, not even the folder: one
// restores, the other waits for the database.
func TestTwoStartOnANewVolume(t *testing.T) {
	t.Parallel()
	h := newHosts(t, "a", "b")
	h.write("a", 50, 0)
	h.volume["b"] = filepath.Join(filepath.Dir(h.volume["b"]), "folder", "of", "its", "own", "app.db")
	web := h.start("b", worker(t, h.volume["b"], "--every", "20ms"))
	helper := h.start("b", []string{"sh", "-c", "echo runs; sleep 600"}, "SLASHA_PROCESS_TYPE=worker")
	web.WaitAcked(10, 30*time.Second)
	testbed.WaitOutput(helper.Process, helper.Stdout, "the worker", 20*time.Second, testbed.Contains("runs"))
	leaders := strings.Count(web.Stderr.String()+helper.Stderr.String(), "msg=restored")
	if leaders != 1 {
		t.Errorf("%d have restored", leaders)
	}
	web.Signal(syscall.SIGTERM)
	web.Wait(20 * time.Second)
	helper.Signal(syscall.SIGTERM)
	helper.Wait(20 * time.Second)
	if n, want := h.replicated(), 50+len(web.Acked()); n != want {
		t.Errorf("%d entries, want %d", n, want)
	}
}

// Both stop at the same time, and the follower's app is the one that writes to the
// last: the leader, or the follower itself, uploads that.
func TestBothStopAtOnce(t *testing.T) {
	t.Parallel()
	for round := range 4 {
		h := newHosts(t, "a")
		web := h.start("a", worker(t, h.volume["a"], "--every", "10m"))
		web.WaitAcked(1, 20*time.Second)
		helper := h.start("a", worker(t, h.volume["a"], "--every", "2ms"), "SLASHA_PROCESS_TYPE=worker")
		helper.WaitAcked(50, 20*time.Second)
		web.Signal(syscall.SIGTERM)
		if round > 0 {
			time.Sleep(time.Duration(round) * 30 * time.Millisecond) // into the leader's last upload, or near it
		}
		helper.Signal(syscall.SIGTERM)
		web.Wait(20 * time.Second)
		if code := helper.Wait(20 * time.Second); code != 0 {
			t.Errorf("exit %d", code)
		}
		if n, want := h.replicated(), 1+len(helper.Acked()); n != want {
			t.Errorf("round %d: %d entries, want %d", round, n, want)
		}
	}
}

// A leader that is going to replace the database keeps others from opening it until
// it has: here the restore takes a while.
func TestNobodyOpensADatabaseThatIsReplaced(t *testing.T) {
	t.Parallel()
	h := newHosts(t, "a")
	h.write("a", 300, 0)
	proxy := testbed.StartProxy(t, h.s3.Addr)
	proxy.Toxic("latency", "downstream", map[string]any{"latency": 300})
	web := testbed.StartContainer(t, append(h.s3.Settings(proxy.URL(), h.volume["a"]), shortTTL, "SLASHA_RESTORE_PENDING=1"), worker(t, h.volume["a"], "--every", "20ms")...)
	web.WaitHealth(20*time.Second, inPhase(healthz.Restoring))
	helper := h.start("a", []string{"sh", "-c", "echo runs; sleep 600"}, "SLASHA_PROCESS_TYPE=worker")
	helper.WaitHealth(20*time.Second, inPhase(healthz.Waiting))
	web.WaitAcked(5, 60*time.Second)
	testbed.WaitOutput(helper.Process, helper.Stdout, "the worker", 20*time.Second, testbed.Contains("runs"))
	said := web.Stderr.String()
	if !strings.Contains(said, "msg=restored") {
		t.Errorf("the leader: %s", said)
	}
}

// The web process is killed, and the worker's app writes on, before the worker's
// slasha-init takes over. Nothing keeps that app from bringing the WAL into the
// database and beginning it anew: what nobody has captured by then is in the replica
// all the same.
func TestAGapBetweenTwoLeaders(t *testing.T) {
	t.Parallel()
	s3, vol := testbed.StartS3(t), newVolume(t)
	db := vol.db(t)
	settings := append(s3.Settings(s3.URL(), db), shortTTL)
	leader := testbed.StartContainer(t, settings, worker(t, db, "--burst", "150", "--every", "10m")...)
	leader.WaitAcked(150, 20*time.Second)
	leader.WaitHealth(20*time.Second, allSynced)
	follower := testbed.StartContainer(t, append(settings, "SLASHA_PROCESS_TYPE=worker"),
		worker(t, db, "--every", "5ms", "--sql", "PRAGMA wal_checkpoint(PASSIVE)", "--sql-after", "60")...)
	follower.WaitAcked(1, 20*time.Second)
	follower.Signal(syscall.SIGSTOP)
	before := strings.Count(follower.Stdout.String(), "sql: ")
	testbed.WaitOutput(follower.Process, follower.Stdout, "a checkpoint", 20*time.Second, func(s string) (struct{}, bool) {
		return struct{}{}, strings.Count(s, "sql: ") > before
	})
	before++
	leader.Kill() // as much as there can be is still to come before the next one
	testbed.WaitOutput(follower.Process, follower.Stdout, "a checkpoint and a commit", 20*time.Second, func(s string) (struct{}, bool) {
		at := strings.LastIndex(s, "sql: ")
		return struct{}{}, strings.Count(s, "sql: ") > before && strings.Contains(s[max(at, 0):], "ack ")
	})
	follower.Signal(syscall.SIGCONT)
	follower.WaitHealth(20*time.Second, func(s healthz.Status) error {
		if s.Lease.State != "held" || s.LastSyncedAt == nil {
			return fmt.Errorf("it says %+v, last synced %v", s.Lease, s.LastSyncedAt)
		}
		return healthy(s)
	})
	restored := testbed.Entries(t, stopCleanlyAndRestore(t, follower, s3))
	wantAll(t, restored, append(leader.Acked(), follower.Acked()...))
}

// A person restores by hand while a container runs, or the other way round: the
// volume is somebody's.
func TestARestoreByHandOfALockedVolume(t *testing.T) {
	t.Parallel()
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
